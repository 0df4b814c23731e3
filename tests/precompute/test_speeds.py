"""Recordings at other speeds: exact lengths, correct samples, cached and trained on together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.speech import make_speech, write_split
from tests.support.training import stage1_options
from train.options import TrainOptions
from train.splits import open_source
from vox.audio import read_audio, read_header
from vox.cli import main
from vox.corpus import load_split
from vox.data.batch import FeatureBatch
from vox.data.sources import LiveSource
from vox.errors import CacheError, CorpusError
from vox.features.fingerprint import Fingerprint, make_fingerprint
from vox.features.verify import verify_cache
from vox.resample import interpolate, resampling_rates
from vox.units import SAMPLE_RATE
from vox.wavlm.extractor import FeatureExtractor, build_extractor

SPEEDS = (0.9, 1.0, 1.1)
SPLIT = "train-tiny"


@settings(deadline=None, max_examples=25)
@given(
    rate=st.sampled_from((8000, 16000, 22050, 44101)),
    thousandths=st.integers(500, 2000),
    num_samples=st.integers(1, 60_000),
)
# In float32 each of these comes out one sample off.
@example(rate=22050, thousandths=900, num_samples=23_334)
@example(rate=16000, thousandths=1111, num_samples=20_008)
def test_a_header_promises_what_decoding_returns_at_any_speed(
    tmp_path_factory: pytest.TempPathFactory, rate: int, thousandths: int, num_samples: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "speed.wav"
    soundfile.write(path, np.zeros(num_samples, np.int16), rate)
    speed = thousandths / 1000
    promised = read_header(path, speed).num_samples
    assert promised == -(-num_samples * SAMPLE_RATE * 1000 // (rate * thousandths))
    assert len(read_audio(path, speed)) == promised


@pytest.mark.parametrize("rate", [16_000, 22_050])
@pytest.mark.parametrize("speed", [0.9, 1.1, 1.111])
def test_speed_raises_pitch_and_shortens(tmp_path: Path, rate: int, speed: float) -> None:
    def tone(hertz: float, sample_rate: int, num_samples: int) -> np.ndarray:
        return (0.5 * np.sin(2 * np.pi * hertz * np.arange(num_samples) / sample_rate)).astype(np.float32)

    soundfile.write(tmp_path / "a.wav", tone(1000, rate, rate), rate, subtype="FLOAT")
    played_S = read_audio(tmp_path / "a.wav", speed)
    middle = slice(200, -200)  # the edges ring: there the filter sees zeros
    expected_S = tone(1000 * speed, SAMPLE_RATE, len(played_S))
    np.testing.assert_allclose(played_S[middle], expected_S[middle], atol=5e-3)


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speeds_are_resampled_as_rates_are(tmp_path: Path, speed: float) -> None:
    """Compare with the kernel evaluated sample by sample, without tables."""
    waveform_S = make_speech(20_000, 5)
    soundfile.write(tmp_path / "a.wav", waveform_S, SAMPLE_RATE, subtype="FLOAT")
    expected_S = interpolate(waveform_S, *resampling_rates(SAMPLE_RATE, speed))
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", speed), expected_S, atol=5e-5)


def test_speed_1_leaves_a_fingerprint_as_it_was() -> None:
    plain = Fingerprint("ab" * 32, (3, 4), {"sample_rate": "16000"})
    slow = plain.at_speed(0.9)
    assert plain.at_speed(1.0) == plain == slow.at_speed(1)
    assert slow.preprocessing == {"sample_rate": "16000", "speed": "0.9"} and slow.prefix != plain.prefix
    assert plain.differences(slow) == ["speed: cache 1.0, model 0.9"]


def precompute(root: Path, wavlm: Path, speeds: str, *more: str) -> int:
    """Cache a split at some speeds, under ROOT/features."""
    line = f"precompute --split {SPLIT} --layers 3,4 --batch-seconds 2.5 --workers 0 --shard-gb 0.000012"
    places = ["--root", str(root), "--wavlm", str(wavlm), "--speeds", speeds]
    return main([*line.split(), *places, *more])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_wavlm_dir: Path) -> Path:
    """Write a corpus of four utterances, one of them damaged, and cache it at all speeds (read only)."""
    root = tmp_path_factory.mktemp("data")
    chapter = write_split(root, SPLIT, 4)
    broken = chapter / "7-1-0002.flac"
    broken.write_bytes(broken.read_bytes()[:4000])  # its header is as it was
    assert precompute(root, tiny_wavlm_dir, "0.9,1.0,1.1") == 0
    return root


@pytest.fixture(scope="module")
def extractor(tiny_wavlm_dir: Path) -> FeatureExtractor:
    return build_extractor(str(tiny_wavlm_dir), (3, 4)).eval()


@pytest.fixture
def options(root: Path, tiny_wavlm_dir: Path, tmp_path: Path) -> TrainOptions:
    return stage1_options(root, tiny_wavlm_dir, tmp_path, cached=True)


def test_each_speed_has_a_cache_of_its_own(
    root: Path, extractor: FeatureExtractor, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = make_fingerprint(extractor.wavlm, (3, 4))
    folders = sorted((root / "features" / SPLIT).iterdir())
    assert [folder.name for folder in folders] == sorted(fingerprint.at_speed(s).prefix for s in SPEEDS)
    assert [list(verify_cache(folder)) for folder in folders] == [[], [], []]
    assert main(["cache", "list", "--features", str(root / "features")]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert sorted(line.split()[1] for line in lines) == ["0.9", "1.0", "1.1"]


def test_cached_variants_are_the_live_ones(options: TrainOptions, extractor: FeatureExtractor) -> None:
    """Same ids, texts, lengths and features; an utterance skipped by precompute is skipped at all speeds."""
    fingerprint = make_fingerprint(extractor.wavlm, (3, 4))
    cached, cached_source = open_source(options, SPLIT, fingerprint, workers=0, pin=False, speeds=SPEEDS)
    live, live_source = open_source(options, SPLIT, None, workers=0, pin=False, speeds=SPEEDS)
    names = [f"{prefix}7-1-000{number}" for prefix in ("sp0.9-", "", "sp1.1-") for number in (0, 1, 3)]
    assert [utterance.id for utterance in cached] == names
    by_id = {utterance.id: utterance for utterance in live}
    assert len(by_id) == 12 and cached == [by_id[name] for name in names]
    slow, plain, fast = (
        cached_source.lengths_samples([prefix + "7-1-0000"])[0] for prefix in ("sp0.9-", "", "sp1.1-")
    )
    assert (slow, fast) == (-(-plain * 10 // 9), -(-plain * 10 // 11))
    assert live_source.lengths_samples(names) == cached_source.lengths_samples(names)
    plan = [names[::2], names[1::2]]
    for audio, features in zip(live_source.read(plan), cached_source.read(plan), strict=True):
        assert isinstance(features, FeatureBatch) and audio.ids == features.ids
        with torch.no_grad():
            live_BTC, num_frames_B = extractor(audio.waveforms_BS, audio.num_samples_B)  # type: ignore[union-attr]
        assert torch.equal(num_frames_B, features.num_frames_B)
        difference = (live_BTC - features.features_BTC.float()).norm()
        assert difference <= 1e-3 * live_BTC.norm()


def test_a_speed_that_is_not_cached_is_named(options: TrainOptions, extractor: FeatureExtractor) -> None:
    fingerprint = make_fingerprint(extractor.wavlm, (3, 4))
    message = rf"speed: cache \S+, model 1.2.*vox precompute --split {SPLIT} --layers 3,4 --speeds 1.2 "
    with pytest.raises(CacheError, match=message):
        open_source(options, SPLIT, fingerprint, workers=0, pin=False, speeds=(1.0, 1.2))


def test_an_utterance_that_one_variant_lacks_is_refused(
    options: TrainOptions, extractor: FeatureExtractor, tiny_wavlm_dir: Path, tmp_path: Path
) -> None:
    chapter = write_split(tmp_path / "data", SPLIT, 3)
    root = tmp_path / "data"
    assert precompute(root, tiny_wavlm_dir, "1.0") == 0
    transcripts = chapter / "7-1.trans.txt"
    whole = transcripts.read_text()
    transcripts.write_text(whole.replace("7-1-0001", "7-1-0009"))
    (chapter / "7-1-0001.flac").rename(chapter / "7-1-0009.flac")
    assert precompute(root, tiny_wavlm_dir, "0.9") == 0
    fingerprint = make_fingerprint(extractor.wavlm, (3, 4))
    mine = replace(options, root=root, features=root / "features")
    with pytest.raises(
        CacheError, match=r"1 utterance of the split missing in its cache: train-tiny: 7-1-0009"
    ):
        open_source(mine, SPLIT, fingerprint, workers=0, pin=False, speeds=(0.9, 1.0))
    lenient = replace(mine, skip_bad=True)
    utterances, _ = open_source(lenient, SPLIT, fingerprint, workers=0, pin=False, speeds=(0.9, 1.0))
    assert [u.id for u in utterances] == [
        "sp0.9-7-1-0000",
        "sp0.9-7-1-0002",
        "sp0.9-7-1-0009",
        "7-1-0000",
        "7-1-0002",
    ]


def test_an_id_that_is_a_variants_is_refused(tmp_path: Path, options: TrainOptions) -> None:
    soundfile.write(tmp_path / "a.wav", make_speech(8_000, 1), SAMPLE_RATE)
    lines = [f'{{"audio": "a.wav", "text": "go", "id": "{name}"}}\n' for name in ("a", "sp0.9-a")]
    (tmp_path / "s.jsonl").write_text("".join(lines))
    with pytest.raises(CorpusError, match=r"1 id also used by another utterance.*s: sp0\.9-a"):
        open_source(replace(options, root=tmp_path), "s", None, workers=0, pin=False, speeds=(0.9, 1.0))


def test_a_recording_too_short_at_a_speed_is_a_problem_of_that_speed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", make_speech(420, 1), SAMPLE_RATE)
    (tmp_path / "s.jsonl").write_text('{"audio": "short.wav", "text": "go"}\n')
    (utterance,) = load_split(tmp_path, "s", speed=0.9)
    assert utterance.num_samples == 467
    (batch,) = LiveSource([utterance]).read([["short"]])
    assert batch.num_samples_B.tolist() == [467]  # type: ignore[union-attr]
    with pytest.raises(CorpusError, match="shorter than one frame: 382 samples"):
        load_split(tmp_path, "s", speed=1.1)


@pytest.mark.parametrize(
    ("speeds", "message"),
    [
        ("fast", "--speeds takes different numbers: fast"),
        ("0.9,0.90", "--speeds takes different numbers"),
        ("3", "a speed that audio cannot be played at: 3.0; choose from 0.5 to 2"),
        ("nan", "cannot be played at: nan"),
        ("0.91234", "3 decimals at most"),
    ],
)
def test_speeds_that_make_no_sense_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], speeds: str, message: str
) -> None:
    assert precompute(tmp_path, tmp_path, speeds) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_speeds_of_different_recordings_are_refused(
    options: TrainOptions, extractor: FeatureExtractor, tiny_wavlm_dir: Path, tmp_path: Path
) -> None:
    """One recording is replaced, with the same length, after the first speed was cached."""
    chapter = write_split(tmp_path / "data", SPLIT, 3)
    root = tmp_path / "data"
    assert precompute(root, tiny_wavlm_dir, "1.0") == 0
    path = chapter / "7-1-0001.flac"
    soundfile.write(path, make_speech(read_header(path).num_samples, 77), SAMPLE_RATE)
    assert precompute(root, tiny_wavlm_dir, "0.9") == 0
    mine = replace(options, root=root, features=root / "features")
    fingerprint = make_fingerprint(extractor.wavlm, (3, 4))
    message = r"speeds 0.9 and 1.0 are of different recordings \(1: 7-1-0001\)"
    with pytest.raises(CacheError, match=message):
        open_source(mine, SPLIT, fingerprint, workers=0, pin=False, speeds=(0.9, 1.0))

"""Phase 1: the cache holds the live features (promise T2), and is the same for every way of computing it."""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from precompute.extract import compute_shards
from precompute.plan import plan_cache
from tests.support.precomputing import BATCH_SECONDS, LAYERS, SPLIT, command, cores, read_files
from tests.support.speech import write_split
from vox.audio import read_audio
from vox.cli import main
from vox.corpus import Utterance, load_split
from vox.data.plan import plan_by_length
from vox.errors import CorpusError
from vox.features.cache import FeatureCache, open_cache
from vox.features.fingerprint import Fingerprint, make_fingerprint
from vox.features.shard import Shard
from vox.features.verify import verify_cache
from vox.units import samples_to_frames, seconds_to_samples
from vox.wavlm.extractor import FeatureExtractor, build_extractor


@pytest.fixture(scope="module")
def features(tiny_root: Path, tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compute the tiny split's cache in one run (read only)."""
    features = tmp_path_factory.mktemp("features")
    assert main(command(tiny_root, tiny_wavlm_dir, features)) == 0
    return features


@pytest.fixture(scope="module")
def extractor(tiny_wavlm_dir: Path) -> FeatureExtractor:
    return build_extractor(str(tiny_wavlm_dir), LAYERS).eval()


@pytest.fixture(scope="module")
def cache(features: Path, extractor: FeatureExtractor) -> FeatureCache:
    return open_cache(features, SPLIT, make_fingerprint(extractor.wavlm, LAYERS))


@pytest.fixture(scope="module")
def utterances(tiny_root: Path) -> list[Utterance]:
    return load_split(tiny_root, SPLIT)


def live_features(extractor: FeatureExtractor, batch: list[Utterance]) -> list[np.ndarray]:
    """Compute features as live training does: float32 [T, C] of each utterance of one batch."""
    waveforms = [torch.from_numpy(read_audio(utterance.audio_path)) for utterance in batch]
    num_samples_B = torch.tensor([len(waveform) for waveform in waveforms])
    with torch.no_grad():
        features_BTC, num_frames_B = extractor(
            nn.utils.rnn.pad_sequence(waveforms, batch_first=True), num_samples_B
        )
    return [row[:count].numpy() for row, count in zip(features_BTC, num_frames_B.tolist(), strict=True)]


def test_cached_features_are_the_live_ones(
    cache: FeatureCache, extractor: FeatureExtractor, utterances: list[Utterance]
) -> None:
    """Bitwise equal, in the batches that precompute makes."""
    by_id = {utterance.id: utterance for utterance in utterances}
    num_batches = 0
    for path in sorted(cache.folder.glob("*.h5")):
        shard = Shard(path)
        for rows in plan_by_length(shard.num_samples.tolist(), seconds_to_samples(BATCH_SECONDS)):
            live = live_features(extractor, [by_id[shard.ids[row]] for row in rows])
            num_batches += 1
            for row, features_TC in zip(rows, live, strict=True):
                cached_TC = cache.read(shard.ids[row])
                np.testing.assert_array_equal(cached_TC, features_TC.astype(np.float16))
    assert len(utterances) > num_batches >= 3  # some alone in their batch, some not


def test_cached_features_do_not_depend_on_their_batch(
    cache: FeatureCache, extractor: FeatureExtractor, utterances: list[Utterance]
) -> None:
    for utterance in utterances:
        (alone_TC,) = live_features(extractor, [utterance])
        cached_TC = cache.read(utterance.id).astype(np.float32)
        assert cached_TC.shape == alone_TC.shape
        assert np.linalg.norm(cached_TC - alone_TC) <= 1e-3 * np.linalg.norm(alone_TC), utterance.id


def test_the_cache_is_whole_and_in_manifest_order(cache: FeatureCache, utterances: list[Utterance]) -> None:
    assert list(verify_cache(cache.folder)) == []
    assert cache.ids == [utterance.id for utterance in utterances]
    assert cache.num_samples == {utterance.id: utterance.num_samples for utterance in utterances}


def test_the_same_inputs_give_the_same_bytes(
    features: Path, tiny_root: Path, tiny_wavlm_dir: Path, tmp_path: Path
) -> None:
    """With and without worker processes, several batches at once, one rank or two (the second one first)."""
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path / "one", "--workers", "2")) == 0
    assert read_files(tmp_path / "one") == read_files(features)
    with cores(3):
        assert main(command(tiny_root, tiny_wavlm_dir, tmp_path / "at-once")) == 0
    assert read_files(tmp_path / "at-once") == read_files(features)
    for rank in ("1", "0"):
        share = ["--rank", rank, "--world-size", "2"]
        assert main(command(tiny_root, tiny_wavlm_dir, tmp_path / "two", *share)) == 0
        num_shards = len(list((tmp_path / "two").rglob("*.h5")))
        assert rank == "0" or 0 < num_shards < len(list(features.rglob("*.h5")))
    assert read_files(tmp_path / "two") == read_files(features)


def test_a_second_run_does_nothing(
    features: Path,
    tiny_root: Path,
    tiny_wavlm_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {path: path.stat().st_mtime_ns for path in features.glob("*/**/*")}
    monkeypatch.delattr("vox.data.workers.read_audio")  # an attempt to decode would be a NameError
    assert main(command(tiny_root, tiny_wavlm_dir, features)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in features.glob("*/**/*")} == before


def test_a_missing_shard_alone_is_made_again(
    features: Path, tiny_root: Path, tiny_wavlm_dir: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(features, tmp_path / "features")
    (lost,) = copy.rglob("shard-00001.h5")
    lost.unlink()
    (kept,) = copy.rglob("shard-00000.h5")
    inode = kept.stat().st_ino
    assert main(command(tiny_root, tiny_wavlm_dir, copy)) == 0
    assert read_files(copy) == read_files(features)
    assert kept.stat().st_ino == inode


@pytest.mark.parametrize("more", [[], ["--rebuild"]], ids=["", "--rebuild"])
def test_a_list_of_utterances_that_is_not_the_plans_is_written_anew(
    features: Path, tiny_root: Path, tiny_wavlm_dir: Path, tmp_path: Path, more: list[str]
) -> None:
    """A run on changed recordings, killed between writing list and plan, leaves one without the other."""
    copy = shutil.copytree(features, tmp_path / "features")
    (listed,) = copy.rglob("utterances.jsonl")
    listed.write_text('["another", 16000]\n', encoding="utf-8")
    assert main(command(tiny_root, tiny_wavlm_dir, copy, *more)) == 0
    assert read_files(copy) == read_files(features)


def test_a_recording_that_cannot_be_decoded_is_skipped_and_listed(
    tiny_wavlm_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chapter = write_split(tmp_path, SPLIT, 4)
    broken = chapter / "7-1-0002.flac"
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])  # its header is as it was
    assert main(command(tmp_path, tiny_wavlm_dir, tmp_path / "features", "--workers", "1")) == 0
    told = capfd.readouterr().err
    assert "no features for 1 utterance," in told and "skipped 7-1-0002" in told
    (folder,) = (tmp_path / "features" / SPLIT).iterdir()
    shards = [Shard(path) for path in sorted(folder.glob("*.h5"))]
    assert [name for shard in shards for name, why in zip(shard.ids, shard.skipped, strict=True) if why] == [
        "7-1-0002"
    ]
    assert list(verify_cache(folder)) == []
    assert main(command(tmp_path, tiny_wavlm_dir, tmp_path / "features")) == 0
    assert "skipped 7-1-0002" in capfd.readouterr().err  # said again, not forgotten


class LoudnessFeatures(nn.Module):
    """Features are an utterance's peak times 10^5: peaks above 0.66 overflow float16."""

    def forward(
        self, waveforms_BS: torch.Tensor, num_samples_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return [B, T, 2] and the frames of each utterance."""
        num_frames_B = samples_to_frames(num_samples_B)
        peaks_B = waveforms_BS.abs().amax(dim=1) * 1e5
        return peaks_B[:, None, None].expand(-1, int(num_frames_B.max()), 2), num_frames_B


def test_features_beyond_float16_are_skipped(tmp_path: Path) -> None:
    utterances = []
    for number, peak in enumerate((0.1, 0.9, 0.2)):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.full(3_000, peak, np.float32), 16_000)
        utterances.append(Utterance(str(number), path, "go", "", 3_000))
    fingerprint = Fingerprint("ab" * 32, (1,), {})
    work = plan_cache("loud", utterances, fingerprint, wavlm="", feature_dim=2, shard_gb=1)
    extractor, device = LoudnessFeatures(), torch.device("cpu")
    (problem,) = compute_shards(work, [0], tmp_path, extractor, device, batch_seconds=9, workers=0)  # type: ignore[arg-type]
    assert (problem.name, problem.reason) == ("1", "features overflow float16")
    shard = Shard(tmp_path / "shard-00000.h5")
    assert shard.skipped == ["", "features overflow float16", ""]
    np.testing.assert_allclose(shard.read(2), 0.2e5, rtol=1e-3)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--layers", "3,x", "--layers takes different numbers"),
        ("--layers", "3,3", "--layers takes different numbers"),
        ("--layers", "9", "ask for layer 9, and this WavLM has 4"),
        ("--rank", "2", "--rank 2 of --world-size 1"),
        ("--split", "nope", "or make it with `vox corpus import`"),
        ("--device", "gpu", "unknown device: gpu"),
        ("--wavlm", "~nobody_of_this_name/wavlm", "no such WavLM folder"),
        ("--shard-gb", "nan", "'--shard-gb': nan is not a number"),
        ("--shard-gb", "inf", "'--shard-gb': inf is not in the range"),
        ("--batch-seconds", "0", "'--batch-seconds': 0.0 is not in the range"),
        ("--features", "/proc/nowhere", "cannot be written (No such file or directory): /proc/nowhere"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    tiny_root: Path,
    tiny_wavlm_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    message: str,
) -> None:
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path, option, value)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert message in line
    assert not any(tmp_path.iterdir())


def kill_decoder(path: Path, speed: float, segment: object, warn: object) -> np.ndarray:
    """Die like a worker that is killed because memory ran out."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(path)


def fail_to_decode(path: Path, speed: float, segment: object, warn: object) -> np.ndarray:
    """Fail with an error that ends the whole run, not only this recording."""
    raise CorpusError("the corpus went away", where=path)


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (kill_decoder, "a process that decodes audio was ended.*--workers 0"),
        (fail_to_decode, r"the corpus went away: \S+\.flac"),
    ],
)
def test_trouble_in_a_worker_is_one_line(
    tiny_root: Path,
    tiny_wavlm_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    decode: Callable[[Path], np.ndarray],
    message: str,
) -> None:
    monkeypatch.setattr("vox.data.workers.read_audio", decode)
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path, "--workers", "1")) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"vox: error: {message}.*", line)
    assert not list(tmp_path.rglob("*.h5"))


def test_workers_do_without_shared_memory(
    tiny_root: Path,
    tiny_wavlm_dir: Path,
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container's shared memory may be too small for a batch; then it must not be used."""
    received = []

    def watch(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            received.append(type(item.waveforms_BS))
            yield item

    monkeypatch.setattr("vox.data.workers._explain_dead_workers", watch)
    monkeypatch.setattr("vox.data.workers.MIN_SHARED_BYTES", 1 << 60)
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path, "--workers", "1")) == 0
    assert set(received) == {np.ndarray}  # pickled into a pipe, unlike tensors
    assert read_files(tmp_path) == read_files(features)


def test_disk_space_held_by_what_is_replaced_counts_as_free(
    features: Path,
    tiny_root: Path,
    tiny_wavlm_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vox.disk.free_bytes", lambda folder: 0)
    mine = shutil.copytree(features, tmp_path / "features")
    assert main(command(tiny_root, tiny_wavlm_dir, mine, "--rebuild", "--dry-run")) == 0
    assert main(command(tiny_root, tiny_wavlm_dir, tmp_path / "new", "--dry-run")) == 2
    assert "0.0000 GB free" in capsys.readouterr().err
    # A shard that another rank has begun: allocated in full, and no longer to be found room for.
    (shard,) = mine.rglob("shard-00001.h5")
    shard.rename(shard.with_name(".shard-00001.h5.host-1-aa.part"))
    assert main(command(tiny_root, tiny_wavlm_dir, mine, "--dry-run")) == 0

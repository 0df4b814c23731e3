"""Several splits are trained on, and validated, as one split of all would be."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.support.speech import write_split
from tests.support.training import Killed, die_after, read_metrics, read_weights, stage1_options
from train.build import Parts, build_parts
from train.joined import find_shared_recordings, join_names, leave_out_by_length, open_splits
from train.options import TrainOptions, resolve_config
from train.ranks import Ranks
from train.run import run_training
from vox.config import DataConfig, load_config
from vox.corpus import Utterance
from vox.errors import ConfigError, CorpusError
from vox.features.cache import cache_dir
from vox.runs.layout import STATE
from vox.units import SAMPLE_RATE


def deal_out(folder: Path, root: Path, splits: tuple[str, ...]) -> None:
    """Deal a chapter's utterances out to splits, in turns."""
    lines = (folder / "7-1.trans.txt").read_text().splitlines(keepends=True)
    for number, split in enumerate(splits):
        part = root / "LibriSpeech" / split / "7" / "1"
        part.mkdir(parents=True)
        mine = lines[number :: len(splits)]
        (part / "7-1.trans.txt").write_text("".join(mine))
        for line in mine:
            shutil.copy(folder / f"{line.split()[0]}.flac", part)


@pytest.fixture(scope="module")
def root(tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make splits and their caches: two of everything, each twice, whole and in parts.

    `twin` has ids of `whole`, and other recordings; `copy` has a recording of `whole` under another id.
    """
    from precompute.cli import precompute

    root = tmp_path_factory.mktemp("joined")
    deal_out(write_split(root, "whole", 12, first_seed=0), root, ("left", "right"))
    deal_out(write_split(root, "dev", 4, first_seed=100), root, ("dev-left", "dev-right"))
    write_split(root, "twin", 2, first_seed=200)
    copied = write_split(root, "copy", 2, speaker=9, first_seed=300)
    shutil.copy(root / "LibriSpeech/whole/7/1/7-1-0003.flac", copied / "9-1-0001.flac")
    # One recording at a time: in a batch with others its features differ in the last bits.
    arguments = ["--root", root, "--wavlm", tiny_wavlm_dir, "--layers", "3,4", "--batch-seconds", "0.1"]
    splits = ["whole", "left", "right", "dev", "dev-left", "dev-right", "twin", "copy"]
    given = [word for split in splits for word in ("--split", split)]
    precompute.main([str(a) for a in [*arguments, "--workers", 0, *given]], standalone_mode=False)
    return root


def options_of(root: Path, wavlm_dir: Path, run: Path, train: str, dev: str, *overrides: str) -> TrainOptions:
    given = ("train.epochs=2", "train.checkpoint_minutes=1e-6", *overrides)
    options = stage1_options(root, wavlm_dir, run, cached=True, overrides=given)
    return replace(options, train_split=tuple(train.split()), dev_split=tuple(dev.split()))


def build(options: TrainOptions) -> Parts:
    with torch.random.fork_rng():
        return build_parts(options, resolve_config(options), torch.device("cpu"), Ranks())


def test_parts_of_a_split_killed_and_resumed_train_as_the_whole_does(
    root: Path, tiny_wavlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T7 and the plan: same utterances in the same updates, to the bit, in whatever order they are given."""
    whole = options_of(root, tiny_wavlm_dir, tmp_path / "whole", "whole", "dev")
    parts = options_of(root, tiny_wavlm_dir, tmp_path / "parts", "right left", "dev-left dev-right")
    run_training(whole)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(patch, 4)
        run_training(parts)
    with pytest.raises(ConfigError, match="--train-split cannot be given"):
        run_training(replace(TrainOptions(stage=1, run=parts.run, resume=True), train_split=("left",)))
    run_training(TrainOptions(stage=1, run=parts.run, resume=True))

    expected, found = read_metrics(whole.run_dir), read_metrics(parts.run_dir)
    by_split = [{key: line.pop(key) for key in list(line) if "/" in key} for line in found]
    assert found == expected
    names = {f"{split}/wer_{decoder}" for split in parts.dev_split for decoder in ("ctc", "attention")}
    assert [set(each) for each in by_split] == [
        names if line["kind"] == "dev" else set() for line in expected
    ]
    for name in ("last", "best"):
        one, other = read_weights(whole.run_dir, name), read_weights(parts.run_dir, name)
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    state, wanted = (json.loads((run / "last" / STATE).read_text()) for run in (parts.run_dir, whole.run_dir))
    # The order too: in an epoch of a single pool it is not seen in the plan.
    assert (state["train_digest"], state["dev_digest"]) == (wanted["train_digest"], wanted["dev_digest"])
    last = [each for each in by_split if each][-1]
    assert state["dev"]["split"] == "dev-left+dev-right"
    recorded = state["dev"]["wer_by_split"].items()
    wers = {f"{split}/wer_{decoder}": wer for split, each in recorded for decoder, wer in each.items()}
    assert wers == last


def test_recordings_without_speech_are_trained_on_and_validated(
    root: Path, tiny_wavlm_dir: Path, tmp_path: Path
) -> None:
    """An update of nothing else has no label: its gradient is finite all the same, and moves the weights."""
    for split in ("noise", "dev-noise"):
        for number in range(2):
            path = root / split / f"{number}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, 0.1 * np.random.default_rng(number).standard_normal(8_000), SAMPLE_RATE)
        lines = [json.dumps({"audio": f"{split}/{number}.wav", "speech": False}) for number in range(2)]
        (root / f"{split}.jsonl").write_text("\n".join(lines))
    one_an_update = "data.utterances_per_update=1"
    options = options_of(root, tiny_wavlm_dir, tmp_path, "left noise", "dev dev-noise", one_an_update)
    run_training(replace(options, cached=False))
    lines = read_metrics(options.run_dir)
    assert [line["skipped_updates"] for line in lines if line["kind"] == "train"][-1] == 0
    dev = [line for line in lines if line["kind"] == "dev"][-1]
    assert {key.split("/")[0] for key in dev if "/" in key} == {"dev"}  # no error rate without words
    with pytest.raises(CorpusError, match="nothing is spoken in this split"):
        build(options_of(root, tiny_wavlm_dir, tmp_path, "left", "dev-noise"))


def test_an_id_that_two_splits_share_is_qualified_and_finds_its_own_recording(
    root: Path, tiny_wavlm_dir: Path, tmp_path: Path
) -> None:
    options = options_of(root, tiny_wavlm_dir, tmp_path / "run", "left twin", "twin")
    parts = build(options)
    ids = [f"left/7-1-{number:04d}" for number in range(0, 12, 2)]
    assert parts.train.ids == [*ids, "twin/7-1-0000", "twin/7-1-0001"]
    (batch,) = parts.train.source.read([["twin/7-1-0000", "left/7-1-0000"]])
    for split, features_TC, count in zip(
        ("twin", "left"), batch.features_BTC.numpy(), batch.num_frames_B, strict=True
    ):
        _, alone = open_splits(options, (split,), parts.fingerprint, workers=0, pin=False)
        np.testing.assert_array_equal(features_TC[:count], alone.cache.read("7-1-0000"))
    live, source = open_splits(options, ("left", "twin"), None, workers=0, pin=False)
    assert [(each.id, each.text) for each in live] == [(u.id, u.text) for u in parts.train.utterances]
    (waveforms,) = source.read([["twin/7-1-0000", "left/7-1-0000"]])
    assert waveforms.num_samples_B.tolist() == source.lengths_samples(waveforms.ids)


def test_each_split_needs_a_cache_of_the_same_features(
    root: Path, tiny_wavlm_dir: Path, tmp_path: Path
) -> None:
    options = options_of(root, tiny_wavlm_dir, tmp_path / "run", "left right", "dev-left dev-right")
    parts = build(options)
    assert parts.fingerprint is not None
    features = tmp_path / "features"
    for split in ("left", "right", "dev-left"):
        (features / split).mkdir(parents=True)
        folder = cache_dir(root / "features", split, parts.fingerprint)
        (features / split / folder.name).symlink_to(folder)
    assert not build(replace(options, features=features)).dev.is_cached  # one of its two is not
    (features / "right" / folder.name).unlink()
    with pytest.raises(Exception, match="no cached features for split right"):
        build(replace(options, features=features))


def test_a_recording_in_train_and_dev_is_named(
    root: Path, tiny_wavlm_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = options_of(
        root, tiny_wavlm_dir, tmp_path / "run", "left right", "dev copy", "train.max_updates=1"
    )
    run_training(options)
    assert "1 recording of copy+dev are in left+right too" in caplog.text
    assert ": 9-1-0001 is 7-1-0003\n" in caplog.text
    caplog.clear()
    clean = build(replace(options, dev_split=("dev-left",)))
    assert find_shared_recordings(clean.train, clean.dev) == {}


def test_a_weight_and_limits_of_length_say_what_an_epoch_hears(
    root: Path, tiny_wavlm_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = options_of(root, tiny_wavlm_dir, tmp_path / "run", "left:3 right", "dev", "train.max_updates=1")
    plain = build(options).train
    counts = Counter(plain.ids)
    assert {u.id: counts[u.id] for u in plain.utterances} == {
        f"7-1-{number:04d}": 1 if number % 2 else 3 for number in range(12)
    }
    (shortest, name), *_ = sorted((u.num_samples or 0, u.id) for u in set(plain.utterances))
    limit = f"data.min_seconds={shortest / SAMPLE_RATE + 1e-6}"
    run_training(replace(options, overrides=(*options.overrides, limit)))
    assert "left+right: left out 1 utterance " in caplog.text and f" s: {name}\n" in caplog.text
    (event,) = (line for line in read_metrics(options.run_dir) if line["kind"] == "left_out")
    assert (event["count"], event["utterances"]) == (1, {name: shortest / SAMPLE_RATE})


def test_utterances_as_long_as_the_limits_stay() -> None:
    lengths = (15_999, 16_000, 32_000, 32_001)
    utterances = [Utterance(str(n), Path("none"), "go", "", num_samples=n) for n in lengths]
    kept, left_out = leave_out_by_length("s", utterances, DataConfig(min_seconds=1, max_seconds=2))
    assert [each.id for each in kept] == ["16000", "32000"]
    assert left_out == {"15999": 15_999 / SAMPLE_RATE, "32001": 32_001 / SAMPLE_RATE}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train_split=[a, 'a:2']", "different splits"),
        ("data.dev_split=[a, a]", "different splits"),
        ("data.train_split='a:0'", "from 1 to 1000"),
        ("data.train_split=[]", "data.train_split"),
        ("data.train_split=''", "a split's name, or a list of names"),
        ("data.dev_split='d:2'", "d:2: a number after a split is for data.train_split only"),
        ("adapt.replay_split=['d:2']", "for data.train_split only"),
        ("data={min_seconds: 3, max_seconds: 2}", "min_seconds 3.0 is above max_seconds 2.0"),
    ],
)
def test_splits_that_make_no_sense_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_names_join_alike_in_whatever_order() -> None:
    assert join_names(["b", "a"]) == join_names(["a", "b"]) == "a+b"
    data = load_config(None, ["data.train_split=[names:3, 'a:b']"]).data
    assert data.train_weights == {"names": 3, "a:b": 1}

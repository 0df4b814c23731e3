"""Both stages end to end on a tiny corpus: what they write, refuse, hand over, and resume."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train.average
import train.loop
from precompute.cli import precompute
from tests.conftest import write_split
from tests.training import stage1_options, stage2_options
from train.loop import Interrupted
from train.metrics import METRICS, MetricsLog
from train.options import TrainOptions, resolve_config
from train.run import run_training
from vox.checkpoint import MODEL, load_recogniser, point_link
from vox.errors import (
    AudioError,
    CacheError,
    CheckpointError,
    ConfigError,
    CorpusError,
    HandoffError,
    TextError,
    VoxError,
)


@pytest.fixture(scope="module")
def features_dir(tiny_root, tiny_wavlm_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    arguments = ["--root", tiny_root, "--wavlm", tiny_wavlm_dir, "--layers", "3,4", "--features", folder]
    splits = ["--split", "train-tiny", "--split", "dev-tiny"]
    precompute.main([str(a) for a in [*arguments, *splits, "--workers", 0]], standalone_mode=False)
    return folder


@pytest.fixture(scope="module")
def stage1(tiny_root, tiny_wavlm_dir, features_dir, tmp_path_factory) -> TrainOptions:
    """A finished stage-1 run, cached: its options."""
    run = tmp_path_factory.mktemp("runs") / "stage1"
    options = stage1_options(tiny_root, tiny_wavlm_dir, run, cached=True, features=features_dir)
    run_training(options)
    return options


def read_metrics(run: Path, *, timing: bool = False) -> list[dict]:
    """Read a run's metric lines; without what depends on the clock, unless asked."""
    clock = {"seconds", "updates_per_second", "audio_seconds_per_second", "peak_memory_gb"}
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return lines if timing else [{k: v for k, v in line.items() if k not in clock} for line in lines]


def read_weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / name / MODEL)


def assert_equal_runs(one: Path, other: Path) -> None:
    assert read_metrics(one) == read_metrics(other)
    for name in ("last", "best"):
        expected, found = read_weights(one, name), read_weights(other, name)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, found[key]), (name, key)


def test_stage1_learns_and_leaves_wavlm_alone(stage1, tiny_wavlm_dir):
    lines = read_metrics(stage1.run_dir, timing=True)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    dev = [line for line in lines if line["kind"] == "dev"]
    assert losses[-1] < losses[0]
    assert len(dev) == 3
    assert {"wer_ctc", "wer_attention", "ctc", "attention"} <= dev[0].keys()
    assert all(line["audio_seconds_per_second"] > 0 for line in lines if line["kind"] == "train")
    weights = read_weights(stage1.run_dir)
    original = load_file(tiny_wavlm_dir / "model.safetensors")
    for name, tensor in original.items():
        assert torch.equal(weights[f"extractor.wavlm.{name}"], tensor), name
    assert list((stage1.run_dir / "tensorboard").iterdir())


def test_stage1_live_learns_what_stage1_cached_learns(stage1, tiny_root, tiny_wavlm_dir, tmp_path):
    """The same run without a cache: losses agree as far as float16 features allow, the mix apart."""
    options = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run")
    run_training(options)
    cached = [line["ctc"] for line in read_metrics(stage1.run_dir) if line["kind"] == "train"]
    live = [line["ctc"] for line in read_metrics(options.run_dir) if line["kind"] == "train"]
    assert live == pytest.approx(cached, rel=2e-2)
    assert live[0] == pytest.approx(cached[0], rel=1e-4)
    mix = read_weights(options.run_dir)["extractor.mix.weights"]
    assert not torch.equal(mix, torch.tensor([0, 0, 0.5, 0.5]))  # learnt, where nothing is cached


def test_stage2_starts_where_stage1_ended_and_trains_the_top(stage1, tiny_root, tmp_path):
    options = stage2_options(tiny_root, tmp_path / "run", stage1.run_dir / "best")
    run_training(options)
    lines = read_metrics(options.run_dir)
    before = [line for line in read_metrics(stage1.run_dir) if line["kind"] == "dev" and line["is_best"]][-1]
    after = next(line for line in lines if line["kind"] == "dev")
    assert after["update"] == 0
    assert after["ctc"] == pytest.approx(before["ctc"], rel=1e-2)
    assert next(line for line in lines if line["kind"] == "handoff")["relative_difference"] < 0.01
    old, new = read_weights(stage1.run_dir, "best"), read_weights(options.run_dir)
    for name, tensor in old.items():
        may_change = "extractor.wavlm" not in name or ".layers.2." in name or ".layers.3." in name
        assert may_change or torch.equal(new[name], tensor), name
    moved = {name.split(".")[4] for name in old if ".layers." in name and "wavlm" in name
             and not torch.equal(old[name], new[name])}  # fmt: skip
    assert moved == {"2", "3"}


def test_handoff_catches_changed_audio_and_another_split(stage1, tiny_root, tmp_path):
    root = tmp_path / "data"
    write_split(root, "train-tiny", 12, speaker=7)
    write_split(root, "dev-tiny", 4, speaker=8, first_seed=300)
    options = stage2_options(root, tmp_path / "run", stage1.run_dir / "best")
    with pytest.raises(HandoffError, match="has changed since stage 1"):
        run_training(options)
    with pytest.raises(HandoffError, match="--dev-split dev-tiny"):
        run_training(replace(options, root=tiny_root, dev_split="train-tiny"))


def test_handoff_catches_other_weights(stage1, tiny_root, tmp_path, monkeypatch):
    def load_shaken(folder: Path, **keywords):
        loaded = load_recogniser(folder, **keywords)
        with torch.no_grad():
            loaded.recogniser.ctc_head.bias[3] += 5
        return loaded

    monkeypatch.setattr("train.build.load_recogniser", load_shaken)
    with pytest.raises(HandoffError, match="not those that were validated"):
        run_training(stage2_options(tiny_root, tmp_path / "run", stage1.run_dir / "best"))
    assert not (tmp_path / "run" / "last").exists()  # nothing that evaluate could mistake for a stage 2


def test_weights_newer_than_their_dev_result_are_not_handed_over(stage1, tiny_root, tmp_path, monkeypatch):
    """A checkpoint from inside an epoch still carries the dev result of the epoch before."""

    def load_later(folder: Path, **keywords):
        loaded = load_recogniser(folder, **keywords)
        return replace(loaded, state=loaded.state | {"update": loaded.state["update"] + 1})

    monkeypatch.setattr("train.build.load_recogniser", load_later)
    with pytest.raises(CheckpointError, match="start from a `best` one"):
        run_training(stage2_options(tiny_root, tmp_path / "run", stage1.run_dir / "best"))


def cut_recordings(root: Path, split: str, count: int | None = None) -> None:
    """Truncate recordings behind their headers: they are listed, and cannot be decoded."""
    for path in sorted((root / "LibriSpeech" / split).rglob("*.flac"))[:count]:
        path.write_bytes(path.read_bytes()[:2000])


def test_a_dev_recording_that_neither_stage_can_read_does_not_stop_stage2(tiny_wavlm_dir, tmp_path):
    root = tmp_path / "data"
    write_split(root, "train-tiny", 12)
    write_split(root, "dev-tiny", 3, speaker=8, first_seed=100)
    cut_recordings(root, "dev-tiny", 1)
    arguments = ["--root", root, "--wavlm", tiny_wavlm_dir, "--layers", "3,4", "--workers", 0, "--skip-bad"]
    splits = ["--split", "train-tiny", "--split", "dev-tiny"]
    precompute.main([str(a) for a in [*arguments, *splits]], standalone_mode=False)
    options = stage1_options(
        root, tiny_wavlm_dir, tmp_path / "one", cached=True, overrides=("train.epochs=1",)
    )
    run_training(options)
    overrides = ("train.max_updates=1",)
    run_training(stage2_options(root, tmp_path / "two", options.run_dir / "best", overrides=overrides))
    assert (tmp_path / "two" / "best").exists()


@pytest.mark.parametrize("split", ["train-tiny", "dev-tiny"])
def test_a_split_of_which_nothing_can_be_read_is_an_error(split, tiny_wavlm_dir, tmp_path):
    root = tmp_path / "data"
    write_split(root, "train-tiny", 12)
    write_split(root, "dev-tiny", 2, speaker=8)
    cut_recordings(root, split)
    with pytest.raises(AudioError, match=f"not one recording.*{split}"):
        run_training(stage1_options(root, tiny_wavlm_dir, tmp_path / "run"))


def test_an_update_of_which_nothing_can_be_read_is_counted(tiny_wavlm_dir, tmp_path, caplog):
    root = tmp_path / "data"
    write_split(root, "train-tiny", 12)
    write_split(root, "dev-tiny", 2, speaker=8)
    cut_recordings(root, "train-tiny", 6)
    overrides = ("train.epochs=1", "data.utterances_per_update=1")
    run_training(stage1_options(root, tiny_wavlm_dir, tmp_path / "run", overrides=overrides))
    assert json.loads((tmp_path / "run" / "last" / "state.json").read_text())["unread_updates"] == 6
    assert "6 updates were skipped: none of their recordings could be read" in caplog.text


def test_transcripts_that_the_tokenizer_cannot_spell_are_named(tiny_wavlm_dir, tmp_path):
    root = tmp_path / "data"
    write_split(root, "train-tiny", 12)
    chapter = write_split(root, "dev-tiny", 2, speaker=8)
    transcripts = chapter / "8-1.trans.txt"
    transcripts.write_text(transcripts.read_text().rstrip() + " ZEBRA\n")
    with pytest.raises(CorpusError, match="the tokenizer lacks: dev-tiny: 8-1-0001"):
        run_training(stage1_options(root, tiny_wavlm_dir, tmp_path / "run"))


KILL_AFTER = """
import os, signal, sys
from pathlib import Path
import train.loop
from tests import training
from train.run import run_training

step, count = train.loop.run_update, 0
def dying_update(*arguments):
    global count
    count += 1
    if count > {updates}:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
train.loop.run_update = dying_update
overrides = ("train.checkpoint_minutes=1e-6",)
run_training(training.{stage}_options(*map(Path, sys.argv[1:]), overrides=overrides{cached}))
"""


def kill_run(stage: str, *paths: Path, updates: int, cached: str = "") -> None:
    code = KILL_AFTER.format(stage=stage, updates=updates, cached=cached)
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], cwd=Path(__file__).parent.parent)
    assert done.returncode == -signal.SIGKILL


def test_killed_inside_an_epoch_and_resumed_ends_the_same(
    stage1, tiny_root, tiny_wavlm_dir, tmp_path, features_dir
):
    """T7, stage 1 from the cache: SIGKILL after 4 of 9 updates, the second epoch begun."""
    run = tmp_path / "run"
    cached = f", cached=True, features=Path({str(features_dir)!r})"
    kill_run("stage1", tiny_root, tiny_wavlm_dir, run, updates=4, cached=cached)
    assert json.loads((run / "last" / "state.json").read_text())["update_in_epoch"] == 1
    run_training(TrainOptions(stage=1, run=run, resume=True))
    assert_equal_runs(stage1.run_dir, run)


def test_stage2_killed_and_resumed_ends_the_same(stage1, tiny_root, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    run_training(stage2_options(tiny_root, whole, stage1.run_dir / "best"))
    kill_run("stage2", tiny_root, run, stage1.run_dir / "best", updates=5)
    run_training(TrainOptions(stage=2, run=run, resume=True))
    assert_equal_runs(whole, run)


def signal_during(patch: pytest.MonkeyPatch, name: str, on_call: int = 1) -> None:
    """Send SIGTERM to this process at the n-th call of a function of training."""
    module = train.average if name == "validate" else train.loop
    original, calls = getattr(module, name), itertools.count(1)

    def signal_first(*arguments, **keywords):
        if next(calls) == on_call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    patch.setattr(module, name, signal_first)


@pytest.mark.parametrize(("name", "update"), [("run_update", 1), ("validate", 3)])
def test_sigterm_saves_and_leaves(name, update, stage1, tmp_path, monkeypatch):
    """The update under way is finished and saved, validation given up; resumed, it all ends the same."""
    options = replace(stage1, run=tmp_path / "run")
    signal_during(monkeypatch, name)
    with pytest.raises(Interrupted) as caught:
        run_training(options)
    monkeypatch.undo()
    assert caught.value.signal_number == signal.SIGTERM
    state = json.loads((options.run_dir / "last" / "state.json").read_text())
    assert (state["update"], state["epoch"]) == (update, 0)
    run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
    assert_equal_runs(stage1.run_dir, options.run_dir)


class Killed(BaseException):
    """Stands for SIGKILL where the process must live on."""


def assert_links_go_back(run: Path, patch: pytest.MonkeyPatch) -> None:
    """Resume as far as the first update: `best` is what `last` says, and nothing else is kept."""

    def die(_: object) -> None:
        raise Killed

    patch.setattr("train.run.train_epochs", die)
    with pytest.raises(Killed):
        run_training(TrainOptions(stage=1, run=run, resume=True))
    patch.undo()
    best = json.loads((run / "last" / "state.json").read_text())["best_checkpoint"]
    assert ((run / "best").resolve().name if (run / "best").exists() else None) == best
    kept = {(run / "last").resolve().name, best} - {None}
    assert {path.name for path in (run / "checkpoints").iterdir()} == kept


@pytest.mark.parametrize("on_move", [1, 3, 4, 6, 7])
def test_killed_at_a_link_and_resumed_ends_the_same(on_move, stage1, tmp_path, monkeypatch):
    """`last` moves at the start and at an epoch's end (1, 2, 5), `best` and `last` after validation."""
    moves = itertools.count(1)

    def dying_link(link: Path, target: Path) -> None:
        if next(moves) == on_move:
            raise Killed(link.name)
        point_link(link, target)

    options = replace(stage1, run=tmp_path / "run")
    monkeypatch.setattr("train.progress.point_link", dying_link)
    with pytest.raises(Killed, match={3: "best", 6: "best"}.get(on_move, "last")):
        run_training(options)
    monkeypatch.undo()
    assert_links_go_back(options.run_dir, monkeypatch)
    if on_move == 4:  # and once more: timings differ in length, and so do the bytes of the metrics
        signal_during(monkeypatch, "run_update")
        with pytest.raises(Interrupted):
            run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
        monkeypatch.undo()
    run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
    assert_equal_runs(stage1.run_dir, options.run_dir)
    best = json.loads((options.run_dir / "best" / "state.json").read_text())
    assert best["best_checkpoint"] == (options.run_dir / "best").resolve().name
    assert len(list((options.run_dir / "checkpoints").iterdir())) <= 2


def test_backup_holds_a_checkpoint_that_loads(stage1, tmp_path):
    options = replace(stage1, run=tmp_path / "run", backup=f"file://{tmp_path}/elsewhere")
    run_training(options)
    pointer = json.loads((tmp_path / "elsewhere" / "run" / "best.json").read_text())
    copy = load_recogniser(tmp_path / "elsewhere" / "run" / "checkpoints" / pointer["checkpoint"])
    assert copy.state["update"] in (3, 6, 9)
    assert json.loads((options.run_dir / "backup.json").read_text())["error"] is None


def test_a_backup_is_a_run_that_can_be_resumed(stage1, tmp_path, monkeypatch):
    """Stopped by SIGTERM, the newest checkpoint is waited for; its copy goes on elsewhere."""
    signal_during(monkeypatch, "run_update", on_call=5)
    options = replace(stage1, run=tmp_path / "run", backup=f"file://{tmp_path}/elsewhere")
    with pytest.raises(Interrupted):
        run_training(options)
    monkeypatch.undo()
    restored = tmp_path / "elsewhere" / "run"
    run_training(TrainOptions(stage=1, run=restored, resume=True))
    assert_equal_runs(stage1.run_dir, restored)


def test_a_failing_backup_never_stops_training(stage1, tmp_path):
    (tmp_path / "file").write_text("in the way")
    options = replace(stage1, run=tmp_path / "run", backup=f"file://{tmp_path}/file/below")
    run_training(options)
    assert (options.run_dir / "best").exists()
    assert json.loads((options.run_dir / "backup.json").read_text())["error"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"overrides": ("model.vocab_size=900",)}, TextError, "largest"),
        ({"overrides": ("model.feature_dim=768",)}, ConfigError, "--set model.feature_dim=32"),
        ({"overrides": ("features.layers=[9]",)}, ConfigError, "has 4"),
        ({"overrides": ("train.unfreeze_layers=[3]",)}, ConfigError, "stage 2"),
        ({"cached": True, "features": Path("nowhere")}, CacheError, "vox precompute --split train-tiny"),
        ({"cached": True, "overrides": ("features.layers=[2,3]",)}, CacheError, "layers"),
        ({"resume": True}, CheckpointError, "no run to resume"),
    ],
)
def test_what_a_user_can_mend_is_refused(
    changes, error, message, tiny_root, tiny_wavlm_dir, features_dir, tmp_path
):
    changes = {"features": features_dir} | changes
    with pytest.raises(error, match=message) as caught:
        run_training(stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", **changes))
    assert isinstance(caught.value, VoxError)
    assert "\n" not in str(caught.value)


def test_a_cache_of_other_weights_is_refused_by_name(tiny_root, tiny_wavlm_dir, features_dir, tmp_path):
    from transformers import WavLMModel

    other = WavLMModel.from_pretrained(tiny_wavlm_dir)
    with torch.no_grad():
        other.encoder.layers[1].final_layer_norm.bias[0] += 1
    other.save_pretrained(tmp_path / "other")
    options = stage1_options(
        tiny_root, tmp_path / "other", tmp_path / "run", cached=True, features=features_dir
    )
    with pytest.raises(CacheError, match="weights"):
        run_training(options)


def test_a_run_is_not_overwritten(stage1):
    with pytest.raises(CheckpointError, match="--resume"):
        run_training(stage1)


def test_a_run_without_its_last_link_is_not_overwritten_either(stage1, tmp_path):
    """Object stores keep no links; the newest checkpoint is the last one."""
    run = tmp_path / "run"
    shutil.copytree(stage1.run_dir, run, symlinks=True)
    (run / "last").unlink()
    with pytest.raises(CheckpointError, match="--resume"):
        run_training(replace(stage1, run=run))
    run_training(TrainOptions(stage=1, run=run, resume=True))
    assert_equal_runs(stage1.run_dir, run)


def test_resume_refuses_another_run(stage1, tmp_path):
    run, root = tmp_path / "run", tmp_path / "data"
    shutil.copytree(stage1.run_dir, run, symlinks=True)
    with pytest.raises(ConfigError, match="--skip-bad cannot be changed"):
        run_training(TrainOptions(stage=1, run=run, resume=True, cached=True, skip_bad=True))
    shutil.copytree(stage1.root, root)
    transcripts = next(root.glob("LibriSpeech/train-tiny/*/*/*.trans.txt"))
    transcripts.write_text(transcripts.read_text().replace("GO", "RUN"))
    with pytest.raises(CheckpointError, match="train-tiny or the config has changed"):
        run_training(TrainOptions(stage=1, run=run, resume=True, root=root, features=stage1.features))


def test_metrics_are_never_filled_up_with_zeros(tmp_path):
    (tmp_path / METRICS).write_text('{"a": 1}\n{"b": 2}\n')
    for keep_bytes, left in ((99, '{"a": 1}\n{"b": 2}\n'), (12, '{"a": 1}\n'), (9, '{"a": 1}\n')):
        MetricsLog(tmp_path, keep_bytes=keep_bytes).close()
        assert (tmp_path / METRICS).read_text() == left


def test_stage2_config_is_laid_over_the_stage_s_own(tmp_path, caplog):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {dev_split: mine}\noptimizer: {weight_decay: 0.02}\n")
    config = resolve_config(TrainOptions(stage=2, config_path=path, overrides=("train.epochs=7",)))
    assert (config.data.dev_split, config.train.epochs, config.optimizer.weight_decay) == ("mine", 7, 0.02)
    assert (config.optimizer.learning_rate, config.train.unfreeze_layers) == (1e-5, (9, 10, 11))
    resolve_config(TrainOptions(stage=2, overrides=("train.unfreeze_layers=[]",)))
    assert "no WavLM layer is unfrozen" in caplog.text


def test_stage2_needs_a_checkpoint_and_its_shape(stage1, tiny_root, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        run_training(stage2_options(tiny_root, tmp_path / "run", tmp_path / "none"))
    with pytest.raises(CheckpointError, match=r"model.d_model: checkpoint 32, config 64"):
        run_training(
            stage2_options(
                tiny_root, tmp_path / "run", stage1.run_dir / "best", overrides=("model.d_model=64",)
            )
        )


def test_labels_longer_than_their_audio_are_named(tiny_wavlm_dir, tmp_path):
    """T4: never a zero loss in silence."""
    root = tmp_path / "data"
    chapter = write_split(root, "train-tiny", 6)
    write_split(root, "dev-tiny", 2, speaker=8)
    transcripts = chapter / "7-1.trans.txt"
    lines = transcripts.read_text().splitlines()
    lines[2] += " GO STOP" * 60
    transcripts.write_text("\n".join(lines) + "\n")
    options = stage1_options(root, tiny_wavlm_dir, tmp_path / "run")
    with pytest.raises(CorpusError, match="7-1-0002"):
        run_training(options)
    run_training(replace(options, skip_bad=True))
    assert (options.run_dir / "best").exists()

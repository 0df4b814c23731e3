"""Both stages end to end on a tiny corpus: what they write, refuse, hand over, and resume."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train.loop
from precompute.cli import precompute
from tests.conftest import write_split
from tests.training import stage1_options, stage2_options
from train.loop import Interrupted
from train.metrics import METRICS
from train.options import TrainOptions
from train.run import run_training
from vox.checkpoint import MODEL, load_recogniser
from vox.errors import (
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
    def load_shaken(folder: Path):
        loaded = load_recogniser(folder)
        with torch.no_grad():
            loaded.recogniser.ctc_head.bias[3] += 5
        return loaded

    monkeypatch.setattr("train.build.load_recogniser", load_shaken)
    with pytest.raises(HandoffError, match="not those that were validated"):
        run_training(stage2_options(tiny_root, tmp_path / "run", stage1.run_dir / "best"))
    assert not (tmp_path / "run" / "last").exists()  # nothing that evaluate could mistake for a stage 2


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


def test_sigterm_saves_and_leaves(stage1, tmp_path):
    """The update under way is finished and saved; resumed, the run ends as if nothing had happened."""
    options = replace(stage1, run=tmp_path / "run")
    timer = threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGTERM))
    original = train.loop.run_update

    def signal_once(*arguments):
        if not timer.ident:
            timer.start()
            timer.join()
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.loop, "run_update", signal_once)
        with pytest.raises(Interrupted) as caught:
            run_training(options)
    assert caught.value.signal_number == signal.SIGTERM
    assert json.loads((options.run_dir / "last" / "state.json").read_text())["update"] == 1
    run_training(TrainOptions(stage=1, run=options.run_dir, resume=True))
    assert_equal_runs(stage1.run_dir, options.run_dir)


def test_backup_holds_a_checkpoint_that_loads(stage1, tmp_path):
    options = replace(stage1, run=tmp_path / "run", backup=f"file://{tmp_path}/elsewhere")
    run_training(options)
    pointer = json.loads((tmp_path / "elsewhere" / "run" / "best.json").read_text())
    copy = load_recogniser(tmp_path / "elsewhere" / "run" / pointer["checkpoint"])
    assert copy.state["update"] in (3, 6, 9)
    assert json.loads((options.run_dir / "backup.json").read_text())["error"] is None


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
        ({"overrides": ("features.layers=[9]",)}, ConfigError, "4 layers"),
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

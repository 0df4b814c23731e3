"""A tiny recogniser, and tiny runs: their options, ways to end them, and their files."""

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train.judge.validate
import train.loop
from train.options import TrainOptions
from vox.config import ModelConfig
from vox.model.recogniser import Recogniser
from vox.runs.layout import METRICS
from vox.runs.layout import MODEL as WEIGHTS
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.load import load_wavlm
from vox.wavlm.mix import LayerMix

MODEL = {
    "vocab_size": 25,
    "feature_dim": 32,
    "num_wavlm_layers": 4,
    "d_model": 32,
    "encoder_heads": 2,
    "encoder_d_ff": 32,
    "layers_per_block": 1,
    "conv_kernel": 5,
    "decoder_layers": 1,
    "decoder_heads": 2,
    "decoder_d_ff": 32,
}


def tiny_recogniser(wavlm_dir: Path, **changes: Any) -> Recogniser:
    """Build a recogniser over the tiny WavLM, seeded, all of WavLM frozen."""
    wavlm = load_wavlm(str(wavlm_dir))
    torch.manual_seed(1)
    config = ModelConfig(**(MODEL | changes))
    return Recogniser(config, FeatureExtractor(wavlm, LayerMix.mean_of((3, 4), 4)))


def stage1_options(
    root: Path, wavlm_dir: Path, run: Path, *, cached: bool = False, **changes: Any
) -> TrainOptions:
    """Options of a stage-1 run of 3 epochs x 3 updates x 2 micro-batches of 2."""
    overrides = [f"model.{key}={value}" for key, value in MODEL.items()]
    overrides += ["features.layers=[3,4]", "optimizer.learning_rate=0.003", *small_run()]
    return TrainOptions(
        stage=1,
        cached=cached,
        overrides=tuple(overrides) + tuple(changes.pop("overrides", ())),
        root=root,
        train_split=("train-tiny",),
        dev_split=("dev-tiny",),
        wavlm=str(wavlm_dir),
        features=changes.pop("features", root / "features"),
        run=run,
        device="cpu",
        **changes,
    )


def stage2_options(root: Path, run: Path, origin: Path, **changes: Any) -> TrainOptions:
    """Options of a stage-2 run from a checkpoint, unfreezing the top two of four layers."""
    overrides = (*small_run(), "train.unfreeze_layers=[2,3]", *changes.pop("overrides", ()))
    return TrainOptions(
        stage=2,
        overrides=overrides,
        root=root,
        train_split=("train-tiny",),
        dev_split=("dev-tiny",),
        run=run,
        from_checkpoint=origin,
        device="cpu",
        **changes,
    )


def small_run() -> tuple[str, ...]:
    """Overrides common to both stages."""
    return (
        "data.utterances_per_update=4",
        "data.micro_batch_utterances=2",
        "data.workers=0",
        "train.epochs=3",
        "train.log_updates=2",
    )


def read_metrics(run: Path, *, timing: bool = False) -> list[dict]:
    """Read a run's metric lines, by default without fields that depend on the clock."""
    clock = {"seconds", "updates_per_second", "audio_seconds_per_second", "peak_memory_gb"}
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return lines if timing else [{k: v for k, v in line.items() if k not in clock} for line in lines]


def read_weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / name / WEIGHTS)


def assert_equal_runs(one: Path, other: Path) -> None:
    assert read_metrics(one) == read_metrics(other)
    for name in ("last", "best"):
        expected, found = read_weights(one, name), read_weights(other, name)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, found[key]), (name, key)


class Killed(BaseException):
    """Simulates SIGKILL in a process that must survive."""


def die_after(patch: pytest.MonkeyPatch, updates: int) -> None:
    """Raise Killed after a number of updates: simulates a kill without the cost of a new process."""
    step, calls = train.loop.run_update, itertools.count(1)

    def dying_update(*arguments):
        if next(calls) > updates:
            raise Killed
        return step(*arguments)

    patch.setattr(train.loop, "run_update", dying_update)


def signal_during(patch: pytest.MonkeyPatch, name: str, on_call: int = 1) -> None:
    """Send SIGTERM to this process at the n-th call of a function of training."""
    module = train.judge.validate if name == "validate" else train.loop
    original, calls = getattr(module, name), itertools.count(1)

    def signal_first(*arguments, **keywords):
        if next(calls) == on_call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    patch.setattr(module, name, signal_first)

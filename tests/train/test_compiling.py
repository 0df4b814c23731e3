"""Layers compiled by torch compute what they compute uncompiled, and few shapes mean few compilations.

The backend here is `eager`: layers are traced, guarded and called as with the real one, and no code is made,
which would take minutes on a CPU.

B batch, S samples.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from tests.support.training import Killed, assert_equal_runs, die_after, tiny_recogniser
from train.options import TrainOptions
from train.ranks import Ranks
from train.run import run_training
from train.update.compiling import compile_layers
from train.update.step import LabelTotals, StepSettings, accumulate_gradients, wrap_losses
from vox.data.batch import AudioBatch, LabelBatch, make_label_batch
from vox.decode import DECODERS
from vox.model.recogniser import Recogniser

SECONDS = (1.3, 2.1, 2.2, 3.0)  # of four micro-batches


@pytest.fixture(autouse=True)
def tracing_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("train.update.compiling.BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make_batch(seconds: float) -> tuple[AudioBatch, LabelBatch]:
    num_samples = int(seconds * 16_000)
    generator = torch.Generator().manual_seed(num_samples)
    waveforms_BS = torch.randn(3, num_samples, generator=generator)
    num_samples_B = torch.tensor([num_samples, num_samples // 2, num_samples // 3])
    labels = make_label_batch([[7, 9, 5], [4, 4], [8]])
    return AudioBatch(["a", "b", "c"], waveforms_BS, num_samples_B), labels


def gradient_of(recogniser: Recogniser) -> torch.Tensor:
    """Return the gradient of four micro-batches, all in one."""
    recogniser.train()
    recogniser.zero_grad()
    torch.manual_seed(3)  # for the dropout
    batches = [make_batch(seconds) for seconds in SECONDS]
    settings = StepSettings(torch.device("cpu"), torch.float32, 0.3, 0.1, 1.0, augment=None)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    accumulate_gradients(
        wrap_losses(recogniser, Ranks()), scaler, batches, LabelTotals(24, 36), settings, Ranks()
    )
    return torch.cat([p.grad.flatten() for p in recogniser.parameters() if p.grad is not None])


def test_compiled_layers_compute_what_they_compute_uncompiled(tiny_wavlm_dir):
    """Dropout included; three kinds of layer are compiled, once each, for all lengths. Decoding is not."""
    recogniser = tiny_recogniser(tiny_wavlm_dir)
    recogniser.extractor.wavlm.freeze_except((2, 3))
    names = list(recogniser.state_dict())
    expected = gradient_of(recogniser)
    compile_layers(recogniser)
    found = gradient_of(recogniser)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert list(recogniser.state_dict()) == names
    compilations = counters["stats"]["unique_graphs"]
    assert 3 <= compilations <= 5 and not counters["graph_break"]
    recogniser.eval()
    batch, _ = make_batch(2.0)
    with torch.no_grad():
        encoded = recogniser.encode(*recogniser.extractor(batch.waveforms_BS, batch.num_samples_B))
        DECODERS["attention"](recogniser, encoded)
    assert counters["stats"]["unique_graphs"] == compilations


def test_a_compiled_run_killed_and_resumed_ends_the_same(stage1, tmp_path, monkeypatch):
    overrides = (*stage1.overrides, "train.compile=true", "train.checkpoint_minutes=1e-6", "train.epochs=2")
    whole = replace(stage1, run=tmp_path / "whole", overrides=overrides)
    run_training(whole)
    assert counters["stats"]["unique_graphs"] >= 2
    dying = replace(whole, run=tmp_path / "run")
    with monkeypatch.context() as patch:
        die_after(patch, updates=4)
        with pytest.raises(Killed):
            run_training(dying)
    run_training(TrainOptions(stage=1, run=dying.run_dir, resume=True))
    assert_equal_runs(whole.run_dir, dying.run_dir)

"""What the steps of the GPU benchmark share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from tests.support.speech import tiny_wavlm_kwargs
from tests.support.training import MODEL as TINY_MODEL
from vox.check.results import Promise, Rate, Step
from vox.check.subject import CheckSubject, make_subject
from vox.config import load_config

Found = Iterable[Promise | Rate]

# Relative L2 of gradients that hold CTC's, in float32: torch adds logs of thousands of nats. Against float64
# 2.2e-3 for 35 s, on a CPU as on a GPU.
CTC_BOUND = 5e-3


@dataclass(frozen=True)
class Bench:
    """The models under test, and a folder for everything that is written."""

    subject: CheckSubject
    folder: Path
    wavlm_dir: Path
    overrides: tuple[str, ...]  # of configs: `--set`'s

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.subject.device

    @property
    def is_cuda(self) -> bool:
        """Say whether it is a GPU: a CPU only shows that the program runs."""
        return self.device.type == "cuda"


def make_bench(device: torch.device, folder: Path) -> Bench:
    """Make models of random weights: of full size on a GPU, tiny on a CPU."""
    from transformers import WavLMConfig, WavLMModel

    is_tiny = device.type == "cpu"
    torch.manual_seed(0)
    wavlm_dir = folder / "wavlm"
    WavLMModel(WavLMConfig(**(tiny_wavlm_kwargs() if is_tiny else {}))).eval().save_pretrained(wavlm_dir)
    overrides: list[str] = []
    if is_tiny:
        overrides = [f"model.{key}={value}" for key, value in TINY_MODEL.items()]
        overrides.append("features.layers=[3,4]")
    subject = make_subject(str(wavlm_dir), load_config(None, overrides), device, folder, is_quick=is_tiny)
    return Bench(subject, folder, wavlm_dir, tuple(overrides))


def on_subject(title: str, check: Callable[[CheckSubject], Found]) -> Step[Bench]:
    """Make a step of one of `vox check`'s."""
    return Step(title, lambda bench: check(bench.subject))


def say(line: str) -> None:
    """Print what is neither a figure with a bound nor a rate."""
    click.echo(f"       {line}")

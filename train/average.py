"""Averages of the weights, which are validated beside the weights themselves.

Two kinds: an exponential average that follows every update (Polyak averaging, as Kingma and Ba 2015,
section 7.2, have it), and the mean of the newest validated checkpoints at the end of training. Which of
them a checkpoint stands for, its dev result decides (`record` in train/loop.py).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from train.progress import Run
from train.step import UpdateResult
from train.validate import DevResult, validate
from vox.checkpoint import find_damage
from vox.model.recogniser import Recogniser
from vox.runs.layout import MODEL, list_validated

log = logging.getLogger(__name__)

RAW, EMA, AVERAGE = "raw", "ema", "average"


class Ema:
    """An exponential average of the weights that learn, on their device.

    Early on it forgets faster than its decay says, since what it has seen is mostly where training
    began: decay = min(decay, (1 + update) / (10 + update)).
    """

    def __init__(self, recogniser: Recogniser, decay: float) -> None:
        self._decay = decay
        learning = _find_learning(recogniser)
        self._learning: list[torch.Tensor] = list(learning.values())
        self.weights = {name: p.detach().clone() for name, p in learning.items()}

    @torch.no_grad()
    def follow(self, update: int, result: UpdateResult) -> None:
        """Move towards the weights after an update, counted from 0, unless it changed nothing."""
        decay = min(self._decay, (1 + update) / (10 + update))
        averages = list(self.weights.values())
        steps = list(torch._foreach_sub(self._learning, averages))
        torch._foreach_mul_(steps, result.has_changed.to(averages[0].dtype) * (1 - decay))
        torch._foreach_add_(averages, steps)

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Go on from saved weights of the same names."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the recogniser compute with the average for as long as the context lasts."""
        with _swapped(self._learning, list(self.weights.values())):
            yield


def validate_weights(run: Run, is_stopped: Callable[[], bool] = lambda: False) -> dict[str, DevResult]:
    """Validate the weights as they stand and, if one is kept, their exponential average."""
    results = {RAW: validate_run(run, is_stopped)}
    if run.ema is not None:
        with run.ema.in_place():
            results[EMA] = validate_run(run, is_stopped)
    return results


def validate_run(run: Run, is_stopped: Callable[[], bool] = lambda: False) -> DevResult:
    """Validate the recogniser as it stands; raises Stopped when `is_stopped` says so in between."""
    parts = run.parts
    with run.heartbeat.during("validating"):
        return validate(
            parts.recogniser,
            parts.dev,
            parts.tokenizer,
            device=run.device,
            precision=run.precision,
            ranks=run.ranks,
            cached_layer=parts.cached_layer,
            is_stopped=is_stopped,
        )


def average_checkpoints(run: Run, count: int) -> dict[str, DevResult]:
    """Put the mean of the newest validated checkpoints' weights into the recogniser, and validate it.

    The mean is over the weights that learn, as training left them. A damaged checkpoint is left out and
    said. Returns nothing where fewer than two are left.
    """
    # The first rank looks alone: every one must average the same, and what is damaged is said once.
    folders: list[Path] = run.ranks.gather(_list_whole(run.run_dir, count) if run.ranks.is_first else [])[0]
    if len(folders) < 2:
        log.info("%d whole validated checkpoints are there: nothing to average", len(folders))
        return {}
    learning = _find_learning(run.parts.recogniser)
    means = _mean_of([folder / MODEL for folder in folders], list(learning))
    with torch.no_grad():
        for name, parameter in learning.items():
            parameter.copy_(means[name])
    log.info("the mean of the weights of %s", ", ".join(folder.name for folder in folders))
    return {AVERAGE: validate_run(run, run.signals.agree)}


def _list_whole(run_dir: Path, count: int) -> list[Path]:
    """List those of the newest validated checkpoints that are whole; say which are not."""
    damages = {folder: find_damage(folder) for folder in list_validated(run_dir)[-count:]}
    for folder, damage in damages.items():
        if damage is not None:
            log.warning("%s is left out of the mean of checkpoints: %s", folder, damage)
    return [folder for folder, damage in damages.items() if damage is None]


def _find_learning(recogniser: Recogniser) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that learn, by name."""
    return {name: p for name, p in recogniser.named_parameters() if p.requires_grad}


def _mean_of(paths: Sequence[Path], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Average some tensors of safetensors files, in float64, file by file."""
    sums: dict[str, torch.Tensor] = {}
    for path in paths:
        tensors = load_file(path)
        for name in names:
            sums[name] = sums[name] + tensors[name].double() if name in sums else tensors[name].double()
    return {name: (total / len(paths)).float() for name, total in sums.items()}


@contextmanager
def _swapped(parameters: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> Iterator[None]:
    """Exchange the values of two lists of tensors for as long as the context lasts."""
    _swap(parameters, others)
    try:
        yield
    finally:
        _swap(parameters, others)


@torch.no_grad()
def _swap(parameters: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> None:
    for parameter, other in zip(parameters, others, strict=True):
        kept = parameter.clone()
        parameter.copy_(other)
        other.copy_(kept)

"""An exponential average of the weights that follows every update (Kingma and Ba 2015, section 7.2).

It is validated beside the weights themselves; the better dev result decides which of them a checkpoint
stands for (`record` in train/judge/best.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from train.update.step import UpdateResult
from vox.model.recogniser import Recogniser


class Ema:
    """An exponential average of the weights that learn, on their device.

    Early on it forgets faster than its decay says, since what it has seen is mostly where training
    began: decay = min(decay, (1 + update) / (10 + update)).
    """

    def __init__(self, recogniser: Recogniser, decay: float) -> None:
        self._decay = decay
        learning = find_learning(recogniser)
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


def find_learning(recogniser: Recogniser) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that learn, by name."""
    return {name: p for name, p in recogniser.named_parameters() if p.requires_grad}


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

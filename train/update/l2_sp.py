"""A pull towards the weights that training started from: L2-SP, for adaptation without replay.

Li, Grandvalet and Davoine, "Explicit inductive bias for transfer learning with convolutional networks",
ICML 2018.
"""

from collections.abc import Mapping

import torch


class L2Sp:
    """The loss strength / 2 * ||w - w0||^2 over the weights w that learn; w0 are the start weights."""

    def __init__(
        self,
        learning: Mapping[str, torch.nn.Parameter],
        strength: float,
        start: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Copy the start weights to where the weights are: one more copy of what learns.

        learning: the parameters that learn, by name. start: their start weights; None: as they are now.
        """
        self._strength = strength
        self._learning: list[torch.Tensor] = list(learning.values())
        self._start = [
            (parameter if start is None else start[name]).detach().to(parameter.device, copy=True)
            for name, parameter in learning.items()
        ]

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add strength * (w - w0) to the gradients.

        The difference comes first: what has not moved gets exactly nothing. AdamW would make whole steps of
        rounding errors. The difference takes memory that the activations have left.
        """
        drift = list(torch._foreach_sub(self._learning, self._start))
        gradients = [p.grad for p in self._learning if p.grad is not None]  # all: a batch touches each
        torch._foreach_add_(gradients, drift, alpha=self._strength)

"""What a search adds to its own scores: a finite-state machine over label ids.

Letters: N hypotheses, V vocabulary.
"""

from typing import Protocol

import torch
from torch import Tensor


class Scorer(Protocol):
    """A machine with int64 states: a language model, hotwords."""

    name: str

    def start(self, count: int, device: torch.device) -> Tensor:
        """Return the state before the first label, `count` times: [N] int64 states on that device."""
        ...

    def scores(self, states_N: Tensor) -> Tensor:
        """Return the natural log or bonus of each next label: [N, V] float32.

        The column of eos is the score of ending here; the columns of blank and sos are ignored.
        """
        ...

    def advance(self, states_N: Tensor, labels_N: Tensor) -> Tensor:
        """Return the states after a label each: [N] int64."""
        ...

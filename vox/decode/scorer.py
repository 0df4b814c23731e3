"""Scorers that a search adds to the model's own scores: language models, hotwords, a length bonus.

Letters: N hypotheses, S scorers, V vocabulary.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vox.errors import ConfigError
from vox.text import EOS_ID


class Scorer(Protocol):
    """A finite-state machine over label ids that scores each next label.

    It depends only on the labels, not on the audio. A scorer may also have `bounds: tuple[float, float]`,
    the minimum and maximum of all values that `scores` can return. With bounds, a search over labels can stop
    when no longer hypothesis can win. Without them, it continues to the label limit of the audio's length.
    """

    name: str

    def start(self, count: int, device: torch.device) -> Tensor:
        """Return the states before the first label, int64 [N]."""
        ...

    def scores(self, states_N: Tensor) -> Tensor:
        """Return float32 [N, V]: the natural log, or the bonus, of each next label in these states.

        The eos column is the score of ending here. The columns of blank and bos are ignored.
        """
        ...

    def advance(self, states_N: Tensor, labels_N: Tensor) -> Tensor:
        """Return the states after these labels, int64 [N]."""
        ...


class LengthBonus:
    """Scores 1 for each label and 0 for the end; its weight is the bonus of a label."""

    name = "length"
    bounds = (0.0, 1.0)

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def start(self, count: int, device: torch.device) -> Tensor:
        """Return [N] zeros: there is one state."""
        return torch.zeros(count, dtype=torch.int64, device=device)

    def scores(self, states_N: Tensor) -> Tensor:
        """Return [N, V] ones, zero for eos."""
        ones_NV = torch.ones(len(states_N), self.vocab_size, device=states_N.device)
        ones_NV[:, EOS_ID] = 0.0
        return ones_NV

    def advance(self, states_N: Tensor, labels_N: Tensor) -> Tensor:
        """Return the only state."""
        return states_N


class Scorers:
    """Weighted scorers run side by side; states are int64 [N, S].

    A scorer of weight 0 is dropped, so it changes nothing, even if it scores minus infinity.
    """

    def __init__(self, weighted: Sequence[tuple[Scorer, float]]) -> None:
        """Take (scorer, weight) pairs; raise ConfigError for weights that are not finite, or equal names."""
        for scorer, weight in weighted:
            if not math.isfinite(weight):
                raise ConfigError(f"weight {weight} is not a number", where=scorer.name)
        used = [(scorer, float(weight)) for scorer, weight in weighted if weight != 0]
        self.names = [scorer.name for scorer, _ in used]
        if len(set(self.names)) < len(self.names):
            raise ConfigError("two scorers of one name", where=", ".join(self.names))
        self.weights = [weight for _, weight in used]
        self._scorers = [scorer for scorer, _ in used]

    def __len__(self) -> int:
        return len(self._scorers)

    def start(self, count: int, device: torch.device) -> Tensor:
        """Return the states before the first label, int64 [N, S]."""
        states = [scorer.start(count, device) for scorer in self._scorers]
        return torch.stack(states, -1) if states else torch.empty(count, 0, dtype=torch.int64, device=device)

    def scores(self, states_NS: Tensor) -> list[Tensor]:
        """Return each scorer's unweighted scores, float32 [N, V]."""
        return [scorer.scores(states_N) for scorer, states_N in self._pair(states_NS)]

    def advance(self, states_NS: Tensor, labels_N: Tensor) -> Tensor:
        """Return the states after these labels, int64 [N, S]."""
        states = [scorer.advance(states_N, labels_N) for scorer, states_N in self._pair(states_NS)]
        return torch.stack(states, -1) if states else states_NS

    def score_text(self, labels: Sequence[int], device: torch.device) -> list[float]:
        """Return each scorer's unweighted score of a whole text, including its end."""
        gains, states_1S = [], self.start(1, device)
        for label in labels:
            gains.append([float(row_1V[0, label]) for row_1V in self.scores(states_1S)])
            states_1S = self.advance(states_1S, torch.tensor([label], device=device))
        gains.append([float(row_1V[0, EOS_ID]) for row_1V in self.scores(states_1S)])
        return [sum(column) for column in zip(*gains, strict=True)]

    def most_gain(self) -> float:
        """Return the maximum that one more label or the end can add to a score: 0 or more, maybe infinity."""
        gain = 0.0
        for scorer, weight in zip(self._scorers, self.weights, strict=True):
            least, most = getattr(scorer, "bounds", (-math.inf, math.inf))
            gain += max(0.0, weight * least, weight * most)
        return gain

    def _pair(self, states_NS: Tensor) -> list[tuple[Scorer, Tensor]]:
        return list(zip(self._scorers, states_NS.unbind(-1), strict=True))


def hash_scorer(scorer: Scorer) -> str:
    """Return a sha256 over everything that a scorer holds, as hex."""
    content = hashlib.sha256()
    _hash_parts(scorer, content)
    return content.hexdigest()


def _hash_parts(value: object, content: "hashlib._Hash") -> None:
    if isinstance(value, Tensor):
        content.update(f"{value.dtype} {list(value.shape)} ".encode())
        content.update(value.cpu().contiguous().numpy().tobytes())
    elif hasattr(value, "__dict__"):
        for name, part in sorted(vars(value).items()):
            content.update(f"{name} ".encode())
            _hash_parts(part, content)
    else:
        content.update(f"{value!r} ".encode())

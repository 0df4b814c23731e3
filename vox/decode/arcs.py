"""Sparse transitions of a finite-state machine, as sorted tensors.

Letters: N states of a query, A arcs, K arcs of the query's states, S states.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NO_KEY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Arcs:
    """Arcs sorted by state, then by label. The last entry is a sentinel that belongs to no state."""

    num_labels: int
    keys_A: Tensor  # state * num_labels + label, int64 ascending
    labels_A: Tensor  # int64
    targets_A: Tensor  # int64
    starts_S: Tensor  # int64 [S + 1]: state s has the arcs starts[s] to starts[s + 1] - 1

    @classmethod
    def build(
        cls,
        states_A: NDArray[np.int64],
        labels_A: NDArray[np.int64],
        targets_A: NDArray[np.int64],
        *,
        num_states: int,
        num_labels: int,
    ) -> "Arcs":
        """Make the tensors from arcs that are sorted by state and label."""
        keys = np.append(states_A * num_labels + labels_A, _NO_KEY)
        assert (keys[1:] > keys[:-1]).all(), "arcs are sorted, and each is there once"
        starts = np.searchsorted(states_A, np.arange(num_states + 1))
        arrays = (keys, np.append(labels_A, 0), np.append(targets_A, 0), starts)
        return cls(num_labels, *(torch.from_numpy(np.asarray(array, dtype=np.int64)) for array in arrays))

    def to(self, device: torch.device) -> "Arcs":
        """Return the same arcs on a device."""
        tensors: dict[str, Any] = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def find(self, states_N: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index of each pair's arc, int64 [N], and whether the arc exists, bool [N].

        The index of a missing arc is valid for reading, but its content is meaningless.
        """
        keys_N = states_N * self.num_labels + labels_N
        places_N = torch.searchsorted(self.keys_A, keys_N)
        is_found_N = self.keys_A[places_N] == keys_N
        return places_N, is_found_N

    def list_all(self, states_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return all arcs of the states: for each, which of the N it belongs to and its index, int64 [K]."""
        firsts_N = self.starts_S[states_N]
        counts_N = self.starts_S[states_N + 1] - firsts_N
        rows_K = torch.repeat_interleave(torch.arange(len(states_N), device=states_N.device), counts_N)
        shifts_N = firsts_N - (counts_N.cumsum(0) - counts_N)
        return rows_K, torch.arange(len(rows_K), device=states_N.device) + shifts_N[rows_K]

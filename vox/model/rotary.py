"""Rotary positions (Su et al. 2021, "RoFormer", equation 34): queries and keys turn with their position.

The product of a query and a key then depends on the distance between them only, so there are no position
parameters and no longest utterance. Letters: B batch, H heads, T positions, K head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BASE = 10_000.0  # the slowest pair turns once in 2 pi x BASE positions


class Rotary(NamedTuple):
    """Cosine and sine of each position's angles: [T, K / 2], or [B, 1, T, K / 2] where rows differ."""

    cos_TK: Tensor
    sin_TK: Tensor


def rotary_table(positions_T: Tensor, head_width: int) -> Rotary:
    """Compute the angles for positions [T] (or [B, 1, T]) and an even head width.

    In float32; in float64 for positions in float64.
    """
    assert head_width % 2 == 0
    dtype = torch.float64 if positions_T.dtype == torch.float64 else torch.float32
    exponents_K = torch.arange(0, head_width, 2, device=positions_T.device, dtype=dtype) / head_width
    angles_TK = positions_T.to(dtype)[..., None] * BASE**-exponents_K
    return Rotary(angles_TK.cos(), angles_TK.sin())


def rotate(x_BHTK: Tensor, rotary: Rotary) -> Tensor:
    """Turn channel i together with channel i + K / 2 by their position's angle; keeps the dtype."""
    first_BHTK, second_BHTK = x_BHTK.chunk(2, dim=-1)
    turned_BHTK = torch.cat(
        (
            first_BHTK * rotary.cos_TK - second_BHTK * rotary.sin_TK,
            second_BHTK * rotary.cos_TK + first_BHTK * rotary.sin_TK,
        ),
        dim=-1,
    )
    return turned_BHTK.to(x_BHTK.dtype)

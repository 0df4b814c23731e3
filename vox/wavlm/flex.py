"""WavLM's attention by FlexAttention: the gated bias is made inside the kernel, and never lies in memory.

Without gradients only: it has no dropout, and where layers learn the bias would be needed again. Off unless
VOX_FLEX_ATTENTION=1 is in the environment, until a GPU has measured it. An environment variable and no config
key: extraction, validation and evaluation run through here, and not training.

B batch, T frames, H heads, K head width, R distances.
"""

import math
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

FLEX_ATTENTION = "VOX_FLEX_ATTENTION"


def uses_flex_attention() -> bool:
    """Say whether attention goes through FlexAttention here and now."""
    return os.environ.get(FLEX_ATTENTION) == "1" and not torch.is_grad_enabled()


@cache
def _compile() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def attend_by_distance(
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    gates_BHT: Tensor,
    is_valid_BT: Tensor,
    bias_HR: Tensor,
) -> Tensor:
    """Return [B, H, T, K]: attention with each query's gate times the bias of its distance to the key.

    bias_HR is [H, 2T-1], by distance from 1-T to T-1 frames, query to key. On a CPU, which has no such kernel
    worth compiling, torch's plain definition of FlexAttention runs, with all scores in memory.
    """
    last = query_BHTK.shape[2] - 1

    def add_bias(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        biased = score + gates_BHT[batch, head, query] * bias_HR[head, key - query + last]
        return torch.where(is_valid_BT[batch, key], biased, -math.inf)

    attend: Callable[..., Any] = _compile() if query_BHTK.device.type == "cuda" else flex_attention
    mixed_BHTK: Tensor = attend(query_BHTK, key_BHTK, value_BHTK, score_mod=add_bias)
    return mixed_BHTK

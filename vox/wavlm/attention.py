"""WavLM's self-attention: a gated relative position bias, added before the softmax.

B batch, T frames, D model width, H heads, K head width. Masks: True = real frame.

Chen et al. 2022 (WavLM), section III-B, equations 4 to 9: the bias of a query and a key depends on their
distance, looked up in a table that all layers share, times a gate that each layer computes from the query.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def distance_to_bucket(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Return the table row of each signed distance, key minus query in frames (int64, any shape).

    Half of the rows are for keys ahead of the query. In each half, half of the rows hold one distance each,
    the other half grow logarithmically up to `max_distance`, beyond which all share the last (Raffel et al.
    2020, section 2.1).
    """
    half = num_buckets // 2
    num_exact = half // 2
    offsets = (distances > 0).long() * half
    lengths = distances.abs()
    logarithm = torch.log(lengths.clamp(min=1).float() / num_exact) / math.log(max_distance / num_exact)
    coarse = (num_exact + logarithm * (half - num_exact)).long().clamp(max=half - 1)
    return offsets + torch.where(lengths < num_exact, lengths, coarse)


class Attention(nn.Module):
    """Multi-head self-attention with the gated bias; layer 0's holds the table that all layers use."""

    def __init__(self, config: Any, has_table: bool) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_attention_heads
        head_width = width // self.num_heads
        self.max_distance = config.max_bucket_distance
        self.dropout = config.attention_dropout
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, self.num_heads, 1, 1))
        self.gru_rel_pos_linear = nn.Linear(head_width, 8)
        if has_table:
            self.rel_attn_embed = nn.Embedding(config.num_buckets, self.num_heads)

    def position_bias(self, num_frames: int) -> Tensor:
        """Return the ungated bias [H, T, T], float32, query by key, from this layer's table."""
        table = self.rel_attn_embed.weight
        distances = torch.arange(1 - num_frames, num_frames, device=table.device)
        buckets = distance_to_bucket(distances, table.shape[0], self.max_distance)
        # Query t meets keys at distances -t to T-1-t: a window of T on the 2T-1 distances, for each query.
        windows_HTT = table[buckets].T.unfold(1, num_frames, 1)
        return windows_HTT.flip(1)

    def _gates(self, heads_BHTK: Tensor) -> Tensor:
        """Return what multiplies the bias of each query: [B, H, T], float32.

        The linear map's 8 outputs are added up in two fours, so its rows are added up first: a quarter of the
        work, the same sum.
        """
        with torch.autocast(heads_BHTK.device.type, enabled=False):
            weight_2K = self.gru_rel_pos_linear.weight.unflatten(0, (2, 4)).sum(1)
            bias_2 = self.gru_rel_pos_linear.bias.unflatten(0, (2, 4)).sum(1)
            logits_BHT2 = F.linear(heads_BHTK.to(weight_2K.dtype), weight_2K, bias_2)
            update_BHT, reset_BHT = torch.sigmoid(logits_BHT2).unbind(-1)
            return update_BHT * (reset_BHT * self.gru_rel_pos_const.squeeze(-1) - 1.0) + 2.0

    def forward(self, hidden_BTD: Tensor, position_bias_HTT: Tensor, is_valid_BT: Tensor) -> Tensor:
        """Return [B, T, D]; padded frames are never attended to."""
        gates_BHT = self._gates(self._split_heads(hidden_BTD))
        bias_BHTT = gates_BHT[..., None] * position_bias_HTT
        bias_BHTT.masked_fill_(~is_valid_BT[:, None, None, :], -math.inf)
        query_BHTK = self._split_heads(self.q_proj(hidden_BTD))
        # The kernels want the bias in the query's dtype; their softmax itself is float32 in every precision.
        mixed_BHTK = F.scaled_dot_product_attention(
            query_BHTK,
            self._split_heads(self.k_proj(hidden_BTD)),
            self._split_heads(self.v_proj(hidden_BTD)),
            attn_mask=bias_BHTT.to(query_BHTK.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(mixed_BHTK.transpose(1, 2).flatten(2))

    def _split_heads(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

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

from vox.wavlm.derived import Derived

BIAS_ALIGNMENT = 16  # elements a row: the CUDA kernels copy a bias whose rows begin anywhere else


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


def make_bias_scratch(hidden_BTD: Tensor, num_heads: int) -> Tensor:
    """Return memory [B, H, T, T] for the gated bias, which layers without gradients use one after the other.

    It is the largest activation of a layer, and on a CPU new memory costs more than the bias itself.
    """
    kind, dtype = hidden_BTD.device.type, hidden_BTD.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    batch, num_frames, _ = hidden_BTD.shape
    row = num_frames if kind == "cpu" else -(-num_frames // BIAS_ALIGNMENT) * BIAS_ALIGNMENT
    scratch = torch.empty(batch, num_heads, num_frames, row, dtype=dtype, device=hidden_BTD.device)
    return scratch[..., :num_frames]


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
        self._position_bias: Derived[Tensor] = Derived()

    def position_bias(self, num_frames: int) -> Tensor:
        """Return the ungated bias [H, T, T], float32, query by key, from this layer's table.

        The last one is kept while the table is frozen: batches sorted by length are often equally long.
        """
        table = self.rel_attn_embed.weight
        if table.requires_grad:
            return self._make_position_bias(table, num_frames)
        return self._position_bias.get(
            [table], lambda: self._make_position_bias(table, num_frames), num_frames
        )

    def _make_position_bias(self, table: Tensor, num_frames: int) -> Tensor:
        distances = torch.arange(1 - num_frames, num_frames, device=table.device)
        buckets = distance_to_bucket(distances, table.shape[0], self.max_distance)
        # Query t meets keys at distances -t to T-1-t: a window of T on the 2T-1 distances, for each query.
        # Contiguous first: the copy that flip makes has its input's order of dimensions in memory, heads
        # innermost, and every layer would read it ten times as slowly.
        windows_HTT = table[buckets].T.contiguous().unfold(1, num_frames, 1)
        return windows_HTT.flip(1)

    def _gates(self, heads_BHTK: Tensor) -> Tensor:
        """Return what multiplies the bias of each query: [B, H, T], float32.

        The linear map's 8 outputs are added up in two fours, so its rows are added up first: a quarter of the
        work, the same sum.
        """
        with torch.autocast(heads_BHTK.device.type, enabled=False):
            weight_2K = self.gru_rel_pos_linear.weight.unflatten(0, (2, 4)).sum(1)
            bias_2 = self.gru_rel_pos_linear.bias.unflatten(0, (2, 4)).sum(1)
            # In the order in which the heads lie in memory, which a product of matrices need not copy then.
            heads_BTHK = heads_BHTK.transpose(1, 2).to(weight_2K.dtype)
            logits_BTH2 = F.linear(heads_BTHK, weight_2K, bias_2)
            update_BHT, reset_BHT = torch.sigmoid(logits_BTH2).permute(3, 0, 2, 1)
            return update_BHT * (reset_BHT * self.gru_rel_pos_const.squeeze(-1) - 1.0) + 2.0

    def forward(
        self,
        hidden_BTD: Tensor,
        position_bias_HTT: Tensor,
        is_valid_BT: Tensor,
        scratch_BHTT: Tensor | None = None,
    ) -> Tensor:
        """Return [B, T, D]; padded frames are never attended to.

        `scratch_BHTT` is overwritten; only without gradients, which would need its content again.
        """
        gates_BHT1 = self._gates(self._split_heads(hidden_BTD))[..., None]
        mask_BT = position_bias_HTT.new_zeros(is_valid_BT.shape).masked_fill_(~is_valid_BT, -math.inf)
        # Scaled, masked and rounded to the precision of the queries in one pass over memory.
        bias_BHTT = torch.addcmul(mask_BT[:, None, None, :], gates_BHT1, position_bias_HTT, out=scratch_BHTT)
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

"""WavLM's self-attention: a gated relative position bias, added before the softmax.

B batch, T frames, D model width, H heads, K head width, Q queries, R distances. Masks: True = real frame.

Chen et al. 2022 (WavLM), section III-B, equations 4 to 9: the bias of a query and a key depends on their
distance, looked up in a table that all layers share, times a gate that each layer computes from the query.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vox.wavlm.derived import Derived
from vox.wavlm.linear import Linear, autocast_dtype

BIAS_ALIGNMENT = 16  # elements a row: the CUDA kernels copy a bias whose rows begin anywhere else

# Up to 30 s all queries are attended at once: fastest, and a bias of T x T is kept for all layers. Above, so
# many at a time: memory grows with T, not with its square.
ONE_PASS_FRAMES = 1500
QUERY_BLOCK_FRAMES = 256


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


def spread_bias(bias_HR: Tensor, first: int, last: int) -> Tensor:
    """Return the bias [H, Q, T] of queries first to last-1, from the bias by distance [H, R=2T-1].

    Query t meets keys at distances -t to T-1-t: a window of T on the 2T-1 distances, for each query.
    """
    num_frames = (bias_HR.shape[1] + 1) // 2
    windows_HQT = bias_HR[:, num_frames - last : 2 * num_frames - 1 - first].unfold(1, num_frames, 1)
    # A copy, since flipped windows keep queries innermost in memory, and a GPU's fused attention with
    # gradients takes no such mask: it would be computed step by step, with all of its scores in memory.
    return windows_HQT.contiguous().flip(1)


def make_bias_scratch(hidden_BTD: Tensor, num_heads: int) -> Tensor:
    """Return memory [B, H, Q, T] for the gated bias, which layers without gradients use one after the other.

    Q is T, or a block of queries where T is long. It is the largest activation of a layer, and on a CPU new
    memory costs more than the bias itself.
    """
    kind, dtype = hidden_BTD.device.type, autocast_dtype(hidden_BTD) or hidden_BTD.dtype
    batch, num_frames, _ = hidden_BTD.shape
    row = num_frames if kind == "cpu" else -(-num_frames // BIAS_ALIGNMENT) * BIAS_ALIGNMENT
    num_queries = num_frames if num_frames <= ONE_PASS_FRAMES else QUERY_BLOCK_FRAMES
    scratch = torch.empty(batch, num_heads, num_queries, row, dtype=dtype, device=hidden_BTD.device)
    return scratch[..., :num_frames]


class Attention(nn.Module):
    """Multi-head self-attention with the gated bias; layer 0's holds the table that all layers use."""

    def __init__(self, config: Any, has_table: bool) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_attention_heads
        head_width = width // self.num_heads
        self.max_distance = config.max_bucket_distance
        self.dropout = config.attention_dropout
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.out_proj = Linear(width, width)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, self.num_heads, 1, 1))
        self.gru_rel_pos_linear = nn.Linear(head_width, 8)
        if has_table:
            self.rel_attn_embed = nn.Embedding(config.num_buckets, self.num_heads)
        self._position_bias: Derived[Tensor] = Derived()
        self._gate_sums: Derived[tuple[Tensor, Tensor]] = Derived()

    def position_bias(self, num_frames: int) -> Tensor:
        """Return the ungated bias, float32, from this layer's table: [H, T, T], query by key.

        Where T is long, it is [H, 2T-1], by distance from 1-T to T-1 frames. The last one is
        kept while the table is frozen: batches sorted by length are often equally long.
        """
        table = self.rel_attn_embed.weight
        if table.requires_grad:
            self._position_bias.clear()
            return self._make_position_bias(table, num_frames)
        return self._position_bias.get(
            [table],
            lambda: self._make_position_bias(table, num_frames),
            num_frames,
        )

    def _make_position_bias(self, table: Tensor, num_frames: int) -> Tensor:
        distances = torch.arange(1 - num_frames, num_frames, device=table.device)
        buckets = distance_to_bucket(distances, table.shape[0], self.max_distance)
        # Contiguous: heads innermost in memory, every layer would read it ten times as slowly.
        bias_HR = table[buckets].T.contiguous()
        return bias_HR if num_frames > ONE_PASS_FRAMES else spread_bias(bias_HR, 0, num_frames)

    def _gates(self, heads_BHTK: Tensor) -> Tensor:
        """Return what multiplies the bias of each query: [B, H, T], float32.

        The linear map's 8 outputs are added up in two fours, so its rows are added up first: a quarter of the
        work, the same sum.
        """
        with torch.autocast(heads_BHTK.device.type, enabled=False):
            weight_2K, bias_2 = self._sum_gates()
            # In the order in which the heads lie in memory, which a product of matrices need not copy then.
            heads_BTHK = heads_BHTK.transpose(1, 2).to(weight_2K.dtype)
            logits_BTH2 = F.linear(heads_BTHK, weight_2K, bias_2)
            update_BHT, reset_BHT = torch.sigmoid(logits_BTH2).permute(3, 0, 2, 1)
            return update_BHT * (reset_BHT * self.gru_rel_pos_const.squeeze(-1) - 1.0) + 2.0

    def _sum_gates(self) -> tuple[Tensor, Tensor]:
        """Return the gates' weight [2, K] and bias [2], the rows of each four added up."""
        weight, bias = self.gru_rel_pos_linear.weight, self.gru_rel_pos_linear.bias

        def add_up() -> tuple[Tensor, Tensor]:
            return weight.unflatten(0, (2, 4)).sum(1), bias.unflatten(0, (2, 4)).sum(1)

        if weight.requires_grad or bias.requires_grad:
            self._gate_sums.clear()
            return add_up()
        return self._gate_sums.get([weight, bias], add_up)

    def forward(
        self,
        hidden_BTD: Tensor,
        position_bias: Tensor,
        is_valid_BT: Tensor,
        scratch_BHQT: Tensor | None = None,
    ) -> Tensor:
        """Return [B, T, D]; padded frames are never attended to.

        `position_bias` is what the method of that name returns. `scratch_BHQT` is overwritten; only without
        gradients, which would need its content again.
        """
        gates_BHT = self._gates(self._split_heads(hidden_BTD))
        hidden_BTD = hidden_BTD.to(autocast_dtype(hidden_BTD) or hidden_BTD.dtype)  # once for three products
        query_BHTK, key_BHTK, value_BHTK = (
            self._split_heads(project(hidden_BTD)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask_BT = position_bias.new_zeros(is_valid_BT.shape).masked_fill_(~is_valid_BT, -math.inf)
        attend = self._attend if position_bias.dim() == 3 else self._attend_in_blocks
        mixed_BHTK = attend(
            query_BHTK, key_BHTK, value_BHTK, gates_BHT[..., None], mask_BT, position_bias, scratch_BHQT
        )
        return self.out_proj(mixed_BHTK.transpose(1, 2).flatten(2))

    def _attend(
        self,
        query_BHQK: Tensor,
        key_BHTK: Tensor,
        value_BHTK: Tensor,
        gates_BHQ1: Tensor,
        mask_BT: Tensor,
        bias_HQT: Tensor,
        scratch_BHQT: Tensor | None,
    ) -> Tensor:
        """Return what some queries see of all keys: [B, H, Q, K]."""
        # Scaled, masked and rounded to the precision of the queries in one pass over memory. On a GPU it is
        # twice as fast where the three already have that precision.
        if scratch_BHQT is not None:
            dtype = scratch_BHQT.dtype
            mask_BT, gates_BHQ1, bias_HQT = mask_BT.to(dtype), gates_BHQ1.to(dtype), bias_HQT.to(dtype)
        bias_BHQT = torch.addcmul(mask_BT[:, None, None, :], gates_BHQ1, bias_HQT, out=scratch_BHQT)
        # The kernels want the bias in the query's dtype; their softmax itself is float32 in every precision.
        return F.scaled_dot_product_attention(
            query_BHQK,
            key_BHTK,
            value_BHTK,
            attn_mask=bias_BHQT.to(query_BHQK.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )

    def _attend_in_blocks(
        self,
        query_BHTK: Tensor,
        key_BHTK: Tensor,
        value_BHTK: Tensor,
        gates_BHT1: Tensor,
        mask_BT: Tensor,
        bias_HR: Tensor,
        scratch_BHQT: Tensor | None,
    ) -> Tensor:
        """Return [B, H, T, K], a block of queries at a time: no query needs to know of another.

        With gradients a block's bias is made again in the backward pass, instead of all being kept.
        """

        def attend(query_BHQK: Tensor, gates_BHQ1: Tensor, bias_HR: Tensor, first: int) -> Tensor:
            num_queries = query_BHQK.shape[2]
            bias_HQT = spread_bias(bias_HR, first, first + num_queries)
            scratch = None if scratch_BHQT is None else scratch_BHQT[:, :, :num_queries]
            return self._attend(query_BHQK, key_BHTK, value_BHTK, gates_BHQ1, mask_BT, bias_HQT, scratch)

        blocks = []
        for first in range(0, query_BHTK.shape[2], QUERY_BLOCK_FRAMES):
            rows = slice(first, first + QUERY_BLOCK_FRAMES)
            inputs = (query_BHTK[:, :, rows], gates_BHT1[:, :, rows], bias_HR, first)
            if torch.is_grad_enabled():
                blocks.append(checkpoint(attend, *inputs, use_reentrant=False))
            else:
                blocks.append(attend(*inputs))
        return torch.cat(blocks, 2)

    def _split_heads(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

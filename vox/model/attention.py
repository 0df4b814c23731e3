"""Self-attention with rotary positions, cross-attention, and the keys and values kept between steps.

Letters: B batch, T frames or keys, U queries, D width, H heads, K head width. Masks are True where a key
is seen. No projection has a bias.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vox.model.rotary import Rotary, rotate

KeyValue = tuple[Tensor, Tensor]  # keys and values, each [B, H, T, K]

_FIRST_CAPACITY = 32  # labels; doubled whenever full


def _split_heads(x_BTD: Tensor, num_heads: int) -> Tensor:
    return x_BTD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _join_heads(x_BHTK: Tensor) -> Tensor:
    return x_BHTK.transpose(1, 2).flatten(2)


class KeyValueBuffer:
    """The keys and values of the steps so far, in buffers that double when full."""

    def __init__(self) -> None:
        self.length = 0
        self._keys_BHTK: Tensor | None = None
        self._values_BHTK: Tensor | None = None

    def append(self, key_BH1K: Tensor, value_BH1K: Tensor) -> KeyValue:
        """Add one step; return all steps so far, each [B, H, length, K] (views of the buffers)."""
        if self._keys_BHTK is None or self._values_BHTK is None:
            self._keys_BHTK = _grow(key_BH1K[:, :, :0], _FIRST_CAPACITY)
            self._values_BHTK = _grow(value_BH1K[:, :, :0], _FIRST_CAPACITY)
        elif self.length == self._keys_BHTK.shape[2]:
            self._keys_BHTK = _grow(self._keys_BHTK, 2 * self.length)
            self._values_BHTK = _grow(self._values_BHTK, 2 * self.length)
        self._keys_BHTK[:, :, self.length] = key_BH1K[:, :, 0]
        self._values_BHTK[:, :, self.length] = value_BH1K[:, :, 0]
        self.length += 1
        return self._keys_BHTK[:, :, : self.length], self._values_BHTK[:, :, : self.length]

    def select(self, index_B: Tensor) -> "KeyValueBuffer":
        """Return a copy that holds these rows, in this order; a row may be taken more than once."""
        chosen = KeyValueBuffer()
        chosen.length = self.length
        if self._keys_BHTK is not None and self._values_BHTK is not None:
            chosen._keys_BHTK = self._keys_BHTK.index_select(0, index_B)
            chosen._values_BHTK = self._values_BHTK.index_select(0, index_B)
        return chosen


def _grow(buffer_BHTK: Tensor, capacity: int) -> Tensor:
    batch, heads, length, width = buffer_BHTK.shape
    grown_BHTK = buffer_BHTK.new_empty(batch, heads, capacity, width)
    grown_BHTK[:, :, :length] = buffer_BHTK
    return grown_BHTK


class SelfAttention(nn.Module):
    """Scaled dot-product attention of a sequence on itself (Vaswani et al. 2017, equation 1)."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(d_model, 3 * d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    @property
    def head_width(self) -> int:
        return self.output.in_features // self.num_heads

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, is_key_seen: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend over the positions that the mask shows, or (is_causal) over those up to each query's own.

        is_key_seen: bool, [B, 1, 1, T] or [T, T] (query, key).
        """
        query_BHTK, key_BHTK, value_BHTK = self._project(x_BTD, rotary)
        mixed_BHTK = F.scaled_dot_product_attention(
            query_BHTK,
            key_BHTK,
            value_BHTK,
            attn_mask=is_key_seen,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
        )
        return self.output(_join_heads(mixed_BHTK))

    def step(self, x_B1D: Tensor, rotary: Rotary, past: KeyValueBuffer, context: int | None) -> Tensor:
        """Attend from one new position, which is appended to the past, to it and those before it.

        context: how many positions are seen, the new one included; None: all.

        There is no mask: every key in the buffer is the query's own or an earlier one. (A causal mask of
        one query is aligned with the first key, and would hide all others.)
        """
        query_BH1K, key_BH1K, value_BH1K = self._project(x_B1D, rotary)
        keys_BHTK, values_BHTK = past.append(key_BH1K, value_BH1K)
        if context is not None:
            keys_BHTK, values_BHTK = keys_BHTK[:, :, -context:], values_BHTK[:, :, -context:]
        mixed_BH1K = F.scaled_dot_product_attention(query_BH1K, keys_BHTK, values_BHTK)
        return self.output(_join_heads(mixed_BH1K))

    def _project(self, x_BTD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        query_BTD, key_BTD, value_BTD = self.query_key_value(x_BTD).chunk(3, dim=-1)
        query_BHTK = rotate(_split_heads(query_BTD, self.num_heads), rotary)
        key_BHTK = rotate(_split_heads(key_BTD, self.num_heads), rotary)
        return query_BHTK, key_BHTK, _split_heads(value_BTD, self.num_heads)


class CrossAttention(nn.Module):
    """Attention from labels to audio frames; the audio's keys and values are computed apart, once."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key_value = nn.Linear(d_model, 2 * d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def project_memory(self, memory_BTD: Tensor, rotary: Rotary | None) -> KeyValue:
        """Return the memory's keys, turned by the frames' positions if there are any, and its values.

        Each is [B, H, T, K].
        """
        key_BTD, value_BTD = self.key_value(memory_BTD).chunk(2, dim=-1)
        key_BHTK = _split_heads(key_BTD, self.num_heads)
        if rotary is not None:
            key_BHTK = rotate(key_BHTK, rotary)
        return key_BHTK, _split_heads(value_BTD, self.num_heads)

    def forward(self, x_BUD: Tensor, memory: KeyValue, is_key_seen: Tensor, rotary: Rotary | None) -> Tensor:
        """Attend from each label, turned by its position if it has one, to the frames that the mask shows.

        is_key_seen: bool, [B, 1, 1, T] or [B, 1, U, T].
        """
        keys_BHTK, values_BHTK = memory
        query_BHUK = _split_heads(self.query(x_BUD), self.num_heads)
        if rotary is not None:
            query_BHUK = rotate(query_BHUK, rotary)
        mixed_BHUK = F.scaled_dot_product_attention(
            query_BHUK,
            keys_BHTK,
            values_BHTK,
            attn_mask=is_key_seen,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(_join_heads(mixed_BHUK))

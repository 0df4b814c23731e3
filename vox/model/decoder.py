"""The attention decoder: labels so far and encoded audio in, scores of the next label out.

It runs in two ways that agree (the same layers, the same positions): over whole label sequences for
training, and one label at a time, keeping keys and values, for decoding. Letters: B batch, U labels,
T audio frames, D model width, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vox.config import ModelConfig
from vox.masks import keys_to_mask, lengths_to_mask
from vox.model.attention import CrossAttention, KeyValue, KeyValueBuffer, SelfAttention
from vox.model.feedforward import SwiGLU
from vox.model.initialise import initialise
from vox.model.rotary import Rotary, rotary_table


@dataclass
class DecoderCache:
    """What decoding keeps between steps; every row has taken the same number of them."""

    memories: list[KeyValue]  # one a layer: the audio's keys and values, computed once
    is_frame_seen_B11T: Tensor
    pasts: list[KeyValueBuffer]  # one a layer: the labels' keys and values
    num_steps: int = 0

    def select(self, index_B: Tensor) -> "DecoderCache":
        """Return a cache that holds these rows, in this order; a row may be taken more than once.

        The new cache shares nothing that a step changes with the old one.
        """
        return DecoderCache(
            memories=[(keys[index_B], values[index_B]) for keys, values in self.memories],
            is_frame_seen_B11T=self.is_frame_seen_B11T[index_B],
            pasts=[past.select(index_B) for past in self.pasts],
            num_steps=self.num_steps,
        )


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; each behind its LayerNorm, and one for the memory."""

    def __init__(self, d_model: int, num_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(d_model)
        self.self_attention = SelfAttention(d_model, num_heads, dropout)
        self.cross_norm = nn.LayerNorm(d_model)
        self.memory_norm = nn.LayerNorm(d_model)
        self.cross_attention = CrossAttention(d_model, num_heads, dropout)
        self.feedforward_norm = nn.LayerNorm(d_model)
        self.feedforward = SwiGLU(d_model, d_ff, dropout)
        self.dropout = nn.Dropout(dropout)

    def project_memory(self, memory_BTD: Tensor) -> KeyValue:
        """Return the keys and values that the labels of this layer attend to."""
        return self.cross_attention.project_memory(self.memory_norm(memory_BTD))

    def forward(
        self,
        x_BUD: Tensor,
        rotary: Rotary,
        memory: KeyValue,
        is_frame_seen_B11T: Tensor,
        past: KeyValueBuffer | None = None,
    ) -> Tensor:
        """Map [B, U, D] to [B, U, D]: whole sequences without a past, one step (U = 1) with one."""
        normed_BUD = self.self_norm(x_BUD)
        if past is None:
            attended_BUD = self.self_attention(normed_BUD, rotary, is_causal=True)
        else:
            attended_BUD = self.self_attention.step(normed_BUD, rotary, past)
        x_BUD = x_BUD + self.dropout(attended_BUD)
        heard_BUD = self.cross_attention(self.cross_norm(x_BUD), memory, is_frame_seen_B11T)
        x_BUD = x_BUD + self.dropout(heard_BUD)
        return x_BUD + self.dropout(self.feedforward(self.feedforward_norm(x_BUD)))


class Decoder(nn.Module):
    """Embedding, layers, LayerNorm, output (not tied to the embedding)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.embedding_scale = config.d_model**0.5
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(config.d_model, config.decoder_heads, config.decoder_d_ff, config.dropout)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.head_width = config.d_model // config.decoder_heads
        initialise(self)

    def forward(self, tokens_BU: Tensor, memory_BTD: Tensor, num_frames_B: Tensor) -> Tensor:
        """Score the label after each of these (teacher forcing).

        tokens_BU: int64, bos first, padded on the right with any id. memory_BTD: what the encoder returns,
        finite on padded frames. Returns logits_BUV, where position u has heard tokens 0 to u only, so that
        padding changes nothing before it.
        """
        is_frame_seen_B11T = keys_to_mask(lengths_to_mask(num_frames_B, memory_BTD.shape[1]))
        rotary = rotary_table(torch.arange(tokens_BU.shape[1], device=tokens_BU.device), self.head_width)
        x_BUD = self._embed(tokens_BU)
        for layer, memory in zip(self.layers, self._project_memory(memory_BTD), strict=True):
            x_BUD = layer(x_BUD, rotary, memory, is_frame_seen_B11T)
        return self.output(self.norm(x_BUD))

    @torch.no_grad()
    def start(self, memory_BTD: Tensor, num_frames_B: Tensor) -> DecoderCache:
        """Prepare to decode step by step: project the audio for every layer, once."""
        return DecoderCache(
            memories=self._project_memory(memory_BTD),
            is_frame_seen_B11T=keys_to_mask(lengths_to_mask(num_frames_B, memory_BTD.shape[1])),
            pasts=[KeyValueBuffer() for _ in self.layers],
        )

    @torch.no_grad()
    def step(self, token_B: Tensor, cache: DecoderCache) -> Tensor:
        """Take each row's newest token (int64; bos at the first step), return logits_BV for the next.

        Updates the cache. The logits are those of `forward` at the same position, in eval mode.
        """
        position_1 = torch.tensor([cache.num_steps], device=token_B.device)
        rotary = rotary_table(position_1, self.head_width)
        x_B1D = self._embed(token_B[:, None])
        for layer, memory, past in zip(self.layers, cache.memories, cache.pasts, strict=True):
            x_B1D = layer(x_B1D, rotary, memory, cache.is_frame_seen_B11T, past)
        cache.num_steps += 1
        return self.output(self.norm(x_B1D))[:, 0]

    def _project_memory(self, memory_BTD: Tensor) -> list[KeyValue]:
        layers = cast(Iterable[DecoderLayer], self.layers)
        return [layer.project_memory(memory_BTD) for layer in layers]

    def _embed(self, tokens_BU: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens_BU) * self.embedding_scale)

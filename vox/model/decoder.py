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
from vox.model.encoded import Encoded
from vox.model.feedforward import SwiGLU
from vox.model.initialise import initialise
from vox.model.rotary import Rotary, rotary_table


@dataclass
class DecoderCache:
    """What decoding keeps between steps; every row has taken the same number of them."""

    memories: list[KeyValue]  # one a layer: the audio's keys and values, computed once
    is_frame_seen_B11T: Tensor
    pasts: list[KeyValueBuffer]  # one a layer: the labels' keys and values
    label_positions_BT: Tensor | None  # each frame's; None where cross-attention has no positions
    num_steps: int = 0

    def select(self, index_B: Tensor) -> "DecoderCache":
        """Return a cache that holds these rows, in this order; a row may be taken more than once.

        The new cache shares nothing that a step changes with the old one.
        """
        return DecoderCache(
            memories=[(keys[index_B], values[index_B]) for keys, values in self.memories],
            is_frame_seen_B11T=self.is_frame_seen_B11T[index_B],
            pasts=[past.select(index_B) for past in self.pasts],
            label_positions_BT=None if self.label_positions_BT is None else self.label_positions_BT[index_B],
            num_steps=self.num_steps,
        )

    def select_hypotheses(self, index_N: Tensor, audio_B: Tensor | None = None) -> "DecoderCache":
        """Return a cache of these hypotheses, in this order; those of one utterance share its audio.

        index_N: rows of this cache; row n of the new one belongs to utterance n // (N / B).
        audio_B: the utterances that are kept; None: all, and their audio is not copied.
        """
        memories, is_frame_seen_B11T, positions_BT = (
            self.memories,
            self.is_frame_seen_B11T,
            self.label_positions_BT,
        )
        if audio_B is not None:
            memories = [(keys[audio_B], values[audio_B]) for keys, values in memories]
            is_frame_seen_B11T = is_frame_seen_B11T[audio_B]
            positions_BT = None if positions_BT is None else positions_BT[audio_B]
        return DecoderCache(
            memories=memories,
            is_frame_seen_B11T=is_frame_seen_B11T,
            pasts=[past.select(index_N) for past in self.pasts],
            label_positions_BT=positions_BT,
            num_steps=self.num_steps,
        )


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; each behind its LayerNorm, and one for the memory."""

    def __init__(
        self, d_model: int, num_heads: int, d_ff: int, dropout: float, context: int | None = None
    ) -> None:
        super().__init__()
        self.context = context
        self.self_norm = nn.LayerNorm(d_model)
        self.self_attention = SelfAttention(d_model, num_heads, dropout)
        self.cross_norm = nn.LayerNorm(d_model)
        self.memory_norm = nn.LayerNorm(d_model)
        self.cross_attention = CrossAttention(d_model, num_heads, dropout)
        self.feedforward_norm = nn.LayerNorm(d_model)
        self.feedforward = SwiGLU(d_model, d_ff, dropout)
        self.dropout = nn.Dropout(dropout)

    def project_memory(self, memory_BTD: Tensor, rotary: Rotary | None) -> KeyValue:
        """Return the keys and values that the labels of this layer attend to."""
        return self.cross_attention.project_memory(self.memory_norm(memory_BTD), rotary)

    def forward(
        self,
        x_BUD: Tensor,
        rotary: Rotary,
        memory: KeyValue,
        is_frame_seen: Tensor,
        cross_rotary: Rotary | None,
        is_label_seen_UU: Tensor | None = None,
        past: KeyValueBuffer | None = None,
    ) -> Tensor:
        """Map [B, U, D] to [B, U, D]: whole sequences without a past, one step (U = 1) with one.

        memory, is_frame_seen (bool, [B, 1, 1, T] or [B, 1, U, T]) and cross_rotary (the labels' positions in
        cross-attention; None where it has none) may have fewer rows than x: then each serves as many rows of
        x in turn, laid one after another along U. is_label_seen_UU: which labels each position of a whole
        sequence sees; None: all up to its own.
        """
        normed_BUD = self.self_norm(x_BUD)
        if past is None:
            is_causal = is_label_seen_UU is None
            attended_BUD = self.self_attention(normed_BUD, rotary, is_label_seen_UU, is_causal=is_causal)
        else:
            attended_BUD = self.self_attention.step(normed_BUD, rotary, past, self.context)
        x_BUD = x_BUD + self.dropout(attended_BUD)
        query_BUD = self.cross_norm(x_BUD).reshape(len(memory[0]), -1, x_BUD.shape[2])
        heard_BUD = self.cross_attention(query_BUD, memory, is_frame_seen, cross_rotary).reshape(x_BUD.shape)
        x_BUD = x_BUD + self.dropout(heard_BUD)
        return x_BUD + self.dropout(self.feedforward(self.feedforward_norm(x_BUD)))


class Decoder(nn.Module):
    """Embedding, layers, LayerNorm, output (not tied to the embedding)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_pieces, config.d_model)
        self.embedding_scale = config.d_model**0.5
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(
                config.d_model,
                config.decoder_heads,
                config.decoder_d_ff,
                config.dropout,
                config.decoder_context,
            )
            for _ in range(config.decoder_layers)
        )
        self.context = config.decoder_context
        self.norm = nn.LayerNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.num_pieces, bias=False)
        self.head_width = config.d_model // config.decoder_heads
        initialise(self)

    def forward(self, tokens_BU: Tensor, encoded: Encoded) -> Tensor:
        """Score the label after each of these (teacher forcing).

        tokens_BU: int64, bos first, padded on the right with any id. As many rows as there are utterances, or
        a multiple: then row n is of utterance n // (rows / utterances). Returns logits_BUV, where position u
        depends on tokens 0 to u only, so that padding changes nothing before it.
        """
        index_U = torch.arange(tokens_BU.shape[1], device=tokens_BU.device)
        rotary = rotary_table(index_U, self.head_width)
        cross_rotary = None if encoded.label_positions_BT is None else rotary
        is_frame_seen = self._see_frames(_see_real_frames(encoded), encoded.label_positions_BT, index_U)
        is_label_seen_UU = None if self.context is None else _see_recent_labels(index_U, self.context)
        num_hypotheses = len(tokens_BU) // len(encoded.hidden_BTD)
        if num_hypotheses > 1:
            is_frame_seen = is_frame_seen.repeat(1, 1, num_hypotheses if is_frame_seen.shape[2] > 1 else 1, 1)
            if cross_rotary is not None:
                cross_rotary = Rotary(*(table_UK.repeat(num_hypotheses, 1) for table_UK in cross_rotary))
        x_BUD = self._embed(tokens_BU)
        for layer, memory in zip(self.layers, self._project_memory(encoded), strict=True):
            x_BUD = layer(x_BUD, rotary, memory, is_frame_seen, cross_rotary, is_label_seen_UU)
        return self.output(self.norm(x_BUD))

    @torch.no_grad()
    def start(self, encoded: Encoded) -> DecoderCache:
        """Prepare to decode step by step: project the audio for every layer, once."""
        return DecoderCache(
            memories=self._project_memory(encoded),
            is_frame_seen_B11T=_see_real_frames(encoded),
            pasts=[KeyValueBuffer() for _ in self.layers],
            label_positions_BT=encoded.label_positions_BT,
        )

    @torch.no_grad()
    def step(self, token_B: Tensor, cache: DecoderCache) -> Tensor:
        """Take each row's newest token (int64; bos at the first step), return logits_BV for the next.

        A row is an utterance, or a hypothesis of one (`DecoderCache.select_hypotheses`). Updates the cache.
        The logits are those of `forward` at the same position, in eval mode.
        """
        # Filled on the device: a copy from the host would be waited for.
        position_1 = torch.full((1,), cache.num_steps, device=token_B.device)
        rotary = rotary_table(position_1, self.head_width)
        cross_rotary = None if cache.label_positions_BT is None else rotary
        is_frame_seen = self._see_frames(cache.is_frame_seen_B11T, cache.label_positions_BT, position_1)
        x_B1D = self._embed(token_B[:, None])
        for layer, memory, past in zip(self.layers, cache.memories, cache.pasts, strict=True):
            x_B1D = layer(x_B1D, rotary, memory, is_frame_seen, cross_rotary, past=past)
        cache.num_steps += 1
        return self.output(self.norm(x_B1D))[:, 0]

    def _see_frames(self, is_real_B11T: Tensor, positions_BT: Tensor | None, index_U: Tensor) -> Tensor:
        """Return which frames the labels at these indices see: [B, 1, 1, T], or [B, 1, U, T] in a context.

        A context shows the frames whose position is less than so many labels and a half away: frames gather
        at whole numbers, and an edge there would leave it to rounding, and so to the batch, which of them
        are seen. A label beyond the last position sees what a label at the last position sees, so that there
        is always a frame.
        """
        if self.context is None or positions_BT is None:
            return is_real_B11T
        centre_BU = torch.minimum(index_U[None, :].to(positions_BT.dtype), positions_BT[:, -1:])
        distance_BUT = (positions_BT[:, None, :] - centre_BU[:, :, None]).abs()
        return is_real_B11T & (distance_BUT < self.context + 0.5)[:, None]

    def _project_memory(self, encoded: Encoded) -> list[KeyValue]:
        positions_BT = encoded.label_positions_BT
        rotary = None if positions_BT is None else rotary_table(positions_BT[:, None], self.head_width)
        layers = cast(Iterable[DecoderLayer], self.layers)
        return [layer.project_memory(encoded.hidden_BTD, rotary) for layer in layers]

    def _embed(self, tokens_BU: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens_BU) * self.embedding_scale)


def _see_real_frames(encoded: Encoded) -> Tensor:
    return keys_to_mask(lengths_to_mask(encoded.num_frames_B, encoded.hidden_BTD.shape[1]))


def _see_recent_labels(index_U: Tensor, context: int) -> Tensor:
    """Return [U, U] (query, key), True where the key is the query or one of the context - 1 before it."""
    distance_UU = index_U[:, None] - index_U[None, :]
    return (distance_UU >= 0) & (distance_UU < context)

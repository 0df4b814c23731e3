"""Greedy decoding with the attention decoder, one label a step.

Letters: B batch, V vocabulary.
"""

import torch
from torch import Tensor

from vox.decode.hypothesis import Hypothesis
from vox.model.decoder import Decoder
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser
from vox.text import BOS_ID, EOS_ID, PAD_ID
from vox.units import FRAME_RATE

MAX_LABELS_PER_SECOND = 25  # several times faster than speech: only a decoder that loops reaches it
MIN_LABEL_LIMIT = 10  # for very short audio


@torch.no_grad()
def greedy_attention(
    decoder: Decoder, encoded: Encoded, max_labels_B: Tensor
) -> tuple[list[list[int]], list[bool]]:
    """Take the best label at each step until eos; pad and bos are never taken.

    Returns each row's labels without eos, and is_truncated: True if max_labels were taken and the next label
    would not have been eos. Finished rows leave the batch, so the longest row adds no cost to the others.
    """
    limits = max_labels_B.tolist()
    labels: list[list[int]] = [[] for _ in limits]
    is_truncated = [False] * len(limits)
    rows = list(range(len(limits)))
    cache = decoder.start(encoded)
    token_B = torch.full_like(encoded.num_frames_B, BOS_ID, dtype=torch.int64)
    while rows:
        logits_BV = decoder.step(token_B, cache)
        for never in (
            PAD_ID,
            BOS_ID,
        ):  # one at a time: indexing with a list copies it to the device and synchronizes
            logits_BV[:, never] = float("-inf")
        token_B = logits_BV.argmax(dim=-1)
        kept = []
        for position, (row, token) in enumerate(zip(rows, token_B.tolist(), strict=True)):
            if token == EOS_ID:
                continue
            if len(labels[row]) >= limits[row]:
                is_truncated[row] = True
                continue
            labels[row].append(token)
            kept.append(position)
        if len(kept) < len(rows):
            index_B = torch.tensor(kept, dtype=torch.int64, device=token_B.device)
            cache, token_B = cache.select(index_B), token_B[index_B]
            rows = [rows[position] for position in kept]
    return labels, is_truncated


def label_limits(num_frames_B: Tensor) -> Tensor:
    """Return the maximum number of labels for each utterance, int64 [B]."""
    return (num_frames_B * MAX_LABELS_PER_SECOND // FRAME_RATE).clamp(min=MIN_LABEL_LIMIT)


@torch.no_grad()
def decode_attention(recogniser: Recogniser, encoded: Encoded) -> list[Hypothesis]:
    """Decode encoded audio greedily with the attention decoder, up to MAX_LABELS_PER_SECOND."""
    limits_B = label_limits(encoded.num_frames_B)
    labels, is_truncated = greedy_attention(recogniser.decoder, encoded, limits_B)
    return [Hypothesis(*pair) for pair in zip(labels, is_truncated, strict=True)]

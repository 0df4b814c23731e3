"""Forced alignment: the best CTC path of a known text, which gives the time of each label.

Letters: T frames, V vocabulary, U labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchaudio.functional import forced_align

from vox.decode.ctc import min_ctc_frames
from vox.text import BLANK_ID


@dataclass(frozen=True)
class Span:
    """The frames of one label, from `start` up to but not including `end`."""

    start: int
    end: int


@torch.no_grad()
def align_labels(log_probs_TV: Tensor, labels: Sequence[int]) -> list[Span] | None:
    """Return the frames of each label on the best CTC path of these labels (Viterbi).

    log_probs_TV: log-probabilities of the CTC head for one utterance without padding, any float type.
    labels: without blanks. Returns None if no path exists because the labels need more frames than there
    are (an attention decoder can produce such a text).
    """
    assert BLANK_ID not in labels
    if not labels:
        return []
    if min_ctc_frames(labels) > len(log_probs_TV):
        return None
    # torchaudio refuses bfloat16, more than one utterance, and an empty text.
    targets_1U = torch.tensor([list(labels)], device=log_probs_TV.device)
    path_1T, _ = forced_align(log_probs_TV[None].float().contiguous(), targets_1U, blank=BLANK_ID)
    return _spans(path_1T[0].tolist())


def _spans(path: Sequence[int]) -> list[Span]:
    """Group a path into runs of equal labels, without the blanks."""
    spans = []
    start = 0
    for frame in range(1, len(path) + 1):
        if frame == len(path) or path[frame] != path[start]:
            if path[start] != BLANK_ID:
                spans.append(Span(start, frame))
            start = frame
    return spans

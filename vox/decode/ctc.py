"""CTC (Graves et al. 2006): greedy decoding, and the minimum number of frames of a label sequence.

Letters: B batch, T frames, V vocabulary.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vox.decode.hypothesis import Hypothesis
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser
from vox.text import BLANK_ID


def min_ctc_frames(labels: Sequence[int]) -> int:
    """Return the minimum number of frames for labels: one each, and a blank between equal neighbours."""
    return len(labels) + sum(first == second for first, second in pairwise(labels))


@torch.no_grad()
def greedy_ctc(scores_BTV: Tensor, num_frames_B: Tensor) -> list[list[int]]:
    """Take the best label of each real frame, merge repeats, then drop blanks."""
    best_BT = scores_BTV.argmax(dim=-1).cpu()
    return [
        [label for label in best_T[:num_frames].unique_consecutive().tolist() if label != BLANK_ID]
        for best_T, num_frames in zip(best_BT, num_frames_B.tolist(), strict=True)
    ]


@torch.no_grad()
def decode_ctc(recogniser: Recogniser, encoded: Encoded) -> list[Hypothesis]:
    """Decode encoded audio greedily with the CTC head."""
    return [Hypothesis(ids) for ids in greedy_ctc(encoded.ctc_log_probs_BTV, encoded.num_frames_B)]

"""The label clock: each frame's position, counted in labels.

A frame's position is the number of labels that CTC expects to have begun by then. The decoder's
cross-attention turns its keys by it and its queries by the label's index, so that both count in the same
unit. Without it the decoder cannot know where in the audio it is: rotary positions elsewhere are relative,
and nothing else gives the encoded audio a place.

Letters: B batch, T frames, V vocabulary.
"""

import torch
from torch import Tensor

from vox.masks import zero_padding
from vox.text import BLANK_ID


@torch.no_grad()
def count_labels_begun(ctc_log_probs_BTV: Tensor, is_valid_BT: Tensor) -> Tensor:
    """Return how many labels CTC expects to have begun by each frame, [B, T], in the dtype given.

    A label v begins at frame s where v is emitted at s and not at s - 1. If frames are independent, which
    is what CTC assumes, the expected number of beginnings up to frame t is the sum over s <= t and labels v
    other than blank of p(v at s) (1 - p(v at s - 1)). It grows by at most one a frame. Padded frames keep
    the count of the last real one. No gradient flows back.
    """
    probs_BTV = zero_padding(ctc_log_probs_BTV.exp(), is_valid_BT)
    probs_BTV[:, :, BLANK_ID] = 0.0
    begins_BT = probs_BTV.sum(dim=2)
    begins_BT[:, 1:] -= (probs_BTV[:, 1:] * probs_BTV[:, :-1]).sum(dim=2)
    return begins_BT.cumsum(dim=1)

"""Which positions of a padded batch are real, and zeros where they are not.

Letters: B batch, T frames, D width. True in a mask means a real position.
"""

import torch
from torch import Tensor


def lengths_to_mask(lengths_B: Tensor, max_length: int) -> Tensor:
    """Return is_valid [B, max_length], bool: True on the first `lengths_B` positions of each row."""
    return torch.arange(max_length, device=lengths_B.device)[None, :] < lengths_B[:, None]


def zero_padding(x_BTD: Tensor, is_valid_BT: Tensor) -> Tensor:
    """Return x with zeros on padded frames, whatever stood there (NaN included)."""
    return x_BTD.masked_fill(~is_valid_BT[:, :, None], 0.0)


def keys_to_mask(is_valid_BT: Tensor) -> Tensor:
    """Return the attention mask [B, 1, 1, T] under which every query sees the real frames only.

    The first frame is always seen: a row without any key would be a softmax over nothing.
    """
    is_first_T = torch.arange(is_valid_BT.shape[1], device=is_valid_BT.device) == 0
    return (is_valid_BT | is_first_T)[:, None, None, :]

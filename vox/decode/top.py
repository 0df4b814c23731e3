"""Top-k of scores, with ties resolved by position on every device.

Letters: B batch, N scores, K kept.
"""

import torch
from torch import Tensor


def top_scores(scores_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the highest `count` of each row, best first, and their positions: float32 and int64 [B, K].

    scores_BN: float32 without NaN. Among equal scores the lower position comes first. `torch.topk` does not
    guarantee that, so it gets unique integers: the score in the high bits, the position in the low bits.
    """
    bits_BN = (scores_BN + 0.0).view(torch.int32)  # adding zero turns -0.0 into 0.0
    # Read as integers, positive floats keep their order and negative floats reverse it.
    ordered_BN = torch.where(bits_BN < 0, bits_BN ^ 0x7FFFFFFF, bits_BN).to(torch.int64)
    positions_N = torch.arange(scores_BN.shape[1], device=scores_BN.device)
    keys_BN = (ordered_BN << 31) + (0x7FFFFFFF - positions_N)
    keys_BK = keys_BN.topk(count, dim=1).values
    chosen_BK = 0x7FFFFFFF - (keys_BK & 0x7FFFFFFF)
    return scores_BN.gather(1, chosen_BK), chosen_BK

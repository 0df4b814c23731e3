"""CTC prefix scores (Watanabe et al. 2017, "Hybrid CTC/attention architecture", algorithm 2).

psi(h) is the log-probability that CTC's labels begin with h. A search that extends hypotheses label by
label, not frame by frame, uses it as the CTC score.

The published recursion loops over frames. Here both sums over frames are scans: subtracting the running sum
of y turns `x[t] = logaddexp(x[t-1], a[t]) + y[t]` into a cumulative log-sum-exp. The running sums reach
thousands of nats, so the scans use float64. The results are float32.

Letters: B batch, K hypotheses, T frames, P labels to score.
"""

import torch
from torch import Tensor

from vox.masks import lengths_to_mask, zero_padding
from vox.text import BLANK_ID

NEVER = float("-inf")
LOWEST = -1e4  # nats a frame


class CtcPrefix:
    """Hypotheses of a batch, with the probability of their alignments up to every frame.

    label_BKT, blank_BKT: float64 [B, K, T + 1], log-probability of the alignments of exactly this hypothesis
    over the first t frames that end in its last label, or in blank. last_BK: the last label; BLANK_ID for
    an empty hypothesis.
    """

    def __init__(
        self,
        log_probs_BTV: Tensor,
        num_frames_B: Tensor,
        label_BKT: Tensor,
        blank_BKT: Tensor,
        last_BK: Tensor,
    ) -> None:
        self.log_probs_BTV = log_probs_BTV
        self.num_frames_B = num_frames_B
        self.label_BKT = label_BKT
        self.blank_BKT = blank_BKT
        self.last_BK = last_BK

    @classmethod
    def start(cls, log_probs_BTV: Tensor, num_frames_B: Tensor) -> "CtcPrefix":
        """Return one empty hypothesis an utterance: all frames are blank.

        log_probs_BTV: float32; num_frames_B: int64. Padded frames may hold anything.
        """
        is_real_BT = lengths_to_mask(num_frames_B, log_probs_BTV.shape[1])
        # Minus infinity minus itself is NaN, so use -10000 instead: as good as impossible.
        log_probs_BTV = zero_padding(log_probs_BTV, is_real_BT).clamp(min=LOWEST)
        blank_B1T = _running_sum(log_probs_BTV[:, None, :, BLANK_ID].to(torch.float64))
        last_B1 = torch.full_like(num_frames_B[:, None], BLANK_ID)
        return cls(log_probs_BTV, num_frames_B, torch.full_like(blank_B1T, NEVER), blank_B1T, last_B1)

    def scores(self, labels_BKP: Tensor) -> Tensor:
        """Return psi of each hypothesis extended by one label, float32 [B, K, P]; -inf if impossible."""
        total_BKT, blank_BKT = self._before_each_frame()
        heard_BKPT = self._hear(labels_BKP)
        begun_BKP = (total_BKT[:, :, None] + heard_BKPT).logsumexp(-1)
        # To repeat the last label, a blank must come before it.
        again_BK = (blank_BKT + self._hear(self.last_BK[:, :, None])[:, :, 0]).logsumexp(-1)
        return torch.where(labels_BKP == self.last_BK[:, :, None], again_BK[:, :, None], begun_BKP)

    def end(self) -> Tensor:
        """Return the log-probability of each hypothesis as a whole text, float32 [B, K]."""
        whole_BKT = torch.logaddexp(self.label_BKT, self.blank_BKT)
        index_BK1 = self.num_frames_B[:, None, None].expand(-1, whole_BKT.shape[1], 1)
        return whole_BKT.gather(2, index_BK1)[..., 0].float()

    def advance(self, rows_B: Tensor | None, parents_BK: Tensor, labels_BK: Tensor) -> "CtcPrefix":
        """Return these parents, each extended by one label.

        rows_B: the utterances to keep; None: all. parents_BK: indices into the row's hypotheses.
        """
        log_probs_BTV, num_frames_B = self.log_probs_BTV, self.num_frames_B
        label_BKT, blank_BKT, last_BK = self.label_BKT, self.blank_BKT, self.last_BK
        if rows_B is not None:
            log_probs_BTV, num_frames_B = log_probs_BTV[rows_B], num_frames_B[rows_B]
            label_BKT, blank_BKT, last_BK = label_BKT[rows_B], blank_BKT[rows_B], last_BK[rows_B]
        index_BKT = parents_BK[:, :, None].expand(-1, -1, label_BKT.shape[2])
        parent = CtcPrefix(
            log_probs_BTV,
            num_frames_B,
            label_BKT.gather(1, index_BKT),
            blank_BKT.gather(1, index_BKT),
            last_BK.gather(1, parents_BK),
        )
        return parent._extend(labels_BK)

    def _extend(self, labels_BK: Tensor) -> "CtcPrefix":
        total_BKT = torch.logaddexp(self.label_BKT, self.blank_BKT)
        is_again_BK1 = (labels_BK == self.last_BK)[:, :, None]
        begin_BKT = torch.where(is_again_BK1, self.blank_BKT, total_BKT)[:, :, :-1]
        heard_BKT = self._hear(labels_BK[:, :, None])[:, :, 0].to(torch.float64)
        blank_B1T = self.log_probs_BTV[:, None, :, BLANK_ID].to(torch.float64)
        label_BKT = _scan(begin_BKT, _running_sum(heard_BKT))
        blank_BKT = _scan(label_BKT[:, :, :-1], _running_sum(blank_B1T))
        return CtcPrefix(self.log_probs_BTV, self.num_frames_B, label_BKT, blank_BKT, labels_BK)

    def _before_each_frame(self) -> tuple[Tensor, Tensor]:
        """Return float32 [B, K, T] of all alignments before each frame, and of those that end in blank."""
        is_padded_B1T = ~lengths_to_mask(self.num_frames_B, self.log_probs_BTV.shape[1])[:, None]
        total_BKT = torch.logaddexp(self.label_BKT, self.blank_BKT)[:, :, :-1]
        return (
            total_BKT.float().masked_fill(is_padded_B1T, NEVER),
            self.blank_BKT[:, :, :-1].float().masked_fill(is_padded_B1T, NEVER),
        )

    def _hear(self, labels_BKP: Tensor) -> Tensor:
        """Return each frame's log-probability of these labels, [B, K, P, T]."""
        batch, num_hypotheses, num_labels = labels_BKP.shape
        index_BTN = labels_BKP.reshape(batch, 1, -1).expand(-1, self.log_probs_BTV.shape[1], -1)
        heard_BTN = self.log_probs_BTV.gather(2, index_BTN)
        return heard_BTN.transpose(1, 2).reshape(batch, num_hypotheses, num_labels, -1)


def _running_sum(x_BKT: Tensor) -> Tensor:
    """Return [B, K, T + 1]: the sum of the first t entries."""
    return torch.nn.functional.pad(x_BKT.cumsum(-1), (1, 0))


def _scan(inflow_BKT: Tensor, sum_BKT: Tensor) -> Tensor:
    """Return x [B, K, T + 1], x[0] = -inf, x[t] = logaddexp(x[t-1], inflow[t]) + sum[t] - sum[t-1]."""
    scanned_BKT = (inflow_BKT - sum_BKT[:, :, :-1]).logcumsumexp(-1) + sum_BKT[:, :, 1:]
    return torch.nn.functional.pad(scanned_BKT, (1, 0), value=NEVER)

"""What the encoder and the CTC head make of a batch: all that losses and decoders read.

Letters: B batch, T frames, D model width, V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """A batch of encoded audio.

    hidden_BTD: the encoder's output, zeros on padded frames.
    num_frames_B: int64, the real frames of each utterance.
    ctc_log_probs_BTV: log-probabilities of the CTC head, float32 or float64.
    label_positions_BT: each frame's position, counted in labels (vox/model/label_clock.py); None where
    cross-attention has no positions.
    """

    hidden_BTD: Tensor
    num_frames_B: Tensor
    ctc_log_probs_BTV: Tensor
    label_positions_BT: Tensor | None

"""Encode a long recording in windows: each has context on both sides of the frames it owns.

Every frame is owned by exactly one window, so the owned frames, in order, are the whole recording's.

B batch, S samples, T frames, C channels, V vocabulary, D model width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser
from vox.units import FRAME_RATE, HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from vox.wavlm.measure import Measured

# Length of a window, context included: that of the longest training recording, within these bounds.
MIN_WINDOW_FRAMES = 8 * FRAME_RATE
MAX_WINDOW_FRAMES = 32 * FRAME_RATE
MAX_CONTEXT_FRAMES = 4 * FRAME_RATE  # on each side: docs/log.md, "long recordings"

ENCODER_STEP = 4  # frames: the encoder's lowest rate is a quarter of WavLM's


@dataclass(frozen=True)
class Window:
    """Frames of a window: all, [first, end), and the owned ones among them, [own_first, own_end)."""

    first: int
    own_first: int
    own_end: int
    end: int


def plan_windows(num_frames: int, window_frames: int, context_frames: int | None = None) -> list[Window]:
    """Divide a recording into windows of at most `window_frames`; each frame is owned by exactly one.

    context_frames: on each side; a quarter of the window, at most MAX_CONTEXT_FRAMES, if None.
    Windows begin at multiples of 4 frames, so the encoder's downsampled frames are the same in all windows.
    """
    if context_frames is None:
        context_frames = min(MAX_CONTEXT_FRAMES, window_frames // 4 // ENCODER_STEP * ENCODER_STEP)
    assert context_frames % ENCODER_STEP == 0, "a window would not begin where the encoder's steps do"
    step = (window_frames - 2 * context_frames) // ENCODER_STEP * ENCODER_STEP
    assert step > 0, "a window of context only"
    return [
        Window(
            first=max(0, own_first - context_frames),
            own_first=own_first,
            own_end=min(own_first + step, num_frames),
            end=min(own_first + step + context_frames, num_frames),
        )
        for own_first in range(0, num_frames, step)
    ]


def encode_windows(
    recogniser: Recogniser, waveform_S: Tensor, measured: Measured, windows: Sequence[Window]
) -> Iterator[Encoded]:
    """Yield the owned frames of each window, without label positions: those depend on the piece's start.

    waveform_S: float32, on the CPU. If the model normalises features by utterance, a window counts as one.
    """
    device = next(recogniser.parameters()).device
    for window in windows:
        end_sample = (window.end - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES
        seen_BS = waveform_S[None, window.first * HOP_SAMPLES : end_sample].to(device)
        num_samples_B = torch.tensor([seen_BS.shape[1]], device=device)
        features_BTC, num_frames_B = recogniser.extractor(seen_BS, num_samples_B, measured)
        encoded = recogniser.encode(features_BTC, num_frames_B)
        yield slice_frames(encoded, window.own_first - window.first, window.own_end - window.first)


def slice_frames(encoded: Encoded, start: int, end: int) -> Encoded:
    """Return a copy of frames [start, end) of one utterance, without label positions."""
    return Encoded(
        encoded.hidden_BTD[:, start:end].clone(),
        torch.tensor([end - start], device=encoded.num_frames_B.device),
        encoded.ctc_log_probs_BTV[:, start:end].clone(),
        None,
    )

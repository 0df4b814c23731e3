"""Samples, frames and seconds: every conversion between them, in integers.

Each constant is computed from the ones above it, so that they cannot drift apart.
"""

import math
from collections.abc import Sequence
from typing import Any

SAMPLE_RATE = 16_000  # samples per second, after conversion

# WavLM's convolution stem (Chen et al. 2022, section III-A): kernel and stride of each layer, in samples
# of that layer's input.
STEM_KERNELS = (10, 3, 3, 3, 3, 2, 2)
STEM_STRIDES = (5, 2, 2, 2, 2, 2, 2)


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Count the samples that one frame of a stack of convolutions sees, first layer first."""
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field


HOP_SAMPLES = math.prod(STEM_STRIDES)  # 320: 20 ms
RECEPTIVE_FIELD_SAMPLES = receptive_field(
    STEM_KERNELS, STEM_STRIDES
)  # 400: 25 ms; shorter audio has no frame
FRAME_RATE = SAMPLE_RATE // HOP_SAMPLES  # 50 frames per second


def samples_to_frames(
    num_samples: Any, kernels: Sequence[int] = STEM_KERNELS, strides: Sequence[int] = STEM_STRIDES
) -> Any:
    """Count the frames that the convolution stem returns for a number of samples.

    Takes an int, an integer numpy array or an integer torch tensor, and returns the same kind. Audio
    shorter than the receptive field has 0 frames. Nothing is clamped or rounded: the count is the
    convolutions' own, layer by layer.
    """
    length = num_samples
    for kernel, stride in zip(kernels, strides, strict=True):
        length = ((length - kernel) // stride + 1) * (length >= kernel)
    return length


def halve_frames(num_frames: Any) -> Any:
    """Count the frames after a convolution of kernel 3, stride 2, padding 1 (int, array or tensor)."""
    return (num_frames + 1) // 2


def samples_to_seconds(num_samples: int) -> float:
    """Convert samples at SAMPLE_RATE to seconds."""
    return num_samples / SAMPLE_RATE


def seconds_to_samples(seconds: float) -> int:
    """Convert seconds to whole samples at SAMPLE_RATE, rounding down."""
    return int(seconds * SAMPLE_RATE)

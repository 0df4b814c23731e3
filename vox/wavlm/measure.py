"""The statistics that WavLM takes over a whole recording, for computing it in windows.

Two of WavLM's steps look at all of their input: bringing the waveform to mean 0 and variance 1, and the group
norm of the stem's first convolution. Measured once over the recording and handed to each window, they are
the same everywhere, and a window differs from the whole only by what attention and the convolution of
positions do not reach.

B batch, S samples, T frames of the first convolution, K kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vox.units import samples_to_frames
from vox.wavlm.stem import NORMALISE_EPS, ConvLayer, ConvStem, Folded, fold_moments

BLOCK_STEPS = 2**17  # of the first convolution: 41 s, 10 MB of windows in float64


@dataclass(frozen=True)
class Measured:
    """Statistics of a whole recording.

    mean, scale: a clean sample is (sample - mean) * scale. folded: the first convolution with its group norm.
    """

    mean: float
    scale: float
    folded: Folded

    def clean(self, waveforms_BS: Tensor) -> Tensor:
        """Return waveforms with the recording's mean and variance taken out, if that is asked for."""
        return (
            waveforms_BS if (self.mean, self.scale) == (0.0, 1.0) else (waveforms_BS - self.mean) * self.scale
        )


@torch.no_grad()
def measure(stem: ConvStem, waveform_S: Tensor, do_normalize: bool) -> Measured:
    """Measure a whole recording, float32 [S] on the CPU, block by block with float64 sums.

    do_normalize: the WavLM's own. The result is on the stem's device.
    """
    mean, scale = _measure_samples(waveform_S) if do_normalize else (0.0, 1.0)
    layer = stem.conv_layers[0]
    assert isinstance(layer, ConvLayer)
    if not isinstance(layer.layer_norm, nn.GroupNorm):
        return Measured(mean, scale, (None, None))
    plain = Measured(mean, scale, (None, None))
    num_steps = max(1, samples_to_frames(len(waveform_S), (layer.kernel,), (layer.stride,)))
    sum_K = torch.zeros(layer.kernel, dtype=torch.float64)
    for windows_TK in _windows(waveform_S, layer, plain):
        sum_K += windows_TK.sum(0)
    mean_K = sum_K / num_steps
    covariance_KK = torch.zeros(layer.kernel, layer.kernel, dtype=torch.float64)
    for windows_TK in _windows(waveform_S, layer, plain):
        centred_TK = windows_TK - mean_K
        covariance_KK += centred_TK.T @ centred_TK
    device = layer.conv.weight.device
    moments = mean_K[None].to(device), covariance_KK[None].to(device) / num_steps
    weight_BKD, bias_BD = fold_moments(*moments, layer.conv, layer.layer_norm)
    return Measured(mean, scale, (weight_BKD[:, :, None], bias_BD))


def _measure_samples(waveform_S: Tensor) -> tuple[float, float]:
    blocks = waveform_S.split(BLOCK_STEPS)
    mean = sum(float(block_S.double().sum()) for block_S in blocks) / len(waveform_S)
    variance = sum(float((block_S.double() - mean).square().sum()) for block_S in blocks) / len(waveform_S)
    return mean, (variance + NORMALISE_EPS) ** -0.5


def _windows(waveform_S: Tensor, layer: ConvLayer, measured: Measured) -> Iterator[Tensor]:
    """Yield all that the first convolution sees, in order, float64 [T, K] a block."""
    num_steps = samples_to_frames(len(waveform_S), (layer.kernel,), (layer.stride,))
    for start in range(0, num_steps, BLOCK_STEPS):
        end = min(start + BLOCK_STEPS, num_steps)
        samples_S = waveform_S[start * layer.stride : (end - 1) * layer.stride + layer.kernel]
        yield measured.clean(samples_S).unfold(0, layer.kernel, layer.stride).double()

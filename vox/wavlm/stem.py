"""WavLM's convolution stem, with statistics over each utterance's own samples only.

B batch, S samples, T frames (of whichever layer), C channels, D model width. Masks: True = real.

The stem is never trained here, so it always runs without gradients; that is what lets the norm below work
in place on the largest activation of the whole model. Module names follow Hugging Face's WavLMModel, so that
state dicts fit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vox.masks import lengths_to_mask
from vox.units import samples_to_frames

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu}

# Wav2Vec2FeatureExtractor's constant, under the root with the variance.
NORMALISE_EPS = 1e-7


def clean_waveforms(waveforms_BS: Tensor, num_samples_B: Tensor, do_normalize: bool) -> Tensor:
    """Zero whatever stands in the padding and, if asked, bring each utterance to mean 0 and variance 1.

    The padding may hold anything, NaN included. Statistics are over valid samples, in two passes.
    """
    is_padding_BS = ~lengths_to_mask(num_samples_B, waveforms_BS.shape[1])
    clean_BS = waveforms_BS.masked_fill(is_padding_BS, 0.0)
    if not do_normalize:
        return clean_BS
    count_B1 = num_samples_B.clamp(min=1)[:, None]
    centred_BS = (clean_BS - clean_BS.sum(1, keepdim=True) / count_B1).masked_fill(is_padding_BS, 0.0)
    variance_B1 = centred_BS.square().sum(1, keepdim=True) / count_B1
    return centred_BS * torch.rsqrt(variance_B1 + NORMALISE_EPS)


def masked_group_norm_(frames_BCT: Tensor, num_frames_B: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Normalise each channel over each utterance's valid frames, in place unless under autocast.

    One group a channel, in the norm's own precision (float32) and two passes: mean first, then the variance
    of what is left. A plain group norm would count padded frames, and so change every frame of a padded
    utterance. The result has the input's dtype. Padded frames come out as the bias.
    """
    dtype = frames_BCT.dtype
    frames_BCT = frames_BCT.to(norm.weight.dtype)
    is_valid_B1T = lengths_to_mask(num_frames_B, frames_BCT.shape[2])[:, None, :].to(frames_BCT.dtype)
    count_B11 = num_frames_B.clamp(min=1)[:, None, None]
    frames_BCT.mul_(is_valid_B1T)
    mean_BC1 = frames_BCT.sum(2, keepdim=True) / count_B11
    frames_BCT.addcmul_(mean_BC1, is_valid_B1T, value=-1.0)
    # A vector norm of the centred frames needs no squared copy of them (6.5 MB a second of audio).
    variance_BC1 = torch.linalg.vector_norm(frames_BCT, dim=2, keepdim=True).square() / count_B11
    scale_BC1 = norm.weight[:, None] * torch.rsqrt(variance_BC1 + norm.eps)
    return torch.addcmul(norm.bias[:, None], frames_BCT, scale_BC1, out=frames_BCT).to(dtype)


class ConvLayer(nn.Module):
    """One strided convolution, its norm if it has one, and its activation."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        in_channels = config.conv_dim[index - 1] if index else 1
        channels = config.conv_dim[index]
        self.conv = nn.Conv1d(
            in_channels, channels, config.conv_kernel[index], config.conv_stride[index], bias=config.conv_bias
        )
        self.activation = ACTIVATIONS[config.feat_extract_activation]
        self.layer_norm: nn.GroupNorm | nn.LayerNorm | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(channels)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(channels, channels)

    def forward(self, frames_BCT: Tensor, num_frames_B: Tensor) -> Tensor:
        """Return [B, C, T'] from [B, C, T]; `num_frames_B` counts the valid ones among T'."""
        frames_BCT = self.conv(frames_BCT)
        if isinstance(self.layer_norm, nn.GroupNorm):
            frames_BCT = masked_group_norm_(frames_BCT, num_frames_B, self.layer_norm)
        elif self.layer_norm is not None:
            frames_BCT = self.layer_norm(frames_BCT.transpose(1, 2)).transpose(1, 2)
        return self.activation(frames_BCT)


class ConvStem(nn.Module):
    """The seven convolutions from samples to 50 Hz frames (Chen et al. 2022, section III-A).

    None of them pads, so a valid frame never sees past its utterance's last sample.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.kernels = tuple(config.conv_kernel)
        self.strides = tuple(config.conv_stride)
        self.conv_layers = nn.ModuleList(ConvLayer(config, index) for index in range(len(self.kernels)))

    @torch.no_grad()
    def forward(self, waveforms_BS: Tensor, num_samples_B: Tensor) -> Tensor:
        """Return frames [B, T, C] of clean waveforms [B, S] (zeros in the padding)."""
        frames_BCT = waveforms_BS[:, None, :]
        for index, layer in enumerate(self.conv_layers):
            num_frames_B = samples_to_frames(
                num_samples_B, self.kernels[: index + 1], self.strides[: index + 1]
            )
            frames_BCT = layer(frames_BCT, num_frames_B)
        return frames_BCT.transpose(1, 2)


class FeatureProjection(nn.Module):
    """LayerNorm and Linear from the stem's channels to the model's width."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)

    def forward(self, frames_BTC: Tensor) -> Tensor:
        """Return [B, T, D]."""
        return self.projection(self.layer_norm(frames_BTC))

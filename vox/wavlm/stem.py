"""WavLM's convolution stem, with statistics over each utterance's own samples only.

B batch, S samples, T frames (of whichever layer), C channels, K kernel, P parts of a sum, D model width.
Masks: True = real.

The stem is never trained here, so it always runs without gradients, and in the precision of its weights
(`WavLM` turns autocast off for it). Module names follow Hugging Face's WavLMModel, so that state dicts fit.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vox.masks import lengths_to_mask
from vox.units import receptive_field, samples_to_frames
from vox.wavlm.cpu import is_packable, multiply_packed, pack
from vox.wavlm.derived import Derived
from vox.wavlm.linear import ACTIVATIONS, Linear

# Wav2Vec2FeatureExtractor's constant, under the root with the variance.
NORMALISE_EPS = 1e-7

# The first convolution's weight [B, K, 1, D] and bias [B, D] with the group norm in them; None without one.
Folded = tuple[Tensor, Tensor] | tuple[None, None]

BLOCK_FRAMES = 32  # of the stem's output at a time on a CPU: 4 MB after the first convolution of base
SUM_PARTS = 64  # of a sum over all of an utterance's samples
BATCH_FRAMES = 8192  # of an utterance at a time on a GPU: 164 s, 1.1 GB after base's first convolution
# Convolutions, counted from 0, that multiply half-precision numbers where the rest of WavLM does; their sums
# stay float32. They are 70 % of the stem's work. See `WavLM._embed` for what it costs in precision.
HALF_LAYERS = (1, 2)


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


def fold_group_norm(
    waveforms_BS: Tensor, num_frames_B: Tensor, conv: nn.Conv1d, norm: nn.GroupNorm
) -> tuple[Tensor, Tensor]:
    """Return the weight [B, K, C] and bias [B, C] of the convolution of one channel and the norm after it.

    One group a channel, over each utterance's valid frames. The convolution is linear, so its output's mean
    and variance follow from those of its input's windows, K numbers each: nothing of the size of its output,
    the largest activation of the whole model, is ever normalised. The statistics are float64; a bias of the
    convolution's own would be taken away again by the norm.
    """
    num_steps = samples_to_frames(waveforms_BS.shape[1], conv.kernel_size, conv.stride)
    # More padding, for SUM_PARTS parts of equal length.
    waveforms_BS = F.pad(waveforms_BS, (0, -num_steps % SUM_PARTS * conv.stride[0]))
    windows_BTK = waveforms_BS.unfold(1, *conv.kernel_size, *conv.stride).double()
    is_padding_BT1 = ~lengths_to_mask(num_frames_B, windows_BTK.shape[1])[..., None]
    count_B1 = num_frames_B.clamp(min=1)[:, None]
    mean_BK = windows_BTK.masked_fill(is_padding_BT1, 0.0).sum(1) / count_B1
    centred_BTK = (windows_BTK - mean_BK[:, None]).masked_fill(is_padding_BT1, 0.0)
    # A GPU gives each small product to one of its many cores, however long the sum is.
    parts_BPTK = centred_BTK.unflatten(1, (SUM_PARTS, -1))
    covariance_BKK = (parts_BPTK.transpose(2, 3) @ parts_BPTK).sum(1) / count_B1[..., None]
    return fold_moments(mean_BK, covariance_BKK, conv, norm)


def fold_moments(
    mean_BK: Tensor, covariance_BKK: Tensor, conv: nn.Conv1d, norm: nn.GroupNorm
) -> tuple[Tensor, Tensor]:
    """Return what `fold_group_norm` does, from the float64 mean and covariance of the input's windows."""
    kernel_CK = conv.weight[:, 0].double()
    variance_BC = ((kernel_CK @ covariance_BKK) * kernel_CK).sum(2).clamp(min=0.0)
    scale_BC = norm.weight * torch.rsqrt(variance_BC + norm.eps)
    bias_BC = norm.bias - (mean_BK @ kernel_CK.T) * scale_BC
    weight_BKC = (kernel_CK * scale_BC[..., None]).transpose(1, 2)
    return weight_BKC.to(conv.weight.dtype), bias_BC.to(conv.weight.dtype)


class ConvLayer(nn.Module):
    """One strided convolution, its norm if it has one, and its activation."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        in_channels = config.conv_dim[index - 1] if index else 1
        channels = config.conv_dim[index]
        self.kernel, self.stride = config.conv_kernel[index], config.conv_stride[index]
        self.conv = nn.Conv1d(in_channels, channels, self.kernel, self.stride, bias=config.conv_bias)
        self.activation_name: str = config.feat_extract_activation
        self.activation = ACTIVATIONS[self.activation_name]
        self.layer_norm: nn.GroupNorm | nn.LayerNorm | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(channels)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(channels, channels)
        self._packed: Derived[Tensor] = Derived()

    def fold_norm(self, waveforms_BS: Tensor, num_samples_B: Tensor) -> Folded:
        """Return each utterance's own weight [B, K, 1, D] and bias [B, D], if the norm asks for them."""
        if not isinstance(self.layer_norm, nn.GroupNorm):
            return None, None
        num_frames_B = samples_to_frames(num_samples_B, (self.kernel,), (self.stride,))
        weight_BKD, bias_BD = fold_group_norm(waveforms_BS, num_frames_B, self.conv, self.layer_norm)
        return weight_BKD[:, :, None], bias_BD

    def run_rows(self, frames_TC: Tensor, weight_KD: Tensor | None, bias_D: Tensor | None) -> Tensor:
        """Return [T', D] of one utterance's frames [T, C], by one product of matrices: what a CPU does best.

        The windows that the kernel sees are copied into rows, a small cost beside the product.
        """
        windows_TW = frames_TC.unfold(0, self.kernel, self.stride).transpose(1, 2).flatten(1)
        if weight_KD is not None and bias_D is not None:
            return self._finish(torch.addmm(bias_D, windows_TW, weight_KD))
        own = self.conv.weight
        if not is_packable(windows_TW, own):
            return self._finish(F.linear(windows_TW, own.transpose(1, 2).flatten(1), self.conv.bias))
        packed = self._packed.get([own], lambda: pack(own.transpose(1, 2).flatten(1)))
        if self.layer_norm is not None:
            return self._finish(multiply_packed(windows_TW, packed, self.conv.bias))
        return multiply_packed(windows_TW, packed, self.conv.bias, self.activation_name)

    def run_batch(
        self,
        frames_BTC: Tensor,
        weight_BKCD: Tensor | None,
        bias_BD: Tensor | None,
        products: torch.dtype | None = None,
    ) -> Tensor:
        """Return [B, T', D] of a batch [B, T, C]: what a GPU does best.

        products: the precision of what is multiplied; sums and results keep the weights'.
        """
        if weight_BKCD is None or bias_BD is None:
            return self._finish(self._multiply(frames_BTC, products))
        windows_BTK = frames_BTC[..., 0].unfold(1, self.kernel, self.stride)
        return self.activation(torch.baddbmm(bias_BD[:, None], windows_BTK, weight_BKCD[:, :, 0]))

    def _multiply(self, frames_BTC: Tensor, products: torch.dtype | None) -> Tensor:
        """Return the convolution [B, T', D] as products of matrices that read the frames where they lie.

        As many taps as a stride has frames stand side by side in memory, and so are one row of a matrix.
        """
        weight = self.conv.weight
        num_steps = samples_to_frames(frames_BTC.shape[1], (self.kernel,), (self.stride,))
        products = products or weight.dtype
        # Only where it differs: on a CPU torch takes no out_dtype.
        sums: dict[str, Any] = {} if products is weight.dtype else {"out_dtype": weight.dtype}
        frames_BTC, weight_KCD = frames_BTC.to(products), weight.permute(2, 1, 0).to(products)
        out_BTD: Tensor | None = None
        for tap in range(0, self.kernel, self.stride):
            taps = min(self.stride, self.kernel - tap)
            rows_BTCW = frames_BTC[:, tap:].unfold(1, taps, self.stride)[:, :num_steps]
            rows_BTW = rows_BTCW.transpose(2, 3).flatten(2)
            weight_BWD = weight_KCD[tap : tap + taps].flatten(0, 1).expand(len(rows_BTW), -1, -1)
            if out_BTD is None:
                out_BTD = torch.bmm(rows_BTW, weight_BWD, **sums)
            else:
                out_BTD = torch.baddbmm(out_BTD, rows_BTW, weight_BWD, **sums)
        assert out_BTD is not None
        return out_BTD if self.conv.bias is None else out_BTD + self.conv.bias

    def _finish(self, frames: Tensor) -> Tensor:
        if isinstance(self.layer_norm, nn.LayerNorm):
            frames = self.layer_norm(frames)
        return self.activation(frames)


class ConvStem(nn.Module):
    """The seven convolutions from samples to 50 Hz frames (Chen et al. 2022, section III-A).

    None of them pads, so a valid frame never sees past its utterance's last sample.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.kernels = tuple(config.conv_kernel)
        self.strides = tuple(config.conv_stride)
        self.width: int = config.conv_dim[-1]
        self.conv_layers = nn.ModuleList(ConvLayer(config, index) for index in range(len(self.kernels)))

    @torch.no_grad()
    def forward(
        self,
        waveforms_BS: Tensor,
        num_samples_B: Tensor,
        folded: Folded | None = None,
        products: torch.dtype | None = None,
    ) -> Tensor:
        """Return frames [B, T, C] of clean waveforms [B, S] (zeros in the padding).

        folded: what `ConvLayer.fold_norm` returns, where it is not to be computed from these waveforms.
        products: the precision of what some convolutions multiply on a GPU (HALF_LAYERS).
        """
        if waveforms_BS.device.type == "cpu":
            return self.run_in_blocks(waveforms_BS, num_samples_B, folded)
        return self.run_batch(waveforms_BS, num_samples_B, folded, products)

    def run_batch(
        self,
        waveforms_BS: Tensor,
        num_samples_B: Tensor,
        folded: Folded | None = None,
        products: torch.dtype | None = None,
    ) -> Tensor:
        """Compute the whole batch at once, what a GPU does best; very long recordings in a few parts."""
        if folded is None:
            folded = self._layer(0).fold_norm(waveforms_BS, num_samples_B)
        num_steps = samples_to_frames(waveforms_BS.shape[1], self.kernels, self.strides)
        hop, field = math.prod(self.strides), receptive_field(self.kernels, self.strides)
        parts = []
        for start in range(0, num_steps, BATCH_FRAMES):
            end = min(start + BATCH_FRAMES, num_steps)
            frames_BTC = waveforms_BS[:, start * hop : (end - 1) * hop + field, None]
            frames_BTC = self._layer(0).run_batch(frames_BTC, *folded)
            for index in range(1, len(self.kernels)):
                lower = products if index in HALF_LAYERS else None
                frames_BTC = self._layer(index).run_batch(frames_BTC, None, None, lower)
            parts.append(frames_BTC)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def run_in_blocks(
        self, waveforms_BS: Tensor, num_samples_B: Tensor, folded: Folded | None = None
    ) -> Tensor:
        """Compute each utterance's valid frames, a block at a time, each from the samples that it sees.

        What a CPU does best: a block's activations stay in its cache, and their memory is used again at once.
        Padded frames are zero.
        """
        weight_BKCD, bias_BD = folded or self._layer(0).fold_norm(waveforms_BS, num_samples_B)
        num_steps = samples_to_frames(waveforms_BS.shape[1], self.kernels, self.strides)
        hop, field = math.prod(self.strides), receptive_field(self.kernels, self.strides)
        frames_BTC = waveforms_BS.new_zeros(len(waveforms_BS), num_steps, self.width)
        num_frames = samples_to_frames(num_samples_B, self.kernels, self.strides).tolist()
        for row, last in enumerate(num_frames):
            weight_KD = None if weight_BKCD is None else weight_BKCD[row].flatten(0, 1)
            bias_D = None if bias_BD is None else bias_BD[row]
            for start in range(0, last, BLOCK_FRAMES):
                end = min(start + BLOCK_FRAMES, last)
                samples_S = waveforms_BS[row, start * hop : (end - 1) * hop + field]
                block_TC = self._layer(0).run_rows(samples_S[:, None], weight_KD, bias_D)
                for index in range(1, len(self.kernels)):
                    block_TC = self._layer(index).run_rows(block_TC, None, None)
                frames_BTC[row, start:end] = block_TC
        return frames_BTC

    def _layer(self, index: int) -> ConvLayer:
        layer = self.conv_layers[index]
        assert isinstance(layer, ConvLayer)
        return layer


class FeatureProjection(nn.Module):
    """LayerNorm and Linear from the stem's channels to the model's width."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = Linear(config.conv_dim[-1], config.hidden_size)

    def forward(self, frames_BTC: Tensor) -> Tensor:
        """Return [B, T, D]."""
        return self.projection(self.layer_norm(frames_BTC))

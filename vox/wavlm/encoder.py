"""WavLM's Transformer: the positional convolution and the layers, pre-norm or post-norm.

B batch, T frames, D model width, H heads. Masks: True = real frame.

The residual stream keeps the parameters' precision (float32) under autocast.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from vox.wavlm.attention import Attention
from vox.wavlm.derived import Derived
from vox.wavlm.linear import ACTIVATIONS, Linear


class PositionalConvolution(nn.Module):
    """Positions from a wide grouped convolution over time (Baevski et al. 2020, section 2); never trained."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.kernel, self.groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        conv = nn.Conv1d(config.hidden_size, config.hidden_size, self.kernel, groups=self.groups)
        self.conv = parametrizations.weight_norm(conv, name="weight", dim=2)
        self.activation = ACTIVATIONS[config.feat_extract_activation]
        self._spectrum: Derived[Tensor] = Derived()

    @torch.no_grad()
    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return [B, T, D] for the input that must be zero on padded frames, as beyond a lone utterance."""
        return self.activation(self.convolve(hidden_BTD))

    def _originals(self) -> list[Tensor]:
        """Return what the weight is made of: directions and norms."""
        return list(self.conv.parametrizations.weight.parameters())

    def _make_spectrum(self) -> Tensor:
        """Return the kernels' spectra: for each frequency and group a complex matrix, input by output."""
        spectrum = torch.fft.rfft(self.conv.weight, 2 * self.kernel).conj()
        return spectrum.unflatten(0, (self.groups, -1)).permute(3, 0, 2, 1).flatten(0, 1).contiguous()

    def convolve(self, hidden_BTD: Tensor) -> Tensor:
        """Return the convolution [B, T, D] by FFT, in blocks of twice the kernel (overlap-save).

        Six times as fast as torch's own convolution, on a CPU and, in float32, on a GPU.
        Of a block's circular correlation, those outputs count that did not meet its end.
        """
        spectrum = self._spectrum.get(self._originals(), self._make_spectrum)
        batch, num_frames, _ = hidden_BTD.shape
        size = 2 * self.kernel
        step = size - self.kernel + 1
        blocks = -(-num_frames // step)
        left = self.kernel // 2
        padded = F.pad(hidden_BTD, (0, 0, left, (blocks - 1) * step + size - num_frames - left))
        spectra = torch.fft.rfft(padded.unfold(1, size, step))  # [B, blocks, D, frequencies]
        spectra = spectra.unflatten(2, (self.groups, -1)).permute(4, 2, 0, 1, 3)
        products = torch.bmm(spectra.flatten(2, 3).flatten(0, 1), spectrum)
        products = products.unflatten(1, (batch, blocks)).unflatten(0, (-1, self.groups))
        outputs = torch.fft.irfft(products.permute(2, 3, 1, 4, 0), size)[..., :step]
        return outputs.flatten(2, 3).transpose(2, 3).flatten(1, 2)[:, :num_frames] + self.conv.bias


class FeedForward(nn.Module):
    """Linear, activation, Linear, with a dropout after each."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.intermediate_dense = Linear(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.output_dense = Linear(config.intermediate_size, config.hidden_size)
        self.inner_dropout = config.activation_dropout
        self.outer_dropout = config.hidden_dropout

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return [B, T, D]."""
        inner = F.dropout(self.intermediate_dense(hidden_BTD), self.inner_dropout, self.training)
        return F.dropout(self.output_dense(inner), self.outer_dropout, self.training)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward; norms before each (large) or after each (base)."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.is_pre_norm = config.do_stable_layer_norm
        self.dropout = config.hidden_dropout
        self.attention = Attention(config, has_table=index == 0)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_BTD: Tensor,
        position_bias: Tensor,
        is_valid_BT: Tensor,
        scratch_BHQT: Tensor | None = None,
    ) -> Tensor:
        """Return the layer's output [B, T, D]; `scratch_BHQT` may be given where there are no gradients."""
        normed_BTD = self.layer_norm(hidden_BTD) if self.is_pre_norm else hidden_BTD
        attended_BTD = self.attention(normed_BTD, position_bias, is_valid_BT, scratch_BHQT)
        hidden_BTD = hidden_BTD + F.dropout(attended_BTD, self.dropout, self.training)
        if self.is_pre_norm:
            return hidden_BTD + self.feed_forward(self.final_layer_norm(hidden_BTD))
        hidden_BTD = self.layer_norm(hidden_BTD)
        return self.final_layer_norm(hidden_BTD + self.feed_forward(hidden_BTD))


class Encoder(nn.Module):
    """What WavLM runs on projected frames; the layers are called one by one by the model."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.is_pre_norm = config.do_stable_layer_norm
        self.pos_conv_embed = PositionalConvolution(config)
        # Pre-norm models apply it after the last layer, outside the hidden states that Vox uses.
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(config, index) for index in range(config.num_hidden_layers))

    def position_bias(self, num_frames: int) -> Tensor:
        """Return the ungated bias that all layers share, from the first one's table."""
        first = self.layers[0]
        assert isinstance(first, EncoderLayer)
        return first.attention.position_bias(num_frames)

    def add_positions(self, hidden_BTD: Tensor, is_valid_BT: Tensor) -> Tensor:
        """Return the first layer's input [B, T, D], float32, from projected frames."""
        hidden_BTD = hidden_BTD.to(self.layer_norm.weight.dtype).masked_fill(~is_valid_BT[..., None], 0.0)
        hidden_BTD = hidden_BTD + self.pos_conv_embed(hidden_BTD)
        return hidden_BTD if self.is_pre_norm else self.layer_norm(hidden_BTD)

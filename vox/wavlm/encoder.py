"""WavLM's Transformer: the positional convolution and the layers, pre-norm or post-norm.

B batch, T frames, D model width, H heads. Masks: True = real frame.

The residual stream keeps the parameters' precision (float32) under autocast.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from vox.wavlm.attention import Attention
from vox.wavlm.stem import ACTIVATIONS


class PositionalConvolution(nn.Module):
    """Positions from a wide grouped convolution over time (Baevski et al. 2020, section 2)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        kernel = config.num_conv_pos_embeddings
        conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel,
            padding=kernel // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        self.conv = parametrizations.weight_norm(conv, name="weight", dim=2)
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return [B, T, D] for the input that must be zero on padded frames, as beyond a lone utterance."""
        positions_BDT = self.conv(hidden_BTD.transpose(1, 2))
        # An even kernel with padding on both sides returns one frame too many.
        return self.activation(positions_BDT[:, :, : hidden_BTD.shape[1]]).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, activation, Linear, with a dropout after each."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.inner_dropout = config.activation_dropout
        self.outer_dropout = config.hidden_dropout

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return [B, T, D]."""
        inner = self.activation(self.intermediate_dense(hidden_BTD))
        inner = F.dropout(inner, self.inner_dropout, self.training)
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

    def forward(self, hidden_BTD: Tensor, position_bias_HTT: Tensor, is_valid_BT: Tensor) -> Tensor:
        """Return the layer's output [B, T, D]."""
        if self.is_pre_norm:
            normed_BTD = self.layer_norm(hidden_BTD)
            hidden_BTD = hidden_BTD + self._attend(normed_BTD, position_bias_HTT, is_valid_BT)
            return hidden_BTD + self.feed_forward(self.final_layer_norm(hidden_BTD))
        hidden_BTD = self.layer_norm(hidden_BTD + self._attend(hidden_BTD, position_bias_HTT, is_valid_BT))
        return self.final_layer_norm(hidden_BTD + self.feed_forward(hidden_BTD))

    def _attend(self, hidden_BTD: Tensor, position_bias_HTT: Tensor, is_valid_BT: Tensor) -> Tensor:
        attended_BTD = self.attention(hidden_BTD, position_bias_HTT, is_valid_BT)
        return F.dropout(attended_BTD, self.dropout, self.training)


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
        """Return the ungated bias [H, T, T] that all layers share, from the first one's table."""
        first = self.layers[0]
        assert isinstance(first, EncoderLayer)
        return first.attention.position_bias(num_frames)

    def add_positions(self, hidden_BTD: Tensor, is_valid_BT: Tensor) -> Tensor:
        """Return the first layer's input [B, T, D], float32, from projected frames."""
        hidden_BTD = hidden_BTD.to(self.layer_norm.weight.dtype).masked_fill(~is_valid_BT[..., None], 0.0)
        hidden_BTD = hidden_BTD + self.pos_conv_embed(hidden_BTD)
        return hidden_BTD if self.is_pre_norm else self.layer_norm(hidden_BTD)

"""The Conformer layer (Gulati et al. 2020), with SwiGLU, rotary positions and LayerNorm throughout.

Letters: B batch, T frames, D model width. Padded frames may hold anything between layers: attention masks
them and the convolution zeroes them, which are the only two places where frames meet.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vox.masks import keys_to_mask, zero_padding
from vox.model.attention import SelfAttention
from vox.model.feedforward import SwiGLU
from vox.model.rotary import Rotary


class ConvolutionModule(nn.Module):
    """Pointwise GLU, depthwise convolution, LayerNorm, SiLU, pointwise; no biases (Gulati et al., figure 2).

    LayerNorm stands where that paper has BatchNorm: no statistic may run over the batch.
    """

    def __init__(self, d_model: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.input = nn.Linear(d_model, 2 * d_model, bias=False)
        self.depthwise = nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model, bias=False)
        self.norm = nn.LayerNorm(d_model)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, is_valid_BT: Tensor) -> Tensor:
        """Mix each frame with its neighbours; past its end an utterance sees zeros, as it would alone."""
        x_BTD = zero_padding(F.glu(self.input(x_BTD), dim=-1), is_valid_BT)
        x_BTD = self.depthwise(x_BTD.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.output(F.silu(self.norm(x_BTD))))


class ConformerLayer(nn.Module):
    """Half a feed-forward, self-attention, convolution, half a feed-forward; each behind its LayerNorm."""

    def __init__(self, d_model: int, num_heads: int, d_ff: int, conv_kernel: int, dropout: float) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(d_model)
        self.first_feedforward = SwiGLU(d_model, d_ff, dropout)
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = SelfAttention(d_model, num_heads, dropout)
        self.convolution_norm = nn.LayerNorm(d_model)
        self.convolution = ConvolutionModule(d_model, conv_kernel, dropout)
        self.second_norm = nn.LayerNorm(d_model)
        self.second_feedforward = SwiGLU(d_model, d_ff, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, rotary: Rotary, is_valid_BT: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]; real frames depend on real frames only."""
        x_BTD = x_BTD + 0.5 * self.dropout(self.first_feedforward(self.first_norm(x_BTD)))
        attended_BTD = self.attention(self.attention_norm(x_BTD), rotary, keys_to_mask(is_valid_BT))
        x_BTD = x_BTD + self.dropout(attended_BTD)
        x_BTD = x_BTD + self.convolution(self.convolution_norm(x_BTD), is_valid_BT)
        return x_BTD + 0.5 * self.dropout(self.second_feedforward(self.second_norm(x_BTD)))

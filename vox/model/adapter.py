"""From WavLM's features to the encoder's width, one frame at a time.

Letters: B batch, T frames, C feature channels, D model width.
"""

import torch
from torch import Tensor, nn

from vox.masks import zero_padding
from vox.model.initialise import initialise

_EPSILON = 1e-5


def normalise_utterances(features_BTC: Tensor, is_valid_BT: Tensor) -> Tensor:
    """Give each utterance's channels zero mean and unit variance over its real frames.

    Biased variance, epsilon 1e-5. Padded frames must be zeros, and are zeros in what is returned.
    """
    num_frames_B11 = is_valid_BT.sum(dim=1).clamp(min=1)[:, None, None]
    mean_B1C = features_BTC.sum(dim=1, keepdim=True) / num_frames_B11
    centred_BTC = zero_padding(features_BTC - mean_B1C, is_valid_BT)
    variance_B1C = centred_BTC.square().sum(dim=1, keepdim=True) / num_frames_B11
    return centred_BTC * torch.rsqrt(variance_B1C + _EPSILON)


class Adapter(nn.Module):
    """LayerNorm, Linear, GELU, dropout, Linear."""

    def __init__(self, feature_dim: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_dim)
        self.input = nn.Linear(feature_dim, d_model)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(d_model, d_model)
        initialise(self)

    def forward(self, features_BTC: Tensor, is_valid_BT: Tensor) -> Tensor:
        """Map [B, T, C] to [B, T, D], zeros on padded frames."""
        x_BTD = self.dropout(self.activation(self.input(self.norm(features_BTC))))
        return zero_padding(self.output(x_BTD), is_valid_BT)

"""The gated feed-forward that encoder and decoder share."""

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """Feed-forward gated by SiLU, without biases (Shazeer 2020, "GLU Variants Improve Transformer", (6))."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.value = nn.Linear(d_model, d_ff, bias=False)
        self.output = nn.Linear(d_ff, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [..., D] to [..., D], each position by itself."""
        return self.output(self.dropout(F.silu(self.gate(x_BTD)) * self.value(x_BTD)))

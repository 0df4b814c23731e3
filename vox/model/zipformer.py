"""The encoder: a U-Net over time of Conformer blocks (after Yao et al. 2023, "Zipformer", section 3.1).

    50 Hz    block ------------------ skip ------------------ block, LayerNorm
    25 Hz       down, block --------- skip --------- block, up
    12.5 Hz              down, block, up

Letters: B batch, T frames (of the resolution at hand), D model width.
"""

import torch
from torch import Tensor, nn

from vox.config import ModelConfig
from vox.masks import lengths_to_mask, zero_padding
from vox.model.conformer import ConformerLayer
from vox.model.initialise import initialise
from vox.model.rotary import rotary_table
from vox.units import halve_frames


class Down(nn.Module):
    """Halve the frame rate: strided convolution, LayerNorm."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(d_model, d_model, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x_BTD: Tensor, is_valid_BT: Tensor) -> Tensor:
        """Map T frames to halve_frames(T); an utterance sees zeros past its end, as it would alone."""
        x_BTD = zero_padding(x_BTD, is_valid_BT)
        return self.norm(self.convolution(x_BTD.transpose(1, 2)).transpose(1, 2))


class Up(nn.Module):
    """Double the frame rate: transposed convolution, LayerNorm."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.convolution = nn.ConvTranspose1d(
            d_model, d_model, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x_BTD: Tensor, is_valid_BT: Tensor, num_frames: int) -> Tensor:
        """Map T frames to num_frames, which is 2 T or 2 T - 1.

        Always 2 T are computed and the last is cut off where the skip is odd, so that an utterance of odd
        length gets the same frames in a longer batch. Zeros past its end, as it would see alone.
        """
        x_BTD = zero_padding(x_BTD, is_valid_BT)
        x_BTD = self.convolution(x_BTD.transpose(1, 2))[:, :, :num_frames].transpose(1, 2)
        return self.norm(x_BTD)


class Block(nn.Module):
    """Conformer layers at one frame rate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ConformerLayer(
                config.d_model, config.encoder_heads, config.encoder_d_ff, config.conv_kernel, config.dropout
            )
            for _ in range(config.layers_per_block)
        )
        self.head_width = config.d_model // config.encoder_heads

    def forward(self, x_BTD: Tensor, is_valid_BT: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]; padded frames hold anything."""
        rotary = rotary_table(torch.arange(x_BTD.shape[1], device=x_BTD.device), self.head_width)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotary, is_valid_BT)
        return x_BTD


class Zipformer(nn.Module):
    """2 R - 1 blocks at R frame rates, each halving the one above it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        num_halvings = config.resolution_blocks - 1
        self.descending = nn.ModuleList(Block(config) for _ in range(num_halvings))
        self.downs = nn.ModuleList(Down(config.d_model) for _ in range(num_halvings))
        self.lowest = Block(config)
        self.ups = nn.ModuleList(Up(config.d_model) for _ in range(num_halvings))
        self.merges = nn.ModuleList(
            nn.Linear(2 * config.d_model, config.d_model) for _ in range(num_halvings)
        )
        self.ascending = nn.ModuleList(Block(config) for _ in range(num_halvings))
        self.norm = nn.LayerNorm(config.d_model)
        initialise(self)

    def forward(self, x_BTD: Tensor, num_frames_B: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D] at the same frame rate, zeros on padded frames."""
        is_valid_BT = lengths_to_mask(num_frames_B, x_BTD.shape[1])
        skips: list[tuple[Tensor, Tensor]] = []
        for block, down in zip(self.descending, self.downs, strict=True):
            x_BTD = block(x_BTD, is_valid_BT)
            skips.append((x_BTD, is_valid_BT))
            x_BTD = down(x_BTD, is_valid_BT)
            num_frames_B = halve_frames(num_frames_B)
            is_valid_BT = lengths_to_mask(num_frames_B, x_BTD.shape[1])
        x_BTD = self.lowest(x_BTD, is_valid_BT)
        for up, merge, block in zip(self.ups, self.merges, self.ascending, strict=True):
            skip_BTD, is_skip_valid_BT = skips.pop()
            x_BTD = up(x_BTD, is_valid_BT, skip_BTD.shape[1])
            is_valid_BT = is_skip_valid_BT
            x_BTD = block(merge(torch.cat((skip_BTD, x_BTD), dim=-1)), is_valid_BT)
        return zero_padding(self.norm(x_BTD), is_valid_BT)

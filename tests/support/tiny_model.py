"""A recogniser of the real shape and a hundred-thousandth of the size, for tests above WavLM."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from vox.config import ModelConfig
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser

FEATURE_DIM = 12
TINY = {
    "vocab_size": 17,
    "feature_dim": FEATURE_DIM,
    "num_wavlm_layers": 4,
    "d_model": 16,
    "encoder_heads": 2,
    "encoder_d_ff": 24,
    "resolution_blocks": 3,
    "layers_per_block": 1,
    "conv_kernel": 5,
    "decoder_layers": 2,
    "decoder_heads": 2,
    "decoder_d_ff": 24,
    "dropout": 0.1,
}


class ShapeOnlyExtractor(nn.Module):
    """Takes the place of WavLM in a recogniser that only gets features."""

    def __init__(self, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.wavlm = SimpleNamespace(hidden_size=hidden_size, num_layers=num_layers)


def make_recogniser(seed: int = 0, **changes: Any) -> Recogniser:
    """Build a tiny recogniser in eval mode, with all weights changed from their initial values.

    LayerNorm's initial biases are zero, which would keep padded zeros zero and hide a missing mask. The CTC
    head's initial weights are too small for a wrong frame to show in its scores. Small queries would attend
    to all keys alike.
    """
    config = ModelConfig(**(TINY | changes))
    torch.manual_seed(seed)
    recogniser = Recogniser(config, ShapeOnlyExtractor(config.feature_dim, config.num_wavlm_layers))
    with torch.no_grad():
        for parameter in recogniser.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
        recogniser.ctc_head.weight.mul_(50)
        for name, parameter in recogniser.named_parameters():
            if name.endswith(("query_key_value.weight", "query.weight", "cross_attention.key_value.weight")):
                parameter.mul_(2)
    return recogniser.eval()


def take_rows(encoded: Encoded, index_B: torch.Tensor) -> Encoded:
    """Return these utterances of a batch, in this order; one may be taken more than once."""
    positions_BT = encoded.label_positions_BT
    return Encoded(
        encoded.hidden_BTD[index_B],
        encoded.num_frames_B[index_B],
        encoded.ctc_log_probs_BTV[index_B],
        None if positions_BT is None else positions_BT[index_B],
    )


def encoded_alone(encoded: Encoded, row: int) -> Encoded:
    """Return one utterance of a batch without its padding."""
    num_frames = int(encoded.num_frames_B[row])
    positions_BT = encoded.label_positions_BT
    return Encoded(
        encoded.hidden_BTD[row : row + 1, :num_frames],
        encoded.num_frames_B[row : row + 1],
        encoded.ctc_log_probs_BTV[row : row + 1, :num_frames],
        None if positions_BT is None else positions_BT[row : row + 1, :num_frames],
    )


def pad(rows: list[torch.Tensor], length: int, fill: float) -> torch.Tensor:
    """Stack rows [n, ...] of different n as [B, length, ...], filled up on the right."""
    batch = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), fill)
    for index, row in enumerate(rows):
        batch[index, : len(row)] = row
    return batch

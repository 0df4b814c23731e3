"""torch.compile for the layers that learn: elementwise work in few kernels, and fewer launches.

A layer is compiled where gradients are computed. Decoding, validation and all that is frozen run as they are:
a decoder that grows by a label a step would be compiled again and again.
"""

from typing import Any

import torch
from torch import nn

from vox.model.conformer import ConformerLayer
from vox.model.decoder import DecoderLayer
from vox.model.recogniser import Recogniser
from vox.wavlm.encoder import EncoderLayer

BACKEND = "inductor"


def compile_layers(recogniser: Recogniser) -> None:
    """Let Conformer, decoder and WavLM layers that learn be compiled at their first update; in place.

    Parameters keep their names. Lengths are symbols from the start, so that layers of one shape share one
    compilation for all lengths.
    """
    for layer in recogniser.modules():
        if isinstance(layer, ConformerLayer | DecoderLayer | EncoderLayer) and _is_learning(layer):
            _compile(layer)


def _is_learning(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _compile(layer: nn.Module) -> None:
    eager = layer.forward
    compiled = torch.compile(eager, dynamic=True, backend=BACKEND)

    def forward(*arguments: Any, **keywords: Any) -> Any:
        is_in_an_update = layer.training and torch.is_grad_enabled()
        return (compiled if is_in_an_update else eager)(*arguments, **keywords)

    layer.forward = forward

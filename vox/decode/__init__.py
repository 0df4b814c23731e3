"""Decoding: `DECODERS[name](recogniser, hidden_BTD, num_frames_B)` returns a Hypothesis an utterance."""

from collections.abc import Callable

from torch import Tensor

from vox.decode.attention import decode_attention
from vox.decode.ctc import decode_ctc
from vox.decode.hypothesis import Hypothesis
from vox.model.recogniser import Recogniser

__all__ = ["DECODERS", "Hypothesis"]

DECODERS: dict[str, Callable[[Recogniser, Tensor, Tensor], list[Hypothesis]]] = {
    "ctc": decode_ctc,
    "attention": decode_attention,
}

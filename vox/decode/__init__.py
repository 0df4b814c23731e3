"""Decoding: `DECODERS[name](recogniser, encoded)` returns one Hypothesis an utterance."""

from collections.abc import Callable

from vox.decode.attention import decode_attention
from vox.decode.ctc import decode_ctc
from vox.decode.hypothesis import Hypothesis
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser

__all__ = ["DECODERS", "Hypothesis"]

DECODERS: dict[str, Callable[[Recogniser, Encoded], list[Hypothesis]]] = {
    "ctc": decode_ctc,
    "attention": decode_attention,
}

"""Decoding: `DECODERS[name](recogniser, encoded)` returns one Hypothesis an utterance."""

from collections.abc import Callable, Mapping
from typing import Any

from vox.decode.attention import decode_attention
from vox.decode.ctc import decode_ctc
from vox.decode.hypothesis import Hypothesis
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser

__all__ = ["DECODERS", "Hypothesis", "preferred_decoder"]

DECODERS: dict[str, Callable[[Recogniser, Encoded], list[Hypothesis]]] = {
    "ctc": decode_ctc,
    "attention": decode_attention,
}


def preferred_decoder(state: Mapping[str, Any]) -> str:
    """Return the decoder with the lower dev WER that a checkpoint's state records.

    CTC where they are equal or where nothing is recorded: it never loops and never stops early.
    """
    wer = (state.get("dev") or {}).get("wer", {})
    return min(DECODERS, key=lambda name: wer.get(name, float("inf")))

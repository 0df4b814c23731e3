"""Decoding: `make_search(name, options, tokenizer)(recogniser, encoded)` returns n-best lists.

ctc, attention  greedy, one answer without a score
ctc_beam        CTC prefix beam search
attention_beam  beam search with the attention decoder
rescore         CTC's n-best, ordered by CTC and the attention decoder
joint           beam search with the attention decoder and CTC prefix scores
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vox.decode.attention import decode_attention, label_limits
from vox.decode.ctc import decode_ctc
from vox.decode.ctc_beam import search_ctc
from vox.decode.hypothesis import Hypothesis
from vox.decode.label_beam import search_labels
from vox.decode.options import SearchOptions
from vox.decode.rescore import rescore
from vox.decode.scorer import LengthBonus
from vox.decoder_names import VALIDATION_DECODERS, check_decoder
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser
from vox.text import Tokenizer

__all__ = [
    "DECODERS",
    "Hypothesis",
    "Search",
    "SearchOptions",
    "make_search",
    "preferred_decoder",
]

Search = Callable[[Recogniser, Encoded], list[list[Hypothesis]]]


def _search_ctc(recogniser: Recogniser, encoded: Encoded, options: SearchOptions) -> list[list[Hypothesis]]:
    found = search_ctc(encoded.ctc_log_probs_BTV, encoded.num_frames_B, options)
    return [hypotheses[: options.nbest] for hypotheses in found]


def _search_labels(
    recogniser: Recogniser, encoded: Encoded, options: SearchOptions, ctc_weight: float
) -> list[list[Hypothesis]]:
    limits_B = label_limits(encoded.num_frames_B)
    return search_labels(recogniser.decoder, encoded, limits_B, options, ctc_weight)


# Their names are vox/decoder_names.py's.
DECODERS: dict[str, Callable[[Recogniser, Encoded, SearchOptions], list[list[Hypothesis]]]] = {
    "ctc": lambda recogniser, encoded, _: [[found] for found in decode_ctc(recogniser, encoded)],
    "attention": lambda recogniser, encoded, _: [[found] for found in decode_attention(recogniser, encoded)],
    "ctc_beam": _search_ctc,
    "attention_beam": lambda recogniser, encoded, options: _search_labels(recogniser, encoded, options, 0.0),
    "rescore": lambda recogniser, encoded, options: rescore(recogniser.decoder, encoded, options),
    "joint": lambda recogniser, encoded, options: _search_labels(
        recogniser, encoded, options, options.ctc_weight
    ),
}


def make_search(name: str, options: SearchOptions, tokenizer: Tokenizer) -> Search:
    """Return the decoder of that name. It returns each utterance's hypotheses, best first.

    An utterance gets at least one hypothesis and at most `options.nbest`. Raises ConfigError for an unknown
    name.
    """
    check_decoder(name)
    if options.length_bonus:
        bonus = (LengthBonus(tokenizer.vocab_size), options.length_bonus)
        options = replace(options, length_bonus=0.0, scorers=(*options.scorers, bonus))
    decode = DECODERS[name]
    return lambda recogniser, encoded: decode(recogniser, encoded, options)


def preferred_decoder(state: Mapping[str, Any]) -> str:
    """Return the validation decoder with the lower dev WER in a checkpoint's state.

    Returns CTC if both are equal or none is recorded: CTC never loops and never stops early.
    """
    wer = (state.get("dev") or {}).get("wer", {})
    return min(VALIDATION_DECODERS, key=lambda name: wer.get(name, float("inf")))

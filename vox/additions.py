"""Choose decoders and options: the user's options first, then what `vox tune` chose, then the defaults."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vox.checkpoint.files import Checkpoint, read_normaliser
from vox.decode import SearchOptions
from vox.decode.hotwords import make_hotword_scorer
from vox.decode.scorer import Scorer
from vox.decoder_names import DEFAULT_SEARCH, GREEDY_DECODERS, check_decoders
from vox.domain import HOTWORDS, LM, read_domain
from vox.errors import ConfigError, TextError
from vox.hotword_list import Hotword, list_lines, parse_hotwords
from vox.lm.ngram import load_ngram
from vox.text import Tokenizer, normalise_text
from vox.tuned import read_tuned

DEFAULT_LM_WEIGHT = 0.5
DEFAULT_HOTWORD_WEIGHT = 3.0  # nats a phrase


@dataclass(frozen=True)
class Additions:
    """A language model over pieces, hotwords, and their weights."""

    lm: Path | str | None = None
    lm_weight: float = DEFAULT_LM_WEIGHT
    hotwords: tuple[Hotword, ...] = ()
    hotword_weight: float = DEFAULT_HOTWORD_WEIGHT
    hotword_option: str = "--hotwords"  # the option that gave the hotwords

    @property
    def options(self) -> list[str]:
        """The given command-line options that need a search."""
        return ["--lm"] * (self.lm is not None) + [self.hotword_option] * bool(self.hotwords)

    def make_scorers(self, tokenizer: Tokenizer, device: torch.device) -> tuple[tuple[Scorer, float], ...]:
        """Return them as weighted scorers for SearchOptions; an empty list of hotwords gives no scorer.

        Raises LanguageModelError for a model that does not fit the tokenizer, and TextError for hotwords with
        letters that the tokenizer does not have.
        """
        scorers: list[tuple[Scorer, float]] = []
        if self.lm is not None:
            scorers.append((load_ngram(self.lm, tokenizer, device), self.lm_weight))
        if self.hotwords and not tokenizer.has_words:
            raise TextError(
                "hotwords are words, and the checkpoint's alphabet has none (characters)",
                remedy=f"leave {self.hotword_option} out",
            )
        hotwords = make_hotword_scorer(self.hotwords, tokenizer, device)
        if hotwords is not None:
            scorers.append((hotwords, self.hotword_weight))
        return tuple(scorers)


def read_additions(
    lm: Path | str | None,
    lm_weight: float | None,
    hotword_file: Path | str | None,
    hotwords: Sequence[str],
    hotword_weight: float | None,
    normalise: Callable[[str], str] = normalise_text,
) -> Additions:
    """Return the language model and hotwords to use. hotwords: lines as in the file. None: default weight.

    normalise: brings hotwords into the checkpoint's alphabet.
    Raises ConfigError for a weight without its model or hotwords, and TextError for hotwords that cannot be
    used.
    """
    if lm is None and lm_weight is not None:
        raise ConfigError("--lm-weight without a language model", remedy="add --lm FILE")
    if hotword_file is None and not hotwords and hotword_weight is not None:
        raise ConfigError(
            "--hotword-weight without hotwords", remedy="add --hotwords FILE or --hotword PHRASE"
        )
    lines = [] if hotword_file is None else list_lines(hotword_file)
    every = [*lines, *((None, line) for line in hotwords)]
    return Additions(
        lm,
        DEFAULT_LM_WEIGHT if lm_weight is None else lm_weight,
        tuple(parse_hotwords(every, normalise)),
        DEFAULT_HOTWORD_WEIGHT if hotword_weight is None else hotword_weight,
        "--hotword" if hotword_file is None else "--hotwords",
    )


@dataclass(frozen=True)
class SearchPlan:
    """The decoders to run and their options. Scorers need the tokenizer, so `options_for` makes them."""

    decoders: tuple[str, ...]  # empty: the greedy one with the lower dev WER
    options: SearchOptions
    additions: Additions
    temperature: float  # of confidences

    def options_for(self, loaded: Checkpoint, device: torch.device) -> SearchOptions:
        """Return the options with the language model and the hotwords as scorers."""
        return replace(self.options, scorers=self.additions.make_scorers(loaded.tokenizer, device))


def plan_search(
    checkpoint: Path,
    decoders: Sequence[str],
    *,
    beam: int | None = None,
    nbest: int = 1,
    lm: Path | str | None = None,
    lm_weight: float | None = None,
    hotword_file: Path | str | None = None,
    hotwords: Sequence[str] = (),
    hotword_weight: float | None = None,
    domain: Path | str | None = None,
) -> SearchPlan:
    """Choose the decoders and their options; None or empty means that an option is not given.

    domain: a folder of `vox adapt`, which brings a language model, hotwords, the decoder and all weights.
    Decoder, beam and weights that are given go before its own.

    If no decoder is named, it is the one that `vox tune` chose for this checkpoint and this language model.
    If an option needs a search and that decoder is greedy or missing, it is `rescore`. Raises ConfigError for
    contradictory options and for an unknown decoder, and what `read_additions`, `read_tuned` and
    `read_domain` raise.
    """
    if domain is not None and (lm is not None or hotword_file is not None or hotwords):
        raise ConfigError(
            "a domain has a language model and hotwords of its own, tuned together",
            where=domain,
            remedy=f"leave out --lm and --hotwords, or edit {Path(domain) / HOTWORDS}",
        )
    if lm is not None and not Path(lm).is_file():
        raise ConfigError("no such language model", where=lm, remedy="make one with `vox lm`")
    if domain is None:
        tuned = read_tuned(checkpoint, lm)
    else:
        found = read_domain(domain, checkpoint)
        tuned, lm, hotword_file = found.tuned, Path(domain) / LM, Path(domain) / HOTWORDS
        hotword_weight = found.hotword_weight if hotword_weight is None else hotword_weight
    if tuned is not None and lm is not None and lm_weight is None:
        lm_weight = tuned.lm_weight
    has_hotwords = hotword_file is not None or bool(hotwords)
    normalise = read_normaliser(checkpoint) if has_hotwords else normalise_text
    additions = read_additions(lm, lm_weight, hotword_file, hotwords, hotword_weight, normalise)
    names = tuple(decoders) or (() if tuned is None else (tuned.decoder,))
    is_search_wanted = beam is not None or nbest > 1 or bool(additions.options)
    if not decoders and is_search_wanted and not set(names) - set(GREEDY_DECODERS):
        names = (DEFAULT_SEARCH,)
    width = beam
    if width is None:  # at least as wide as the n-best list
        width = max(nbest, SearchOptions.beam if tuned is None else tuned.beam)
    others = ["--nbest"] * (nbest > 1) + (additions.options if domain is None else ["--domain"])
    check_decoders(names, beam, others)
    options = SearchOptions(beam=width, nbest=nbest)
    if tuned is not None:
        options = replace(options, ctc_weight=tuned.ctc_weight, length_bonus=tuned.length_bonus)
    return SearchPlan(names, options, additions, 1.0 if tuned is None else tuned.temperature)

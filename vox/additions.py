"""What a command line adds to a search: a language model and hotwords."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vox.decode.hotwords import make_hotword_scorer
from vox.decode.scorer import Scorer
from vox.errors import ConfigError
from vox.hotword_list import Hotword, list_lines, parse_hotwords
from vox.lm.ngram import load_ngram
from vox.text import Tokenizer

DEFAULT_LM_WEIGHT = 0.5
DEFAULT_HOTWORD_WEIGHT = 3.0  # nats a phrase


@dataclass(frozen=True)
class Additions:
    """A language model over pieces, hotwords, and their weights."""

    lm: Path | str | None = None
    lm_weight: float = DEFAULT_LM_WEIGHT
    hotwords: tuple[Hotword, ...] = ()
    hotword_weight: float = DEFAULT_HOTWORD_WEIGHT

    @property
    def options(self) -> list[str]:
        """The options that only a search can follow."""
        return ["--lm"] * (self.lm is not None) + ["--hotwords"] * bool(self.hotwords)

    def make_scorers(self, tokenizer: Tokenizer, device: torch.device) -> tuple[tuple[Scorer, float], ...]:
        """Return them as scorers with weights, for SearchOptions; an empty list of hotwords is none.

        Raises LanguageModelError for a model that does not fit the tokenizer, and TextError for hotwords with
        letters that it lacks.
        """
        scorers: list[tuple[Scorer, float]] = []
        if self.lm is not None:
            scorers.append((load_ngram(self.lm, tokenizer, device), self.lm_weight))
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
) -> Additions:
    """Return what is to be added; hotwords: lines as in the file. No weight is the default one.

    Raises ConfigError for a weight of nothing, and TextError for hotwords that cannot be used.
    """
    if lm is None and lm_weight is not None:
        raise ConfigError("--lm-weight without a language model", remedy="add --lm FILE")
    if hotword_file is None and not hotwords and hotword_weight is not None:
        raise ConfigError(
            "--hotword-weight without hotwords", remedy="add --hotwords FILE or --hotword PHRASE"
        )
    lines = [] if hotword_file is None else list_lines(hotword_file)
    lines += [("--hotword", line) for line in hotwords]
    return Additions(
        lm,
        DEFAULT_LM_WEIGHT if lm_weight is None else lm_weight,
        tuple(parse_hotwords(lines)),
        DEFAULT_HOTWORD_WEIGHT if hotword_weight is None else hotword_weight,
    )

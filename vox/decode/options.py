"""Options of the searches."""

import math
from dataclasses import dataclass

from vox.decode.scorer import Scorer, Scorers
from vox.errors import ConfigError


@dataclass(frozen=True)
class SearchOptions:
    """Options of every search. The greedy decoders ignore them.

    beam: hypotheses kept for each utterance.
    nbest: maximum number of hypotheses returned for each utterance.
    ctc_weight: weight of CTC in `rescore` and `joint`, 0 to 1; the weight of attention is 1 - ctc_weight.
    pre_beam: how many of the decoder's best labels the joint search scores by CTC, for each hypothesis; eos
    is always scored. None: 1.5 times the beam.
    length_bonus: added for each label, in nats.
    scorers: (scorer, weight) pairs beside the model; see vox/decode/scorer.py.

    Raises ConfigError where a value is out of range.
    """

    beam: int = 8
    nbest: int = 1
    ctc_weight: float = 0.3
    pre_beam: int | None = None
    length_bonus: float = 0.0
    scorers: tuple[tuple[Scorer, float], ...] = ()

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ConfigError(f"a beam of {self.beam}", remedy="use at least 1")
        if not 1 <= self.nbest <= self.beam:
            raise ConfigError(
                f"{self.nbest} best of a beam of {self.beam}", remedy=f"ask for 1 to {self.beam}, or widen it"
            )
        if not 0 <= self.ctc_weight <= 1:
            raise ConfigError(f"a CTC weight of {self.ctc_weight}", remedy="use 0 to 1")
        if self.pre_beam is not None and self.pre_beam < 1:
            raise ConfigError(f"a pre-beam of {self.pre_beam}", remedy="use at least 1")
        if not math.isfinite(self.length_bonus):
            raise ConfigError(f"a length bonus of {self.length_bonus}", remedy="give a number")
        Scorers(self.scorers)  # raises for weights that are not finite

    @property
    def num_pre_beam(self) -> int:
        """Return how many labels of each hypothesis the joint search scores by CTC."""
        return self.pre_beam or -(-3 * self.beam // 2)

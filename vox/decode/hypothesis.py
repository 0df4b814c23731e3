"""What a decoder returns for one utterance."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hypothesis:
    """One text for an utterance, as label ids, with its score and what the score is made of.

    ids: labels without bos, eos, pad or blank.
    is_truncated: the decoder took the most labels that it may take, and would have taken more.
    score: sum over `parts` of weight x part, in nats; higher is better. None from a greedy decoder, which
    scores nothing. Scores of different searches, or of other weights, cannot be compared.
    parts: by scorer, the unweighted natural-log score of these ids: "ctc" (all alignments), "attention" (eos
    included), and the scorers of the options by their names.

    When each label was spoken is found by alignment, whichever decoder found the text: vox/decode/align.py.
    """

    ids: list[int]
    is_truncated: bool = False
    score: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

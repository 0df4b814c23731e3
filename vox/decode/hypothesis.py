"""What a decoder returns for one utterance."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hypothesis:
    """One text for an utterance, as label ids, with its score and the parts of the score.

    ids: labels without bos, eos, pad or blank.
    is_truncated: the decoder reached the maximum number of labels before eos.
    score: sum over `parts` of weight x part, in nats; higher is better. None from a greedy decoder, which
    computes no score. docs/decoding.md says which scores can be compared.
    parts: by scorer, the unweighted natural-log score of these ids: "ctc" (all alignments), "attention" (eos
    included), and the scorers of the options by their names.

    The time of each label is found by alignment, for every decoder: vox/decode/align.py.
    """

    ids: list[int]
    is_truncated: bool = False
    score: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

"""What a decoder returns for one utterance."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """Label ids without bos, eos, pad or blank, and whether decoding was cut short at its limit."""

    ids: list[int]
    is_truncated: bool = False

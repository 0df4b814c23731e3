"""One utterance of a split, and what can be wrong with one."""

from dataclasses import dataclass
from pathlib import Path

from vox.segment import Segment


@dataclass(frozen=True, slots=True)  # hundreds of thousands of them: half the memory
class Utterance:
    """One recording (or a segment of one) and what is said in it.

    text: normalised; "" if nothing is spoken. speaker: "" if a manifest does not say. num_samples: at 16 kHz
    after conversion; None until the header is read. speed: at which the recording is played. segment: None
    for all of it. split: that it is of; "" where only one is read.
    """

    id: str
    audio_path: Path
    text: str
    speaker: str
    num_samples: int | None = None
    speed: float = 1.0
    segment: Segment | None = None
    split: str = ""


@dataclass(frozen=True)
class Problem:
    """Why an utterance (or a file of the corpus) cannot be used."""

    name: str
    reason: str

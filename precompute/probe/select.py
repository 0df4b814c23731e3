"""Which utterances the probe looks at, and their characters as CTC labels."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from precompute.plan import probed_samples
from vox.corpus import Problem, Utterance
from vox.decode.ctc import min_ctc_frames
from vox.errors import CorpusError
from vox.text import BLANK_ID
from vox.units import SAMPLE_RATE, samples_to_frames

ALPHABET = f"{string.ascii_lowercase}' "  # what vox.text leaves of a transcript
NUM_LABELS = 1 + len(ALPHABET)  # and the blank

_CHARACTER_TO_ID = {character: BLANK_ID + 1 + index for index, character in enumerate(ALPHABET)}
_ID_TO_CHARACTER = {label: character for character, label in _CHARACTER_TO_ID.items()}


@dataclass(frozen=True)
class Selection:
    """A split's share in the probe."""

    split: str
    utterances: tuple[Utterance, ...]  # in the order of the manifest
    too_short: tuple[Problem, ...]  # chosen, and left out: fewer frames than CTC needs

    @property
    def num_frames(self) -> int:
        """Count the frames of all utterances."""
        return sum(samples_to_frames(probed_samples(utterance)) for utterance in self.utterances)

    @property
    def hours(self) -> float:
        """Return the length of all utterances."""
        return sum(map(probed_samples, self.utterances)) / SAMPLE_RATE / 3600


def text_to_labels(text: str) -> list[int]:
    """Return the labels of a normalised transcript, one a character."""
    return [_CHARACTER_TO_ID[character] for character in text]


def labels_to_text(labels: Sequence[int]) -> str:
    """Return the transcript of labels without blanks, its words apart by single spaces."""
    return " ".join("".join(_ID_TO_CHARACTER[label] for label in labels).split())


def select_utterances(split: str, utterances: Sequence[Utterance], hours: float, seed: int) -> Selection:
    """Choose utterances at random until the next would exceed the hours, one at least.

    Chosen ones whose characters CTC cannot align are left out and named in the result. Raises CorpusError
    when none is left.
    """
    chosen = _choose(utterances, hours, seed)
    kept, too_short = [], []
    for utterance in chosen:
        num_frames = samples_to_frames(probed_samples(utterance))
        needed = min_ctc_frames(text_to_labels(utterance.text))
        if num_frames < needed:
            reason = f"its {len(utterance.text)} characters need {needed} frames, and it has {num_frames}"
            too_short.append(Problem(utterance.id, reason))
        else:
            kept.append(utterance)
    if not kept:
        raise CorpusError(
            f"no chosen utterance of split {split} can be used ({too_short[0].name}: {too_short[0].reason})",
            remedy="correct the transcripts, or take more with --hours",
        )
    return Selection(split, tuple(kept), tuple(too_short))


def _choose(utterances: Sequence[Utterance], hours: float, seed: int) -> list[Utterance]:
    order = np.random.default_rng(seed).permutation(len(utterances)).tolist()
    left = hours * 3600 * SAMPLE_RATE
    positions: list[int] = []
    for position in order:
        left -= probed_samples(utterances[position])
        if left < 0 and positions:
            break
        positions.append(position)
    return [utterances[position] for position in sorted(positions)]

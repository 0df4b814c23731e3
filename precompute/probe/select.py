"""Which utterances the probe looks at, and their characters as CTC labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from precompute.plan import probed_samples
from vox.corpus import Problem, Utterance
from vox.decode.ctc import min_ctc_frames
from vox.errors import CorpusError
from vox.text import BLANK_ID, ENGLISH, Normaliser
from vox.units import SAMPLE_RATE, samples_to_frames, samples_to_seconds


class Characters:
    """The characters of transcripts as CTC labels.

    has_words: False where characters are what errors are counted in.
    """

    def __init__(self, letters: Iterable[str], *, has_words: bool = True) -> None:
        """Number the letters in their order, and the space after them."""
        self.has_words = has_words
        every = dict.fromkeys([*letters, " "] if has_words else letters)
        self._label_of = {character: BLANK_ID + 1 + index for index, character in enumerate(every)}
        self._character_of = {label: character for character, label in self._label_of.items()}
        self.num_labels = 1 + len(self._label_of)  # and the blank

    def encode(self, text: str) -> list[int]:
        """Return the labels of a normalised transcript, one a character."""
        return [self._label_of[character] for character in text]

    def decode(self, labels: Sequence[int]) -> str:
        """Return the transcript of labels without blanks, its words apart by single spaces."""
        return " ".join("".join(self._character_of[label] for label in labels).split())


ENGLISH_CHARACTERS = Characters(ENGLISH.letters)


def choose_characters(normaliser: Normaliser, texts: Iterable[str]) -> Characters:
    """Return the alphabet's characters; where only the texts tell, those of the texts."""
    letters = normaliser.letters or sorted(set().union(*texts) - {" "})
    return Characters(letters, has_words=normaliser.has_words)


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
        return samples_to_seconds(sum(map(probed_samples, self.utterances))) / 3600


def select_utterances(split: str, utterances: Sequence[Utterance], hours: float, seed: int) -> Selection:
    """Choose utterances at random until the next would exceed the hours, one at least.

    Chosen ones whose characters CTC cannot align are left out and named in the result. Raises CorpusError
    when none is left.
    """
    chosen = _choose(utterances, hours, seed)
    kept, too_short = [], []
    for utterance in chosen:
        num_frames = samples_to_frames(probed_samples(utterance))
        needed = min_ctc_frames(list(map(ord, utterance.text)))
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

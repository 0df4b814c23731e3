"""Score hotwords and the other words separately.

A word counts as a hotword if it is inside a hotword's phrase. Substitutions and deletions count for the kind
of the reference word, insertions for the kind of the inserted word. For each phrase of an utterance, the
number right is the minimum of its counts in the reference and in the hypothesis. Occurrences in the
hypothesis beyond those in the reference are false alarms.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import jiwer

from vox.hotword_list import Hotword, HotwordMatcher


@dataclass(frozen=True)
class PhraseCount:
    """How often one phrase was said, found, and both."""

    num_said: int  # in the references
    num_found: int  # in the hypotheses
    num_right: int

    @property
    def recall(self) -> float | None:
        """The share of what was said that was found; None if it was never said."""
        return _rate(self.num_right, self.num_said)

    @property
    def false_alarms(self) -> int:
        """How often the phrase was found and not said."""
        return self.num_found - self.num_right


@dataclass(frozen=True)
class HotwordScore:
    """Counts over a set of utterances, and their rates; a rate with denominator 0 is None."""

    hotword_errors: int
    hotword_words: int  # in the references
    other_errors: int
    other_words: int
    num_right: int  # phrases
    num_said: int  # in the references
    num_found: int  # in the hypotheses
    by_phrase: dict[str, PhraseCount] = field(default_factory=dict)  # every phrase, in the list's order

    @property
    def hotword_wer(self) -> float | None:
        """Errors of hotwords for each word of a hotword in the references."""
        return _rate(self.hotword_errors, self.hotword_words)

    @property
    def other_wer(self) -> float | None:
        """Errors of other words for each other word in the references."""
        return _rate(self.other_errors, self.other_words)

    @property
    def recall(self) -> float | None:
        """The share of the phrases said that were found."""
        return _rate(self.num_right, self.num_said)

    @property
    def precision(self) -> float | None:
        """The share of the phrases found that were said."""
        return _rate(self.num_right, self.num_found)

    @property
    def false_alarms(self) -> int:
        """Phrases found that were not said."""
        return self.num_found - self.num_right


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def score_hotwords(
    references: Sequence[str], hypotheses: Sequence[str], hotwords: Sequence[Hotword]
) -> HotwordScore:
    """Compare hypotheses with references, pair by pair, both before spellings are replaced.

    References may be empty (silence): every hotword found there is a false alarm.
    """
    matcher = HotwordMatcher(hotwords)
    errors, num_words = Counter[bool](), Counter[bool]()  # True: of hotwords
    right, said, found = Counter[str](), Counter[str](), Counter[str]()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        is_hotword = matcher.mark(reference.split()), matcher.mark(hypothesis.split())
        num_words.update(is_hotword[0])
        errors.update(_list_errors(reference, hypothesis, *is_hotword))
        said_here, found_here = matcher.count(reference), matcher.count(hypothesis)
        said.update(said_here)
        found.update(found_here)
        right.update(said_here & found_here)
    return HotwordScore(
        hotword_errors=errors[True],
        hotword_words=num_words[True],
        other_errors=errors[False],
        other_words=num_words[False],
        num_right=right.total(),
        num_said=said.total(),
        num_found=found.total(),
        by_phrase={
            phrase: PhraseCount(said[phrase], found[phrase], right[phrase])
            for phrase in dict.fromkeys(hotword.phrase for hotword in hotwords)
        },
    )


def _list_errors(
    reference: str, hypothesis: str, in_reference: list[bool], in_hypothesis: list[bool]
) -> list[bool]:
    """Return for each error whether it is of a hotword."""
    if not in_reference:
        return in_hypothesis
    (chunks,) = jiwer.process_words([reference], [hypothesis]).alignments
    errors: list[bool] = []
    for chunk in chunks:
        if chunk.type == "insert":
            errors += in_hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        elif chunk.type != "equal":
            errors += in_reference[chunk.ref_start_idx : chunk.ref_end_idx]
    return errors

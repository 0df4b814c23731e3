"""Words of a text with their times and confidences, for a text of any search.

Letters: T frames, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vox.decode.align import align_labels
from vox.decode.confidence import label_confidences, label_rows, silence_confidence
from vox.text import Tokenizer
from vox.transcript import Word
from vox.units import FRAME_RATE


def find_words(
    log_probs_TV: Tensor, labels: Sequence[int], tokenizer: Tokenizer, temperature: float = 1.0
) -> tuple[tuple[Word, ...], float | None]:
    """Return the words of a text, and the confidence of the text: the minimum over its words.

    log_probs_TV: log-probabilities of the CTC head for this utterance, without padding.
    A word lasts from the first frame of its first label to the end of the last frame of its last label.
    CTC emits a label in one or two frames, so a word may really begin a little earlier and end a little
    later. If the labels cannot be aligned, words have neither times nor confidences.
    """
    times = time_labels(log_probs_TV, labels, temperature)
    words = join_labels(labels, times, tokenizer)
    if not words and None not in times:
        return (), silence_confidence(log_probs_TV, temperature)
    return words, lowest_confidence(words)


@dataclass(frozen=True)
class LabelTime:
    """The frames of one label, from `start` up to but not including `end`, and its confidence."""

    start: int
    end: int
    confidence: float


def time_labels(
    log_probs_TV: Tensor, labels: Sequence[int], temperature: float = 1.0, first_frame: int = 0
) -> list[LabelTime | None]:
    """Return each label's time, as in `find_words`; None for every label if they cannot be aligned.

    first_frame: index of the first frame of log_probs_TV.
    """
    spans = align_labels(log_probs_TV, labels)
    if spans is None:
        return [None] * len(labels)
    if not labels:
        return []
    sure = label_confidences(label_rows(log_probs_TV, labels, spans), labels, temperature).tolist()
    return [
        LabelTime(span.start + first_frame, span.end + first_frame, confidence)
        for span, confidence in zip(spans, sure, strict=True)
    ]


def join_labels(
    labels: Sequence[int], times: Sequence[LabelTime | None], tokenizer: Tokenizer
) -> tuple[Word, ...]:
    """Return the words of labels; a word has no time if one of its labels has none."""
    words = []
    for group in tokenizer.group_words(labels):
        text = tokenizer.decode([labels[k] for k in group]).strip()
        known = [time for k in group if (time := times[k]) is not None]
        if len(known) < len(group):
            words.append(Word(text, None, None, None))
            continue
        start, end = known[0].start / FRAME_RATE, known[-1].end / FRAME_RATE
        words.append(Word(text, start, end, min(time.confidence for time in known)))
    return tuple(words)


def lowest_confidence(words: Sequence[Word]) -> float | None:
    """Return the smallest confidence of the words; None if a word has none, or there are no words."""
    sure = [word.confidence for word in words if word.confidence is not None]
    return min(sure) if sure and len(sure) == len(words) else None

"""A text's words with their times and confidences, whichever search found the text.

Letters: T frames, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor

from vox.decode.align import align_labels
from vox.decode.confidence import label_confidences, label_rows, silence_confidence
from vox.text import Tokenizer
from vox.transcript import Word
from vox.units import FRAME_RATE


def find_words(
    log_probs_TV: Tensor, labels: Sequence[int], tokenizer: Tokenizer, temperature: float = 1.0
) -> tuple[tuple[Word, ...], float | None]:
    """Return the words of a text, and the confidence of the whole: the smallest of the words'.

    log_probs_TV: log-probabilities of the CTC head for this utterance, its real frames only.
    A word lasts from the first frame of its first label to the end of the last frame of its last label.
    CTC is sure of a label in one or two frames, so a word may have begun a little earlier and have
    ended a little later. Where the labels cannot be aligned, words have neither times nor confidences.
    """
    groups = tokenizer.group_words(labels)
    texts = [tokenizer.decode([labels[k] for k in group]).strip() for group in groups]
    spans = align_labels(log_probs_TV, labels)
    if spans is None:
        return tuple(Word(text, None, None, None) for text in texts), None
    if not groups:
        return (), silence_confidence(log_probs_TV, temperature)
    sure = label_confidences(label_rows(log_probs_TV, labels, spans), labels, temperature).tolist()
    words = tuple(
        Word(
            text,
            start=spans[group[0]].start / FRAME_RATE,
            end=spans[group[-1]].end / FRAME_RATE,
            confidence=min(sure[k] for k in group),
        )
        for text, group in zip(texts, groups, strict=True)
    )
    return words, min(min(sure[k] for k in group) for group in groups)

"""Word and character error rates, and where the errors are.

Edit distance over words (WER) and over characters, spaces included (CER): errors / reference length, the
sums taken over the whole set, so that a long utterance weighs more than a short one. jiwer counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer


@dataclass(frozen=True)
class UtteranceScore:
    """One utterance's share in a Score."""

    num_errors: int  # substitutions + deletions + insertions
    num_words: int  # in the reference
    alignment: str  # see `_draw_alignment`


@dataclass(frozen=True)
class Score:
    """Error rates of a set of utterances (1.0 = as many errors as words) and the counts behind them."""

    wer: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    hits: int
    num_words: int  # in the references: hits + substitutions + deletions
    num_utterances: int
    utterances: tuple[UtteranceScore, ...]  # in the order given


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Compare hypotheses with references, pair by pair.

    A hypothesis may be empty (all its words are deletions); there must be a word in the references.
    """
    assert len(references) == len(hypotheses), f"{len(references)} references, {len(hypotheses)} hypotheses"
    assert any(reference.split() for reference in references), "no word to score against"
    words = jiwer.process_words(list(references), list(hypotheses))
    characters = jiwer.process_characters(list(references), list(hypotheses))
    return Score(
        wer=words.wer,
        cer=characters.cer,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        hits=words.hits,
        num_words=words.hits + words.substitutions + words.deletions,
        num_utterances=len(words.references),
        utterances=tuple(
            _score_utterance(reference, hypothesis, chunks)
            for reference, hypothesis, chunks in zip(
                words.references, words.hypotheses, words.alignments, strict=True
            )
        ),
    )


def _score_utterance(
    reference: list[str], hypothesis: list[str], chunks: list[jiwer.AlignmentChunk]
) -> UtteranceScore:
    num_errors = sum(
        max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for chunk in chunks
        if chunk.type != "equal"
    )
    return UtteranceScore(num_errors, len(reference), _draw_alignment(reference, hypothesis, chunks))


def _draw_alignment(reference: list[str], hypothesis: list[str], chunks: list[jiwer.AlignmentChunk]) -> str:
    """Write an alignment in one line: `go {left>lift} {-up} {+now}`."""
    parts = []
    for chunk in chunks:
        said = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        heard = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            parts += said
        elif chunk.type == "substitute":
            parts += [f"{{{a}>{b}}}" for a, b in zip(said, heard, strict=True)]
        elif chunk.type == "delete":
            parts += [f"{{-{a}}}" for a in said]
        else:
            parts += [f"{{+{b}}}" for b in heard]
    return " ".join(parts)

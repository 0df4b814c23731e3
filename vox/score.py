"""Word and character error rates, and the alignments with the errors.

Edit distance over words (WER) and over characters, spaces included (CER): errors / reference length, the
sums taken over the whole set, so a long utterance has more weight than a short one. Computed by jiwer. In
scripts without words a character takes a word's place, and the error rate is the CER.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import jiwer

# A word of the reference and the word aligned to it; None on one side: an insertion or a deletion.
WordPair = tuple[str | None, str | None]


@dataclass(frozen=True)
class UtteranceScore:
    """One utterance's share in a Score."""

    num_words: int  # in the reference
    num_character_errors: int
    num_characters: int  # in the reference, spaces included
    pairs: tuple[WordPair, ...]  # the alignment, in order

    @property
    def substitutions(self) -> int:
        """Count the words replaced by another word."""
        return sum(None not in pair and pair[0] != pair[1] for pair in self.pairs)

    @property
    def deletions(self) -> int:
        """Count the words of the reference that are missing."""
        return sum(recognised is None for _, recognised in self.pairs)

    @property
    def insertions(self) -> int:
        """Count the words that are not in the reference."""
        return sum(spoken is None for spoken, _ in self.pairs)

    @property
    def num_errors(self) -> int:
        """Count the substitutions, deletions and insertions."""
        return sum(spoken != recognised for spoken, recognised in self.pairs)

    @property
    def reference(self) -> str:
        """The reference's words."""
        return " ".join(spoken for spoken, _ in self.pairs if spoken is not None)

    @property
    def hypothesis(self) -> str:
        """The hypothesis's words."""
        return " ".join(recognised for _, recognised in self.pairs if recognised is not None)

    @property
    def alignment(self) -> str:
        """Write the alignment in one line: `go {left>lift} {-up} {+now}`."""
        return " ".join(draw_pair(pair) for pair in self.pairs)


@dataclass(frozen=True)
class Score:
    """Error rates of a set of utterances (1.0 = as many errors as words), with their counts."""

    wer: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    hits: int
    num_words: int  # in the references: hits + substitutions + deletions
    num_utterances: int
    utterances: tuple[UtteranceScore, ...]  # in the order given
    rate: str = "WER"  # what `wer` is: CER where characters stand for words


def space_units(text: str, *, by_character: bool) -> str:
    """Return a text whose words are what errors are counted in: as it is, or a word for each character."""
    return " ".join("".join(text.split())) if by_character else text


def score(references: Sequence[str], hypotheses: Sequence[str], *, by_character: bool = False) -> Score:
    """Compare hypotheses with references, pair by pair.

    by_character: in all that is counted in words, count characters (without spaces) instead.
    A hypothesis may be empty (all words are deletions), and so may a reference (all are insertions). Where no
    reference has a word, there is no rate: `wer` and `cer` are NaN, and the insertions are counted.
    """
    assert len(references) == len(hypotheses), f"{len(references)} references, {len(hypotheses)} hypotheses"
    words = jiwer.process_words(
        [space_units(text, by_character=by_character) for text in references],
        [space_units(text, by_character=by_character) for text in hypotheses],
    )
    characters = jiwer.process_characters(list(references), list(hypotheses))
    has_words = any(reference.split() for reference in references)
    return Score(
        wer=words.wer if has_words else math.nan,
        cer=characters.cer if has_words else math.nan,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        hits=words.hits,
        num_words=words.hits + words.substitutions + words.deletions,
        num_utterances=len(words.references),
        utterances=tuple(
            _score_utterance(words, characters, index) for index in range(len(words.references))
        ),
        rate="CER" if by_character else "WER",
    )


def draw_pair(pair: WordPair) -> str:
    """Write one step of an alignment: `go`, `{left>lift}`, `{-up}` or `{+now}`."""
    spoken, recognised = pair
    if spoken is None:
        return f"{{+{recognised}}}"
    if recognised is None:
        return f"{{-{spoken}}}"
    return spoken if spoken == recognised else f"{{{spoken}>{recognised}}}"


def _score_utterance(
    words: jiwer.WordOutput, characters: jiwer.CharacterOutput, index: int
) -> UtteranceScore:
    pairs: list[WordPair] = []
    for chunk in words.alignments[index]:
        spoken = words.references[index][chunk.ref_start_idx : chunk.ref_end_idx]
        recognised = words.hypotheses[index][chunk.hyp_start_idx : chunk.hyp_end_idx]
        # An insertion has no words on one side, a deletion none on the other.
        pairs += zip_longest(spoken, recognised)
    return UtteranceScore(
        num_words=len(words.references[index]),
        num_character_errors=sum(map(_count_errors, characters.alignments[index])),
        num_characters=len(characters.references[index]),
        pairs=tuple(pairs),
    )


def _count_errors(chunk: jiwer.AlignmentChunk) -> int:
    if chunk.type == "equal":
        return 0
    return max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)

"""What decoding finds in a recording, or in a piece of it; consecutive pieces are joined into the whole."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vox.decode.hypothesis import Hypothesis
from vox.decode.words import LabelTime, join_labels, lowest_confidence
from vox.text import Tokenizer
from vox.transcript import Word


@dataclass(frozen=True)
class Found:
    """The result for `num_frames` consecutive frames.

    hypotheses: best first. ctc: of greedy CTC. times: of the first hypothesis's labels, counted from the
    recording's first frame. silence: confidence that nothing was said.
    """

    num_frames: int
    hypotheses: list[Hypothesis]
    ctc: Hypothesis
    times: list[LabelTime | None]
    silence: float

    def to_json(self) -> str:
        """Format it in one line; floats keep every bit."""
        return json.dumps(asdict(self))

    def list_words(self, tokenizer: Tokenizer) -> tuple[tuple[Word, ...], float | None]:
        """Return the words of the first hypothesis and its confidence, as `find_words` does."""
        words = join_labels(self.hypotheses[0].ids, self.times, tokenizer)
        return words, lowest_confidence(words) if words or None in self.times else self.silence

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Found":
        """Rebuild it from the fields of `to_json`; raises KeyError, TypeError or ValueError."""
        return cls(
            int(fields["num_frames"]),
            [Hypothesis(**hypothesis) for hypothesis in fields["hypotheses"]],
            Hypothesis(**fields["ctc"]),
            [None if time is None else LabelTime(**time) for time in fields["times"]],
            float(fields["silence"]),
        )


def find_nothing(num_frames: int = 0, silence: float = 1.0) -> Found:
    """Return the result for frames without text."""
    return Found(num_frames, [Hypothesis([])], Hypothesis([]), [], silence)


def join_found(before: Found, after: Found, nbest: int) -> Found:
    """Return the result for two consecutive pieces together."""
    return Found(
        before.num_frames + after.num_frames,
        join_hypotheses(before.hypotheses, after.hypotheses, nbest),
        Hypothesis(before.ctc.ids + after.ctc.ids),
        before.times + after.times,
        min(before.silence, after.silence),
    )


def begin_word(found: Found, tokenizer: Tokenizer) -> Found:
    """Return it with the mark of a word's beginning before a text that begins within a word."""
    mark = tokenizer.word_mark
    if mark is None:
        return found

    def begin(hypothesis: Hypothesis) -> Hypothesis:
        is_begun = not hypothesis.ids or hypothesis.ids[0] in tokenizer.word_starts
        return hypothesis if is_begun else replace(hypothesis, ids=[mark, *hypothesis.ids])

    hypotheses, times = [begin(hypothesis) for hypothesis in found.hypotheses], found.times
    if len(hypotheses[0].ids) > len(times):
        first = times[0]
        times = [None if first is None else replace(first, end=first.start), *times]
    return replace(found, hypotheses=hypotheses, ctc=begin(found.ctc), times=times)


def join_hypotheses(
    before: Sequence[Hypothesis], after: Sequence[Hypothesis], nbest: int
) -> list[Hypothesis]:
    """Return the n-best of two consecutive parts together: the `nbest` best pairs, best first."""
    pairs = [_join_pair(first, second) for first in before for second in after]
    return sorted(pairs, key=lambda pair: -(pair.score or 0.0))[:nbest]


def _join_pair(first: Hypothesis, second: Hypothesis) -> Hypothesis:
    scores = [score for score in (first.score, second.score) if score is not None]
    return Hypothesis(
        first.ids + second.ids,
        first.is_truncated or second.is_truncated,
        sum(scores) if scores else None,
        _add_parts(first.parts, second.parts),
    )


def _add_parts(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    names = dict.fromkeys([*first, *second])
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in names}

"""Hotwords: phrases that earn a bonus in a search, and how to find them in a text.

A file has one phrase a line. `mind flayer` is searched for as written. `Nyx: nicks, nix` searches for the
spellings on the right, and the text then shows the phrase on the left in their place. A line may end in a
weight, `mind flayer @2`; the default weight is 1. Empty lines are ignored, and what follows a `#` at the
beginning of a line or after a space is a comment.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vox.defaults import LARGEST_WEIGHT
from vox.errors import TextError
from vox.text import normalise_text

log = logging.getLogger(__name__)

_COMMENT = re.compile(r"(?:^|\s)#.*")


@dataclass(frozen=True)
class Hotword:
    """A phrase and the spellings that are searched for."""

    phrase: str  # as the text shows it
    spellings: tuple[str, ...]  # normalised
    weight: float = 1.0  # multiplies the weight of all hotwords


def read_hotwords(path: Path | str, normalise: Callable[[str], str] = normalise_text) -> list[Hotword]:
    """Read a file of hotwords; raise TextError with the file and line of one that cannot be used."""
    return parse_hotwords(list_lines(path), normalise)


def list_lines(path: Path | str) -> list[tuple[str, str]]:
    """Return the lines of a hotword file, each with its location; raise TextError if it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TextError("no such file of hotwords", where=path, remedy="correct the path") from None
    except UnicodeDecodeError:
        raise TextError("not a text in UTF-8", where=path, remedy="save it as UTF-8") from None
    return [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), start=1)]


def parse_hotwords(
    lines: Iterable[tuple[str | None, str]], normalise: Callable[[str], str] = normalise_text
) -> list[Hotword]:
    """Parse lines, each with its location (None: not in a file), into hotwords.

    A repeated line is skipped with a warning. Raises TextError for an empty phrase, a character outside the
    alphabet, an invalid weight, and a spelling of two different phrases.
    """
    hotwords: list[Hotword] = []
    owner: dict[str, Hotword] = {}
    repeated = []
    for where, whole_line in lines:
        line = _COMMENT.sub("", whole_line)
        if not line.strip():
            continue
        hotword = _parse_line(where, line, normalise)
        if all(owner.get(spelling) == hotword for spelling in hotword.spellings):
            repeated.append(hotword.phrase)
            continue
        for spelling in hotword.spellings:
            if spelling in owner:
                raise TextError(
                    f"the hotword {spelling!r} occurs twice, with different phrases or weights",
                    where=where,
                    remedy="delete one of the two",
                )
            owner[spelling] = hotword
        hotwords.append(hotword)
    if repeated:
        log.warning("repeated hotwords count once: %s", ", ".join(sorted(set(repeated))))
    return hotwords


def _parse_line(where: str | None, line: str, normalise: Callable[[str], str]) -> Hotword:
    body, at, weight = line.rpartition("@")
    if not at:
        body, weight = line, "1"
    phrase, colon, right = body.partition(":")
    sources = right.split(",") if colon else [body]
    spellings = tuple(dict.fromkeys(_normalise(where, source, normalise) for source in sources))
    phrase = " ".join(phrase.split()) if colon else spellings[0]
    if not phrase:
        raise TextError("an empty hotword", where=where, remedy="write a phrase before the colon")
    return Hotword(phrase, spellings, _parse_weight(where, weight))


def _normalise(where: str | None, source: str, normalise: Callable[[str], str]) -> str:
    try:
        spelling = normalise(source)
    except TextError as error:
        raise TextError(f"the hotword {source.strip()!r}", where=where, remedy=str(error)) from None
    if not spelling:
        raise TextError("an empty hotword", where=where, remedy="write a phrase, or delete the line")
    return spelling


def _parse_weight(where: str | None, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not abs(weight) <= LARGEST_WEIGHT:
        raise TextError(
            f"{text.strip()!r} is not a hotword weight",
            where=where,
            remedy=f"write a number from {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g} after the @",
        )
    return weight


def as_in_transcripts(
    hotwords: Sequence[Hotword], normalise: Callable[[str], str] = normalise_text
) -> list[Hotword]:
    """Return hotwords with phrases normalised as transcripts are, for comparison with a reference.

    A phrase that cannot be normalised (one with digits, for example) is replaced by its first spelling.
    """
    return [replace(hotword, phrase=_transcribe_phrase(hotword, normalise)) for hotword in hotwords]


def _transcribe_phrase(hotword: Hotword, normalise: Callable[[str], str]) -> str:
    try:
        return normalise(hotword.phrase) or hotword.spellings[0]
    except TextError:
        return hotword.spellings[0]


class HotwordMatcher:
    """Finds the hotwords of a list in texts: whole words, by any of their spellings."""

    def __init__(self, hotwords: Sequence[Hotword]) -> None:
        """Prepare a list once for many texts."""
        self._phrase_of = {
            tuple(s.split()): hotword.phrase for hotword in hotwords for s in hotword.spellings
        }
        self._longest = max(map(len, self._phrase_of), default=0)

    def replace_spellings(self, text: str) -> str:
        """Return a text in which each spelling is replaced by its phrase.

        Matches from the left; of several that begin at the same word, the longest is taken.
        """
        words = text.split()
        return " ".join(phrase or words[first] for phrase, first, _ in self.cut(words))

    def cut(self, words: Sequence[str]) -> list[tuple[str | None, int, int]]:
        """Split words into spellings and single words: (phrase, or None for a single word; first; end)."""
        pieces: list[tuple[str | None, int, int]] = []
        place = 0
        while place < len(words):
            ends = range(min(place + self._longest, len(words)), place, -1)
            found = next((end for end in ends if tuple(words[place:end]) in self._phrase_of), None)
            phrase = None if found is None else self._phrase_of[tuple(words[place:found])]
            pieces.append((phrase, place, found or place + 1))
            place = found or place + 1
        return pieces

    def match(self, words: Sequence[str]) -> list[tuple[str, int, int]]:
        """Return every hotword in words, including overlapping ones: (phrase, first word, end)."""
        texts = tuple(words)
        return [(self._phrase_of[texts[first:end]], first, end) for first, end in self._list_matches(texts)]

    def count(self, text: str) -> Counter[str]:
        """Count the occurrences of each phrase in a text."""
        words = tuple(text.split())
        return Counter(self._phrase_of[words[first:end]] for first, end in self._list_matches(words))

    def mark(self, words: Sequence[str]) -> list[bool]:
        """Return for each word whether it is inside a hotword."""
        is_inside = [False] * len(words)
        for first, end in self._list_matches(tuple(words)):
            is_inside[first:end] = [True] * (end - first)
        return is_inside

    def _list_matches(self, words: tuple[str, ...]) -> Iterator[tuple[int, int]]:
        for first in range(len(words)):
            for end in range(first + 1, min(first + self._longest, len(words)) + 1):
                if words[first:end] in self._phrase_of:
                    yield first, end

"""Hotwords: phrases that a search gets a bonus for, and what a text has of them.

A file has one phrase a line. `mind flayer` is searched for as it stands; `Nyx: nicks, nix` searches for the
spellings on the right, and the text then shows the phrase on the left in their place. A line may end in a
weight, `mind flayer @2`; without one it is 1. Empty lines mean nothing.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vox.defaults import LARGEST_WEIGHT
from vox.errors import TextError
from vox.text import normalise_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hotword:
    """A phrase, and what it is searched for by."""

    phrase: str  # as the text shows it
    spellings: tuple[str, ...]  # normalised
    weight: float = 1.0  # relative to the weight of all hotwords


def read_hotwords(path: Path | str) -> list[Hotword]:
    """Read a file of hotwords; raise TextError with the file and the line for one that cannot be used."""
    return parse_hotwords(list_lines(path))


def list_lines(path: Path | str) -> list[tuple[str, str]]:
    """Return the lines of a file of hotwords, each with its place; raise TextError if it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TextError("no such file of hotwords", where=path, remedy="correct the path") from None
    except UnicodeDecodeError:
        raise TextError("not a text in UTF-8", where=path, remedy="save it as UTF-8") from None
    return [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), start=1)]


def parse_hotwords(lines: Iterable[tuple[str, str]]) -> list[Hotword]:
    """Turn lines, each with where it stands, into hotwords.

    A line that repeats another one is left out with a warning. Raises TextError for a phrase of nothing, a
    character outside the alphabet, a weight that is none, and a spelling that two phrases claim.
    """
    hotwords: list[Hotword] = []
    owner: dict[str, Hotword] = {}
    repeated = []
    for where, line in lines:
        if not line.strip():
            continue
        hotword = _parse_line(where, line)
        if all(owner.get(spelling) == hotword for spelling in hotword.spellings):
            repeated.append(hotword.phrase)
            continue
        for spelling in hotword.spellings:
            if spelling in owner:
                raise TextError(
                    f"the hotword {spelling!r} is there already, for another phrase or with another weight",
                    where=where,
                    remedy="delete one of the two",
                )
            owner[spelling] = hotword
        hotwords.append(hotword)
    if repeated:
        log.warning("hotwords that are there more than once count once: %s", ", ".join(sorted(set(repeated))))
    return hotwords


def _parse_line(where: str, line: str) -> Hotword:
    body, at, weight = line.rpartition("@")
    if not at:
        body, weight = line, "1"
    phrase, colon, right = body.partition(":")
    sources = right.split(",") if colon else [body]
    spellings = tuple(dict.fromkeys(_normalise(where, source) for source in sources))
    phrase = " ".join(phrase.split()) if colon else spellings[0]
    if not phrase:
        raise TextError("a hotword of nothing", where=where, remedy="write a phrase before the colon")
    return Hotword(phrase, spellings, _parse_weight(where, weight))


def _normalise(where: str, source: str) -> str:
    try:
        spelling = normalise_text(source)
    except TextError as error:
        raise TextError(f"the hotword {source.strip()!r}", where=where, remedy=str(error)) from None
    if not spelling:
        raise TextError("a hotword of nothing", where=where, remedy="write a phrase, or delete the line")
    return spelling


def _parse_weight(where: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not abs(weight) <= LARGEST_WEIGHT:
        raise TextError(
            f"{text.strip()!r} is no weight of a hotword",
            where=where,
            remedy=f"write a number from {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g} after the @",
        )
    return weight


def as_in_transcripts(hotwords: Sequence[Hotword]) -> list[Hotword]:
    """Return hotwords whose phrases are normalised, as transcripts are, to compare a text with them.

    A phrase that cannot be (with digits, say) is its first spelling.
    """
    return [replace(hotword, phrase=_transcribe_phrase(hotword)) for hotword in hotwords]


def _transcribe_phrase(hotword: Hotword) -> str:
    try:
        return normalise_text(hotword.phrase) or hotword.spellings[0]
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

        From the left; where several begin at the same word, the longest.
        """
        words = text.split()
        return " ".join(phrase or words[first] for phrase, first, _ in self.cut(words))

    def cut(self, words: Sequence[str]) -> list[tuple[str | None, int, int]]:
        """Cut words into spellings and single words: phrase (None for a word of none), first, end."""
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
        """Return every hotword in words, overlapping ones too: phrase, first word, end."""
        texts = tuple(words)
        return [(self._phrase_of[texts[first:end]], first, end) for first, end in self._list_matches(texts)]

    def count(self, text: str) -> Counter[str]:
        """Count how often each phrase that is in a text is there."""
        words = tuple(text.split())
        return Counter(self._phrase_of[words[first:end]] for first, end in self._list_matches(words))

    def mark(self, words: Sequence[str]) -> list[bool]:
        """Say of each word whether it stands inside a hotword."""
        is_inside = [False] * len(words)
        for first, end in self._list_matches(tuple(words)):
            is_inside[first:end] = [True] * (end - first)
        return is_inside

    def _list_matches(self, words: tuple[str, ...]) -> Iterator[tuple[int, int]]:
        for first in range(len(words)):
            for end in range(first + 1, min(first + self._longest, len(words)) + 1):
                if words[first:end] in self._phrase_of:
                    yield first, end

"""ARPA files: n-gram models as text.

A file gives the number of n-grams of each order, then lists them with the log10 of their probability and,
if a longer n-gram begins with them, the log10 of their back-off weight.

Letters: M n-grams of one order, k that order.
"""

import gzip
import math
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from vox.disk import replacing
from vox.errors import LanguageModelError

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
NEVER_LOG10 = -99.0  # what other tools write for <s>, which is never predicted

_ROWS_AT_ONCE = 1 << 16
_COUNT = re.compile(r"ngram\s+(\d+)\s*=\s*(\d+)")


@dataclass(frozen=True)
class NgramTable:
    """The n-grams of one order."""

    words_Mk: NDArray[np.int32]  # indices into Arpa.vocabulary
    log10_probs_M: NDArray[np.float64]
    log10_backoffs_M: NDArray[np.float64]  # 0 where the file has none
    first_line: int = 1  # for error messages: n-gram i is on line first_line + i of the file


@dataclass(frozen=True)
class Arpa:
    """The content of an ARPA file. The vocabulary is its unigrams, in file order."""

    where: str
    vocabulary: list[str]
    tables: list[NgramTable]  # order 1 first


def read_arpa(path: Path | str) -> Arpa:
    """Read an ARPA file, gzipped if its name ends in .gz.

    Raises LanguageModelError with the file and the line for a file that is missing, truncated, not UTF-8 or
    not an ARPA file; for wrong counts, words without a unigram, and log-probabilities that are positive or
    not numbers.
    """
    try:
        with open_text(Path(path)) as file:
            return _Reader(str(path), file).read()
    except FileNotFoundError:
        raise LanguageModelError("no such language model", where=path, remedy="correct the path") from None
    except UnicodeDecodeError:
        raise LanguageModelError("not a text in UTF-8", where=path, remedy="give an ARPA file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise LanguageModelError("a damaged gzip file", where=path, remedy="make or copy it again") from None


def open_text(path: Path) -> TextIO:
    """Open a UTF-8 text for reading, with or without a byte order mark, gzipped if its name ends in .gz."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


class _Reader:
    """Reads one file and tracks its line number."""

    def __init__(self, where: str, file: TextIO) -> None:
        self.where = where
        self.number = 0  # of the last line read
        self._lines = iter(file)
        self._place_of: dict[str, int] = {}

    def read(self) -> Arpa:
        while self._next_line() != "\\data\\":
            pass
        counts = self._read_counts()
        tables = []
        for order, (line, count) in enumerate(counts, start=1):
            if line != f"\\{order}-grams:":
                raise self._error(f"{line!r} where \\{order}-grams: belongs")
            tables.append(self._read_table(order, count))
        if self._next_filled_line() != "\\end\\":
            raise self._error("no \\end\\ after the last n-gram")
        return Arpa(self.where, list(self._place_of), tables)

    def _read_counts(self) -> Iterator[tuple[str, int]]:
        """Read all counts first, then yield each order's header line with its count."""
        counts: list[int] = []
        line = self._next_filled_line()
        while match := _COUNT.fullmatch(line):
            if int(match[1]) != len(counts) + 1:
                raise self._error(f"the count of order {match[1]} where order {len(counts) + 1} belongs")
            counts.append(int(match[2]))
            line = self._next_filled_line()
        if not counts or counts[0] == 0:
            raise self._error("no counts after \\data\\, or no words")
        yield line, counts[0]
        for count in counts[1:]:
            yield self._next_filled_line(), count

    def _read_table(self, order: int, count: int) -> NgramTable:
        first_line = self.number + 1
        words, probs, backoffs = array("i"), array("d"), array("d")
        for _ in range(count):
            fields = self._next_line().split()
            if not order + 1 <= len(fields) <= order + 2 or fields[0].startswith("\\"):
                raise self._error(f"not one of the {count} {order}-grams that the header announces")
            if order == 1:
                self._add_word(fields[1])
            try:
                words.extend([self._place_of[word] for word in fields[1 : order + 1]])
            except KeyError as error:
                raise self._error(f"the word {error.args[0]!r} is not among the unigrams") from None
            probs.append(self._to_number(fields[0], may_be_positive=False))
            backoffs.append(self._to_number(fields[-1]) if len(fields) == order + 2 else 0.0)
        if line := self._next_line():
            raise self._error(f"more than the {count} {order}-grams that the header announces: {line[:40]!r}")
        return NgramTable(
            np.array(words, dtype=np.int32).reshape(-1, order),
            np.array(probs),
            np.array(backoffs),
            first_line,
        )

    def _add_word(self, word: str) -> None:
        if word in self._place_of:
            raise self._error(f"the unigram {word!r} occurs twice")
        self._place_of[word] = len(self._place_of)

    def _to_number(self, field: str, may_be_positive: bool = True) -> float:
        try:
            number = float(field)
        except ValueError:
            raise self._error(f"{field!r} is not a number") from None
        if not math.isfinite(number):
            raise self._error(f"{field} is not a finite number")
        if number > 0 and not may_be_positive:
            raise self._error(f"the positive log-probability {field}")
        return number

    def _next_line(self) -> str:
        line = next(self._lines, None)
        if line is None:
            what = "a truncated ARPA file" if self._place_of else "not an ARPA file, or a truncated one"
            raise LanguageModelError(
                f"{what} (it ends at line {self.number})", where=self.where, remedy="make or copy it again"
            )
        self.number += 1
        return line.strip()

    def _next_filled_line(self) -> str:
        while not (line := self._next_line()):
            pass
        return line

    def _error(self, reason: str) -> LanguageModelError:
        return LanguageModelError(reason, where=f"{self.where}:{self.number}", remedy="make the model again")


def write_arpa(path: Path | str, vocabulary: Sequence[str], tables: Sequence[NgramTable]) -> None:
    """Write an ARPA file atomically, gzipped if its name ends in .gz. Makes its folder; raises OSError.

    The back-off weight is left out in the highest order.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with replacing(path) as (part_path, _), opener(part_path, "wt", encoding="utf-8") as file:
        file.writelines(_format_lines(vocabulary, tables))


def _format_lines(vocabulary: Sequence[str], tables: Sequence[NgramTable]) -> Iterator[str]:
    yield "\\data\\\n"
    for order, table in enumerate(tables, start=1):
        yield f"ngram {order}={len(table.words_Mk)}\n"
    for order, table in enumerate(tables, start=1):
        yield f"\n\\{order}-grams:\n"
        for first in range(0, len(table.words_Mk), _ROWS_AT_ONCE):
            yield from _format_rows(
                vocabulary, table, slice(first, first + _ROWS_AT_ONCE), order < len(tables)
            )
    yield "\n\\end\\\n"


def _format_rows(
    vocabulary: Sequence[str], table: NgramTable, rows: slice, with_backoffs: bool
) -> Iterator[str]:
    # Iterating over Python numbers is several times faster than over numpy's.
    columns = (table.words_Mk[rows], table.log10_probs_M[rows], table.log10_backoffs_M[rows])
    for words, prob, backoff in zip(*(column.tolist() for column in columns), strict=True):
        text = " ".join([vocabulary[word] for word in words])
        yield f"{prob:.7g}\t{text}\t{backoff:.7g}\n" if with_backoffs else f"{prob:.7g}\t{text}\n"

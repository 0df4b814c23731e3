"""Read text for language models: files with one sentence a line."""

import gzip
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vox.errors import LanguageModelError, TextError, name_count, name_first
from vox.lm.arpa import BOS, EOS, UNK, open_text
from vox.text import ENGLISH, UNK_ID, Tokenizer

log = logging.getLogger(__name__)

Encode = Callable[[str], Sequence[int]]
Encoded = TypeVar("Encoded")


def read_sentences(
    path: Path,
    encode: Callable[[str], Encoded],
    *,
    skip_bad: bool = False,
    left_out: list[str] | None = None,
    normalise: Callable[[str], str] = ENGLISH,
) -> Iterator[Encoded]:
    """Yield `encode` of each normalised line of a text file, gzipped if its name ends in .gz.

    Lines without words are skipped. Raises LanguageModelError for a file that cannot be read, and, with its
    number, for a line that cannot be used. skip_bad: skip such lines and log a warning with their count.
    left_out: is filled with the numbers of the lines that are skipped, and why.
    """
    bad: list[str] = [] if left_out is None else left_out
    num_used = 0
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = normalise(line)
                    if text:
                        yield encode(text)
                        num_used += 1
                except TextError as error:
                    if not skip_bad:
                        raise _bad_line(path, number, error) from None
                    bad.append(f"{number}: {error}")
    except FileNotFoundError:
        raise LanguageModelError("no such text", where=path, remedy="correct the path") from None
    except UnicodeDecodeError:
        raise LanguageModelError("not a text in UTF-8", where=path, remedy="save it as UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise LanguageModelError("a damaged gzip file", where=path, remedy="make or copy it again") from None
    if bad:
        log.warning("%s: left out %s: line %s", path, name_count(len(bad), "line"), name_first(bad))
    if num_used == 0:
        raise LanguageModelError("a text without a line that can be used", where=path, remedy="give another")


def _bad_line(path: Path, number: int, error: TextError) -> LanguageModelError:
    return LanguageModelError(
        "a line that cannot be used", where=f"{path}:{number}", remedy=f"{error} (or give --skip-bad)"
    )


def piece_vocabulary(tokenizer: Tokenizer) -> tuple[list[str], Encode]:
    """Return the vocabulary of a model over pieces (all but <pad>), and a function from text to its indices.

    The function raises TextError for a text with letters that the tokenizer does not have.
    """

    def encode(text: str) -> list[int]:
        ids = tokenizer.encode(text)
        if UNK_ID in ids:
            missing = sorted(letter for letter in set(text) - {" "} if UNK_ID in tokenizer.encode(letter))
            raise TextError(f"letters that the recogniser cannot write ({' '.join(missing)})")
        return [label - 1 for label in ids]

    return tokenizer.pieces[1:], encode


class WordVocabulary:
    """A vocabulary of words: each new word gets the next index."""

    def __init__(self) -> None:
        self.place_of = {word: place for place, word in enumerate((BOS, EOS, UNK))}

    def encode(self, text: str) -> list[int]:
        """Return the indices of a text's words; add new words."""
        return [self.place_of.setdefault(word, len(self.place_of)) for word in text.split()]

    def encode_known(self, text: str) -> list[int]:
        """Return the indices of a text's words; unknown words are <unk>."""
        return [self.place_of.get(word, self.place_of[UNK]) for word in text.split()]

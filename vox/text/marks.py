"""Marks that are no letters, in every alphabet: tags, apostrophes, symbols that are spoken."""

import re
from collections.abc import Iterable, Sequence

from vox.errors import TextError
from vox.text.numbers import advise_on_digits

# Each is written for an apostrophe in practice: typographic, modifier letter, prime, grave, acute.
APOSTROPHES = dict.fromkeys(map(ord, "\u2019\u02bb\u02bc\u2032\uff07\u0060\u00b4"), "'")

# Punctuation to Unicode, words to a speaker: removing them would make the transcript wrong.
SPOKEN_SYMBOLS = frozenset("%&@#")

# Not spoken, and not distinguishable from what is: noises, speakers, editor's remarks.
_TAG = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>|\{[^}]*\}|\*\w[^*]*\*")


def refuse_tags(text: str) -> None:
    """Raise TextError for words in brackets: a noise, a remark, or words that are spoken."""
    if tag := _TAG.search(text):
        raise TextError(
            f"words in brackets ({tag[0]})", remedy="remove them, or the brackets if the words are spoken"
        )


def outside_alphabet(
    characters: Iterable[str], letters: str, language: str | None, *, has_set: bool
) -> TextError:
    """Return the error for characters that an alphabet lacks.

    letters: what to do about letters. language: that of the texts, None if it is not set. has_set: as in
    `Normaliser`.
    """
    bad = sorted(set(characters))
    if any(character.isdecimal() for character in bad):
        remedy = advise_on_digits(language, has_set=has_set)
    elif any(map(_is_number, bad)):
        remedy = "write numbers as words"
    elif any(character.isalpha() for character in bad):
        remedy = letters
    else:
        remedy = "spell them out as words"
    return TextError(f"characters outside the alphabet ({describe_characters(bad)})", remedy=remedy)


def _is_number(character: str) -> bool:
    """Return whether a character is a digit of any script, or another number such as \u00bd."""
    return character.isdigit() or (character.isnumeric() and not character.isalpha())


def describe_characters(characters: Sequence[str]) -> str:
    """Write the first ten characters, spaces between; those without a shape as U+XXXX."""
    return " ".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in characters[:10])

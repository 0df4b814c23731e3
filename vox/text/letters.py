"""Transcripts in any script: lower case as the language has it, marks kept, punctuation removed."""

import re
import unicodedata
from collections.abc import Sequence

from vox.text.marks import APOSTROPHES, SPOKEN_SYMBOLS, outside_alphabet, refuse_tags
from vox.text.table import Table

# Languages whose capital I is not that of i (Unicode's SpecialCasing.txt). Latin letters only.
_DOTTED_I = frozenset({"tr", "az"})
_CAPITAL_I = str.maketrans({"\u0130": "i", "I": "\u0131"})
# Lithuanian dictionaries keep the dot of i under an accent; Python adds one to \u0130. Here none is kept.
_DOT_ABOVE = re.compile("(?<=[ij\u012f])\u0307+")

# How Unicode calls characters that are another shape of others: full-width, or places in an Arabic word.
_SHAPES = ("<wide>", "<narrow>", "<isolated>", "<initial>", "<medial>", "<final>")
_LATIN_LIGATURES = range(0xFB00, 0xFB07)
_BRACKETS = str.maketrans("\u3010\u3011\u3014\u3015", "[][]")

_QUOTE = "\u2018"  # an opening quotation mark, if no letter stands before it
_APOSTROPHES = APOSTROPHES | {ord("\u05f3"): "'", ord("\u201b"): _QUOTE}  # and the Hebrew geresh
_SPOKEN = SPOKEN_SYMBOLS | frozenset("\u066a\u2030")  # Arabic percent, per mille
_JOINERS = "\u200c\u200d"  # Persian and Indian words are written with them; elsewhere they are nothing
_JOINERS_AT_AN_EDGE = re.compile(rf"(?<![^\s'{_QUOTE}])[{_JOINERS}]+|[{_JOINERS}]+(?![^\s'{_QUOTE}])")
_TATWEEL = "\u0640"  # stretches an Arabic word, and is not read
_ZERO = "\u3007"  # a number to Unicode, a character of Chinese words


def normalise_letters(
    text: str, language: str | None = None, table: Table | None = None, *, has_set: bool = False
) -> str:
    """Return a transcript in lower-case letters of any script, apostrophes and single spaces, in NFC.

    language: a code such as `tr`. table: allows its own characters, and no others. Punctuation is replaced by
    a space, quotation marks are removed. Returns "" if nothing is left. Raises TextError naming what is in
    brackets, and digits, symbols and characters that are not in the table. has_set: as in `Normaliser`.
    """
    text = fold_shapes(text).translate(_BRACKETS)
    refuse_tags(text)
    text = lower_case(text, language)
    if table is not None:
        text = table.replace(text)
    allowed = None if table is None else table.characters
    apostrophes = {code: mark for code, mark in _APOSTROPHES.items() if chr(code) not in (allowed or ())}
    reduced = "".join(_reduce_character(character, allowed) for character in text.translate(apostrophes))
    if bad := {c for c in reduced if not _is_known(c, allowed)}:
        letters = "add them to your table, or a line `x -> y` for each" if has_set else "write it otherwise"
        raise outside_alphabet(bad, letters, language, has_set=has_set)
    spaced = re.sub(r"(?<!l)\u00b7|\u00b7(?!l)", " ", reduced) if allowed is None else reduced
    inside = _JOINERS_AT_AN_EDGE.sub("", spaced)
    joined = " ".join(remove_quotes(_mark_quotes(inside).split()))
    if allowed is None:
        return _end_with_final_sigma(joined)
    return joined if "'" in allowed else " ".join(joined.replace("'", " ").split())


def normalise_characters(text: str, language: str | None = None, *, has_set: bool = False) -> str:
    """Return a transcript of a script without spaces: as `normalise_letters`, then without any space."""
    return normalise_letters(text, language, has_set=has_set).replace(" ", "")


def fold_shapes(text: str) -> str:
    """Replace characters that are another shape of others: full-width letters, ligatures, Arabic forms."""
    return "".join(map(_fold_shape, text)) if not text.isascii() else text


def _fold_shape(character: str) -> str:
    shape = unicodedata.decomposition(character).partition(" ")[0]
    if shape in _SHAPES or ord(character) in _LATIN_LIGATURES:
        return unicodedata.normalize("NFKC", character)
    return character


def lower_case(text: str, language: str | None) -> str:
    """Return a text in lower case and NFC. German \u00df stays; i has a dot as the language has it."""
    text = unicodedata.normalize("NFC", text)
    if language is not None and language.lower().split("-")[0] in _DOTTED_I:
        text = text.translate(_CAPITAL_I)
    return unicodedata.normalize("NFC", _DOT_ABOVE.sub("", text.lower()))


def _reduce_character(character: str, allowed: frozenset[str] | None) -> str:
    """Return a letter or mark, a space for punctuation, nothing for what is not read, else the character."""
    if character in ("'", _QUOTE) or character in _SPOKEN or (allowed is not None and character in allowed):
        return character
    if allowed is None and character in (*_JOINERS, "\u00b7"):
        return character
    category = unicodedata.category(character)
    is_variant = category == "Mn" and unicodedata.name(character, "").startswith("VARIATION SELECTOR")
    if category == "Cf" or character == _TATWEEL or is_variant:
        return ""
    return " " if character.isspace() or category[0] == "P" else character


def _is_known(character: str, allowed: frozenset[str] | None) -> bool:
    if character in (" ", "'", _QUOTE):
        return True
    if allowed is not None:
        return character in allowed
    return unicodedata.category(character)[0] in "LM" or character in (*_JOINERS, "\u00b7", _ZERO)


def _mark_quotes(text: str) -> str:
    """Keep \u2018 where it opens a quotation; between letters (Uzbek o\u2018zbek) it is an apostrophe."""
    text = re.sub(rf"(?<=[^\W_]){_QUOTE}(?=[^\W_])", "'", text)
    return re.sub(rf"['{_QUOTE}]{{2,}}", " ", text).replace(_QUOTE, f" {_QUOTE}")


def remove_quotes(words: Sequence[str]) -> list[str]:
    """Remove apostrophes that are quotation marks: one before a word, with the next one after a word.

    An apostrophe at a word's edge without a partner stays (Italian po', Afrikaans 'n); \u2018 never does.
    """
    words, opened = list(words), []
    for position, word in enumerate(words):
        if word.startswith(("'", _QUOTE)) and len(word) > 1:
            opened.append(position)
        if word.endswith("'") and len(word) > 1 and opened:
            words[position] = words[position][:-1]
            first = opened.pop()
            words[first] = words[first][1:]
    words = [word.removeprefix(_QUOTE).replace(_QUOTE, "'") for word in words]
    return [word for word in words if word not in ("", "'")]


def _end_with_final_sigma(text: str) -> str:
    """Write Greek sigma as \u03c2 at the end of a word and as \u03c3 elsewhere, however it was written.

    Not before an apostrophe, where letters are left out, and not alone.
    """
    if "\u03c2" not in text and "\u03c3" not in text:
        return text
    return re.sub(r"(?<=\w)\u03c3(?![\w'])", "\u03c2", text.replace("\u03c2", "\u03c3"))

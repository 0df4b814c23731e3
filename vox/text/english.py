"""English transcripts: a to z, apostrophe, space."""

import re
import unicodedata
from collections.abc import Sequence

from vox.text.marks import APOSTROPHES, SPOKEN_SYMBOLS, outside_alphabet, refuse_tags

ALPHABET = "abcdefghijklmnopqrstuvwxyz'"
_NORMALISED = re.compile(r"[a-z']+(?: [a-z']+)*")

# Opening quotation marks: an apostrophe only where a word in front of which letters are left out begins.
_OPENING_QUOTES = dict.fromkeys(map(ord, "\u2018\u201b"), " \u2018")
_ELISIONS = frozenset(
    """
    ad appy as ave bout cause cept e em er ere fore fraid gainst im is less mid mongst neath n nother nough
    nuff ome ouse ow pon round scuse spose stead til till tis tisn't twas twasn't tween twere twill twixt
    twould un way
    """.split()  # noqa: SIM905 - easier to read
)
# A word whose last letters are left out, or a plural's genitive: its apostrophe is no closing quotation mark.
_ENDS_WITH_APOSTROPHE = re.compile(r".*(?:s|x|z|in)'|(?:an|o|ol|th|wi|t|i|a|d|mo|po|fo|ha|gi|fu)'")

MAX_QUOTATIONS = 8  # one inside another; what is deeper keeps its marks

# Latin letters that Unicode does not decompose into a letter and a mark.
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "\u0131": "i"}
)


class _Reduction(dict[int, str]):
    """A table for str.translate that works out each character when it first meets it."""

    def __missing__(self, code: int) -> str:
        self[code] = _reduce_character(chr(code))
        return self[code]


def _reduce_character(character: str) -> str:
    category = unicodedata.category(character)
    if character in "'\u2018" or character in SPOKEN_SYMBOLS:
        return character
    if category in ("Mn", "Cf"):  # marks left by decomposition; soft hyphens and zero-width characters
        return ""
    return " " if character.isspace() or category[0] == "P" else character


_REDUCTION = _Reduction()


def normalise_text(text: str, *, has_set: bool = False) -> str:
    """Reduce a transcript to lower-case a-z, apostrophes and single spaces.

    Accents are stripped, typographic apostrophes mapped, quotation marks removed, other punctuation replaced
    by a space. Returns "" if nothing is left. Raises TextError naming what is in brackets (a noise, a remark,
    or words that are spoken: only a person can tell), and the characters that remain (digits, symbols that
    are spoken, other alphabets). has_set: as in `Normaliser`.
    """
    lowered = text.lower()
    if _NORMALISED.fullmatch(lowered) and "'" not in lowered:
        return lowered  # nearly every line of a large corpus
    refuse_tags(text)
    lowered = lowered.translate(_OPENING_QUOTES).translate(APOSTROPHES)
    decomposed = unicodedata.normalize("NFKD", lowered).lower().translate(_LETTERS)
    spelled = decomposed.translate(_REDUCTION)
    if bad := set(spelled) - set(ALPHABET + "\u2018 "):
        letters = "write it in the letters a to z"
        letters += ", or use --set text.alphabet=letters" if has_set else ""
        raise outside_alphabet(bad, letters, language="en", has_set=has_set)
    words: list[str] = []
    for _ in range(MAX_QUOTATIONS):  # one inside another, until nothing changes
        before, words = words, _remove_quotes(re.sub("''+", " ", spelled).split())
        spelled = " ".join(words)
        if words == before:
            break
    return spelled


def _remove_quotes(words: list[str]) -> list[str]:
    """Remove the apostrophes that are quotation marks: those of a pair, and typographic opening ones.

    An opening mark stands before a word, and its closing mark after the same word or a later one; a word that
    ends with an apostrophe anyway (dogs', goin') closes only where no other does, at the text's end.
    """
    words = list(words)
    opening = closing = None
    for position, word in enumerate(words):
        is_quote = word.startswith("\u2018")
        word = words[position] = word.replace("\u2018", "'")
        if word.startswith("'") and word != "'" and opening is None:
            rest = word[1:].rstrip("'")
            closing = None if rest in _ELISIONS else _find_closing(words, position)
            if rest not in _ELISIONS and (is_quote or closing is not None):
                words[position] = word = word[1:]
                opening = position
        if opening is not None and position == closing:
            words[position] = word.removesuffix("'")
            opening = None
    return [word for word in words if word not in ("", "'")]


def _find_closing(words: Sequence[str], opening: int) -> int | None:
    """Return where the quotation that begins at a word ends; None if nothing closes it."""
    for position in range(opening, len(words)):
        if words[position].endswith("'") and not _ENDS_WITH_APOSTROPHE.fullmatch(words[position]):
            return position
    return next((k for k in (opening, len(words) - 1) if words[k].endswith("'")), None)

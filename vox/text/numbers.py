"""Numbers as words, by num2words (the extra `numbers`)."""

import re
from collections.abc import Callable, Container

from vox.errors import TextError

MAX_DIGITS = 15

# Around a number that can be read in one way only.
_BEFORE = frozenset("\"'(\u2018\u201c\u201e\u00ab\u2039\u300c\u300e\u00bf\u00a1")
_AFTER = frozenset("\"').,;:!?\u2019\u201d\u201c\u2026\u00bb\u203a\u300d\u300f\u3002\u3001\uff0c\uff01\uff1f")


def make_speller(language: str, *, has_words: bool, has_set: bool = False) -> Callable[[str], str]:
    """Return a function that writes the whole numbers of a text as words.

    It raises TextError naming a number that can be read in several ways: with a sign, a decimal point, a
    unit, letters beside it (but in scripts without words), zeros before it, or a full stop within a text (in
    many languages an ordinal number). Raises TextError if num2words is not installed or lacks the language.
    has_set: as in `Normaliser`.
    """
    try:
        import num2words
    except ImportError:
        raise TextError(
            "text.numbers is spell, and the package num2words is not installed",
            remedy="pip install num2words" + (", or --set text.numbers=refuse" if has_set else ""),
        ) from None
    known = num2words.CONVERTER_CLASSES
    code = _find_code(language, known)
    if code is None:
        raise TextError(
            f"num2words cannot spell the numbers of {language}",
            remedy=f"it knows {', '.join(sorted(known))}; or write them as words",
        )

    def spell(text: str) -> str:
        return re.sub(r"\d+", lambda found: _spell_number(found, code, has_words), text)

    def _spell_number(found: re.Match[str], code: str, has_words: bool) -> str:
        if not _is_plain(found, has_words):
            raise TextError(
                f"a number that can be read in several ways ({_name(found)})", remedy="write it as words"
            )
        return str(num2words.num2words(int(found[0]), lang=code))

    return spell


def advise_on_digits(language: str | None, *, has_set: bool) -> str:
    """Return what a user can do about digits in a text.

    language: None if it is not known. has_set: as in `Normaliser`.
    """
    by_hand = "write numbers as words"
    if not has_set:
        return by_hand
    if language is None:
        return f"{by_hand}, or --set text.language=CODE --set text.numbers=spell"
    try:
        import num2words
    except ImportError:
        return f"{by_hand}, or pip install num2words and --set text.numbers=spell, if it has {language}"
    is_known = _find_code(language, num2words.CONVERTER_CLASSES) is not None
    return f"{by_hand}, or --set text.numbers=spell" if is_known else by_hand


def _find_code(language: str, known: Container[str]) -> str | None:
    """Return what num2words calls a language; None if it lacks it."""
    codes = (language.replace("-", "_"), language.split("-")[0])
    return next((code for code in codes if code in known), None)


def count_numbers(text: str) -> int:
    """Count the numbers of a text that are written in digits."""
    return len(re.findall(r"\d+", text))


def _is_plain(found: re.Match[str], has_words: bool) -> bool:
    digits, text = found[0], found.string
    before, after = text[: found.start()], text[found.end() :]
    if len(digits) > MAX_DIGITS or (len(digits) > 1 and int(digits[0]) == 0):
        return False
    if not has_words:
        before, after = before.rstrip(), after.lstrip()
    last, first = before[-1:], after[:1]
    if not has_words and last.isalpha():
        last = ""
    if not has_words and first.isalpha():
        first = ""
    if (last and not last.isspace() and last not in _BEFORE) or (
        first and not first.isspace() and first not in _AFTER
    ):
        return False
    rest = after[1:].lstrip("".join(_AFTER))
    is_ordinal = first == "." and rest.strip() != ""
    is_joined = first in _AFTER and rest[:1].isdigit()
    return not is_ordinal and not is_joined


def _name(found: re.Match[str]) -> str:
    """Return the word that a number is in, or so much of it as a line has room for."""
    text, start, end = found.string, found.start(), found.end()
    before, after = text[:start].split(" ")[-1], text[end:].split(" ")[0]
    return f"{before[-20:]}{found[0]}{after[:20]}"

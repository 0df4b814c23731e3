"""Rules that change references and hypotheses alike before they are scored.

Whisper's published error rates are measured on texts that its English normaliser has changed (Radford et al.
2022, appendix C): numbers in digits, contractions written out, American spelling, no "um". transformers has
its rules, equal to OpenAI's, and whisper-normalizer OpenAI's table of spellings. (That package's own rules
differ from OpenAI's in four words.)
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from vox.errors import ConfigError
from vox.text import Normaliser

WHISPER_ENGLISH = "whisper-english"
STANDARDS = (WHISPER_ENGLISH,)
_PACKAGE = "whisper-normalizer==0.1.15"


@dataclass(frozen=True)
class Standard:
    """A function from a text to what is scored, and its name in reports."""

    name: str
    apply: Callable[[str], str]


UNCHANGED = Standard("", str)


def load_standard(name: str, normaliser: Normaliser) -> Standard:
    """Return the standard of a name, for a checkpoint of that normaliser.

    Raises ConfigError for a checkpoint that does not write English words, and if the table is not installed.
    """
    assert name == WHISPER_ENGLISH, name
    config = normaliser.config
    if not normaliser.is_english:
        given = f"text.alphabet={config.alphabet}, text.language={config.language or 'null'}"
        raise ConfigError(
            f"--normalise {name} is for English, and the checkpoint has {given}", remedy="leave it out"
        )
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    rules = EnglishTextNormalizer(_read_spellings())

    @cache  # a millisecond a text, and each is needed several times
    def apply(text: str) -> str:
        return " ".join(rules(text).split())

    return Standard(name, apply)


def _read_spellings() -> dict[str, str]:
    """Return OpenAI's table from British spelling to American spelling."""
    try:
        table = resources.files("whisper_normalizer") / "normalizers" / "english.json"
        spellings: dict[str, str] = json.loads(table.read_text(encoding="utf-8"))
    except (ModuleNotFoundError, FileNotFoundError):  # releases before 0.1 lack the file
        raise ConfigError(
            f"--normalise {WHISPER_ENGLISH} needs a package that is not installed",
            remedy=f"pip install {_PACKAGE}",
        ) from None
    return spellings

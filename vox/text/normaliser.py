"""The normaliser of a config: it brings the transcripts of a run, and what is scored, into one alphabet."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vox.config import TextConfig, load_config
from vox.errors import ConfigError
from vox.text.english import ALPHABET, normalise_text
from vox.text.letters import normalise_characters, normalise_letters
from vox.text.numbers import count_numbers, make_speller
from vox.text.table import parse_table


class Normaliser:
    """Brings transcripts into the alphabet of a config.

    config: what it was made from. letters: those that a tokenizer must have; "" where only the texts tell.
    has_words: False for scripts without spaces, where a character is the unit of the tokenizer and of scores.
    has_set: whether the command that reads the texts has `--set`: only then errors advise to use it.
    """

    def __init__(self, config: TextConfig | None = None, *, has_set: bool = False) -> None:
        """Prepare a config's rules; None: English. Raises TextError for what cannot be used."""
        self.config = config = config or TextConfig()
        self.has_set = has_set
        self.has_words = config.alphabet != "characters"
        self._table = None if config.table is None else parse_table(config.table, config.alphabet)
        self.letters = ALPHABET if config.alphabet == "english" else ""
        if self._table is not None:
            self.letters = "".join(sorted(self._table.characters))
        self._spell = None
        if config.numbers == "spell":
            self._spell = make_speller(config.language or "en", has_words=self.has_words, has_set=has_set)

    def __call__(self, text: str) -> str:
        """Return a text in the alphabet; "" if nothing is left of it.

        Raises TextError naming what must be written otherwise: words in brackets, digits, symbols that are
        spoken, characters outside the alphabet.
        """
        if self._spell is not None:
            text = self._spell(text)
        if self.config.alphabet == "english":
            return normalise_text(text, has_set=self.has_set)
        if not self.has_words:
            return normalise_characters(text, self.config.language, has_set=self.has_set)
        return normalise_letters(text, self.config.language, self._table, has_set=self.has_set)

    def count_spelled(self, text: str) -> int:
        """Count the numbers of a usable text that were written as words."""
        return 0 if self._spell is None else count_numbers(text)

    @property
    def is_english(self) -> bool:
        """Whether the texts are in English words; `letters` without a language may be in any."""
        language = (self.config.language or "").lower().replace("_", "-").split("-")[0]
        return self.has_words and (language == "en" or (not language and self.config.alphabet == "english"))

    @property
    def name(self) -> str:
        """Return a name for files that depend on the alphabet, as `letters-tr`; "" for English."""
        config = self.config
        if config.table is not None:
            parts = [f"table-{hashlib.sha256(chr(10).join(config.table).encode()).hexdigest()[:8]}"]
        else:
            parts = [] if config.alphabet == "english" else [config.alphabet]
        parts += [] if config.language is None else [config.language]
        return "-".join([*parts, *(["spelled"] if config.numbers == "spell" else [])])


ENGLISH = Normaliser()


def load_normaliser(config_path: Path | None, overrides: Sequence[str]) -> Normaliser:
    """Return the normaliser of a config file and of `text.KEY=VALUE`; raise ConfigError or TextError."""
    if other := next((each for each in overrides if not each.startswith("text.")), None):
        raise ConfigError(
            f"--set {other}: only keys of the section text count here", remedy="as text.alphabet=letters"
        )
    return Normaliser(load_config(config_path, overrides).text, has_set=True)


def accept_any_text(text: str) -> str:
    """Return a transcript as it is, single spaces between words: for those who need its recording only."""
    return " ".join(text.split())

"""The sections about a corpus: its splits and batches, and the alphabet of its transcripts."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from vox.config.section import MAX_COUNT, MAX_SPLIT_WEIGHT, MAX_WORKERS, Section, auto_or_number

_Speed = Annotated[float, Field(ge=0.5, le=2.0)]


def _check_splits(given: tuple[str, ...]) -> tuple[str, ...]:
    weights = dict(map(_parse_weight, given))
    if len(weights) != len(given):
        raise ValueError(f"{', '.join(given)} must be different splits")
    if not all(1 <= weight <= MAX_SPLIT_WEIGHT for weight in weights.values()):
        raise ValueError(f"the number after a split is from 1 to {MAX_SPLIT_WEIGHT}")
    return given


def _check_no_weights(given: tuple[str, ...]) -> tuple[str, ...]:
    if weighted := [entry for entry in given if _parse_weight(entry)[0] != entry]:
        raise ValueError(f"{weighted[0]}: a number after a split is for data.train_split only")
    return given


def _list_splits(value: object) -> object:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("give a split's name, or a list of names")
    return value


# One split's name, or a list of names. A tuple even of one, so that all that follows knows one kind.
WeightedSplits = Annotated[
    tuple[str, ...], BeforeValidator(_list_splits), AfterValidator(_check_splits), Field(min_length=1)
]
Splits = Annotated[WeightedSplits, AfterValidator(_check_no_weights)]


def _parse_weight(entry: str) -> tuple[str, int]:
    """Read `names:3` as a split and how often an epoch hears its utterances; once without a number."""
    name, _, count = entry.rpartition(":")
    return (name, int(count)) if name and count.isdecimal() else (entry, 1)


class DataConfig(Section):
    """Splits and batches."""

    train_split: WeightedSplits = Field(
        default=("train-clean-100",),
        description="one, or a list; NAME:3 is heard three times an epoch",
    )
    dev_split: Splits = Field(default=("dev-clean",), description="one, or a list, which is scored as one")
    utterances_per_update: int = Field(
        default=32, ge=1, le=MAX_COUNT, description="over all ranks and micro-batches"
    )
    micro_batch_utterances: Annotated[Literal["auto"] | int, auto_or_number(1, MAX_COUNT)] = Field(
        default="auto", description="utterances on a device at once; auto: as many as fit, 8 on a CPU"
    )
    micro_batch_seconds: float | None = Field(
        default=None, gt=0, description="padded seconds on a device at once, in place of a count"
    )
    workers: int = Field(
        default=2, ge=0, le=MAX_WORKERS, description="processes that decode audio in live training"
    )
    speeds: tuple[_Speed, ...] = Field(
        default=(1.0,), min_length=1, description="the train split is heard at each of these speeds"
    )
    concatenate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the updates whose utterances stand 2 to 4 in a row, one after the other",
    )
    concatenate_seconds: float = Field(
        default=30.0, gt=0, description="the longest row of several utterances"
    )
    min_seconds: float | None = Field(
        default=None, gt=0, description="shorter utterances are left out of training, and listed"
    )
    max_seconds: float | None = Field(
        default=None, gt=0, description="longer utterances are left out of training, and listed"
    )

    @property
    def train_weights(self) -> dict[str, int]:
        """How often an epoch hears each train split's utterances, by the split's name."""
        return dict(map(_parse_weight, self.train_split))

    @model_validator(mode="after")
    def _check_limits(self) -> "DataConfig":
        least, most = self.min_seconds, self.max_seconds
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_seconds {least} is above max_seconds {most}")
        return self

    @model_validator(mode="after")
    def _check_speeds(self) -> "DataConfig":
        if len(set(self.speeds)) != len(self.speeds):
            raise ValueError(f"speeds {list(self.speeds)} must be different")
        return self


BUILT_IN_ALPHABETS = ("english", "letters", "characters")


class TextConfig(Section):
    """The alphabet of transcripts, and how they are brought into it (docs/languages.md)."""

    alphabet: str = Field(
        default="english", description="english, letters, characters, or the file of a table of your own"
    )
    language: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*$",
        description="a code as tr or de: how capital letters become small ones, and numbers words",
    )
    numbers: Literal["refuse", "spell"] = Field(
        default="refuse", description="spell: as words, by num2words (an extra), in text.language"
    )
    table: tuple[str, ...] | None = Field(
        default=None, description="the lines of a table of your own, filled in when its file is read"
    )

    @property
    def rules(self) -> tuple[object, ...]:
        """What decides how a text is written: where they are equal, so are alphabets."""
        return ("table" if self.table else self.alphabet, self.language, self.table)

    @model_validator(mode="before")
    @classmethod
    def _read_table(cls, tree: Any) -> Any:
        """Read the file of a table, so that a saved config needs it no more."""
        if not isinstance(tree, dict):
            return tree
        if tree.get("language") is False:  # YAML's reading of `no`: Norwegian
            tree = {**tree, "language": "no"}
        alphabet = tree.get("alphabet", "english")
        if not isinstance(alphabet, str) or alphabet in BUILT_IN_ALPHABETS or tree.get("table") is not None:
            return tree
        try:
            lines = Path(alphabet).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError):
            known = ", ".join(BUILT_IN_ALPHABETS)
            raise ValueError(f"{alphabet}: take {known}, or the file of a table in UTF-8") from None
        kept = [line.strip() for line in lines]
        return {**tree, "table": [line for line in kept if line and not line.startswith("#")]}

    @model_validator(mode="after")
    def _check_text(self) -> "TextConfig":
        if (self.table is None) != (self.alphabet in BUILT_IN_ALPHABETS):
            raise ValueError(
                "text.table belongs to an alphabet of your own: name its file with text.alphabet"
            )
        if self.alphabet == "english" and (self.language or "en").lower()[:2] != "en":
            raise ValueError(f"alphabet english with language {self.language}: set text.alphabet=letters")
        if self.numbers == "spell" and self.language is None and self.alphabet != "english":
            raise ValueError("numbers are spelled in a language: set text.language")
        return self

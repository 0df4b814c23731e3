"""What all sections of a config share: strictness, and bounds of values."""

from pydantic import BaseModel, BeforeValidator, ConfigDict

# Far beyond any use: a slip of the keyboard is an error here, not a failed allocation later.
MAX_VOCAB_SIZE = 1_000_000
MAX_WIDTH = 65_536
MAX_LAYERS = 1_000
MAX_KERNEL = 10_001
MAX_COUNT = 1_000_000_000
MAX_WORKERS = 1_000
MAX_SPLIT_WEIGHT = 1_000


class Section(BaseModel):
    """A frozen table of keys that refuses unknown ones, NaN and infinity."""

    # NaN passes every other bound, and infinity most: a run would go on with nothing to learn from.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def auto_or_number(least: int, most: int) -> BeforeValidator:
    """Check that a value is "auto" or an integer between two bounds."""

    def check(value: object) -> object:
        if isinstance(value, float) and value.is_integer():  # 2e3, as pydantic's own int takes it
            value = int(value)
        is_number = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        if value != "auto" and not is_number:
            raise ValueError(f"auto, or a number from {least} to {most}")
        return value

    return BeforeValidator(check)

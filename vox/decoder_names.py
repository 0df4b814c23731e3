"""The names of the decoders, and which options they take.

Imports no torch, so that a command can check what it was given before it waits seconds for that.
"""

from collections.abc import Sequence

from vox.errors import ConfigError

GREEDY_DECODERS = ("ctc", "attention")  # these take no options
SEARCH_DECODERS = ("ctc_beam", "attention_beam", "rescore", "joint")
DECODER_NAMES = (*GREEDY_DECODERS, *SEARCH_DECODERS)
DEFAULT_SEARCH = "rescore"  # used if an option needs a search and no decoder is named
# Validation runs these, and they define `best`. Separate from the others: a new decoder must not change them.
VALIDATION_DECODERS = ("ctc", "attention")


def check_decoder(name: str) -> None:
    """Raise ConfigError, listing the known decoders, if the name is not one of them."""
    if name not in DECODER_NAMES:
        raise ConfigError("unknown decoder", where=name, remedy=f"use {' or '.join(sorted(DECODER_NAMES))}")


def check_decoders(names: Sequence[str], beam: int | None, others: Sequence[str] = ()) -> None:
    """Check the decoders that a command line names (none: the default decoder) and the options beside them.

    others: given command-line options that need a search. Raises ConfigError for an unknown decoder, and
    for a beam or one of `others` if every decoder is greedy.
    """
    for name in names:
        check_decoder(name)
    given = ["--beam"] * (beam is not None) + [*others]
    if given and not set(names) - set(GREEDY_DECODERS):
        raise ConfigError(
            f"{given[0]} is for a search, and these decoders are greedy",
            remedy=f"add --decoder {' or '.join(sorted(SEARCH_DECODERS))}",
        )

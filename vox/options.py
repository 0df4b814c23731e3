"""Types of command-line options that several commands share."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

LARGEST = 1e6  # seconds (11 days) or gigabytes (a petabyte): beyond it, a mistake
LARGEST_WEIGHT = 1000.0

BEAM_OPTION = click.option(
    "--beam",
    type=click.IntRange(min=1, max=10_000),
    metavar="N",
    help="Hypotheses that a search keeps. [default: 8]",
)


class PositiveFloat(click.FloatRange):
    """A number above zero; click's own range lets NaN through, and infinity."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=LARGEST)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a float from a word of the command line, or raise click's usage error."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


class Weight(click.FloatRange):
    """A weight of a scorer: any number within reason, below zero too; click lets NaN through."""

    def __init__(self) -> None:
        super().__init__(min=-LARGEST_WEIGHT, max=LARGEST_WEIGHT)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a float from a word of the command line, or raise click's usage error."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


def add_scorer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of what a search may be given beside the recogniser: see vox/decode/additions.py."""
    options = (
        click.option(
            "--lm",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="A language model over the checkpoint's pieces, from vox lm; for searches.",
        ),
        click.option("--lm-weight", type=Weight(), metavar="W", help="Of the language model. [default: 0.5]"),
        click.option(
            "--hotwords",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Phrases to prefer, one a line: `mind flayer`, or `Nyx: nicks, nix`; for searches.",
        ),
        click.option(
            "--hotword", multiple=True, metavar="PHRASE", help="A line as in that file; repeatable."
        ),
        click.option(
            "--hotword-weight",
            type=Weight(),
            metavar="W",
            help="Nats that a phrase is worth. [default: 3]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command

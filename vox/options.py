"""Types of command-line options that several commands share."""

import math
from typing import Any

import click

LARGEST = 1e6  # seconds (11 days) or gigabytes (a petabyte): beyond it, a mistake

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

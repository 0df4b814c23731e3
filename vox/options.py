"""Command-line options that several commands share, and how their values are read."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vox.defaults import DEFAULT_LAYERS, DEFAULT_WAVLM, LARGEST_WEIGHT
from vox.errors import ConfigError

LARGEST = 1e6  # seconds (11 days) or gigabytes (a petabyte): beyond it, a mistake

BEAM_OPTION = click.option(
    "--beam",
    type=click.IntRange(min=1, max=10_000),
    metavar="N",
    help="Hypotheses that a search keeps. [default: 8]",
)


class _Number(click.FloatRange):
    """A range without NaN, which click's own lets through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a float from a word of the command line, or raise click's usage error."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


class PositiveFloat(_Number):
    """A number above zero, and finite."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=LARGEST)


class Weight(_Number):
    """A weight of a scorer: any number within reason, below zero too."""

    def __init__(self) -> None:
        super().__init__(min=-LARGEST_WEIGHT, max=LARGEST_WEIGHT)


VAD_OPTION = click.option(
    "--vad",
    is_flag=True,
    help="Hear only where Silero VAD finds speech: no words for noise and pauses. Needs the extra `vad`.",
)


def add_scorer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of what a search may be given beside the recogniser: see vox/additions.py."""
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
        click.option(
            "--domain",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="A folder of vox adapt, in place of --lm and --hotwords; it brings all weights.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def add_text_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a command needs to know of a config's section `text`: see `vox.text.load_normaliser`."""
    options = (
        click.option(
            "--config",
            "config_path",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="A config whose section text names the alphabet of the transcripts.",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="text.KEY=VALUE",
            help="A key of that section, as text.alphabet=letters; repeatable.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


root_option = click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Folder of corpora.",
)
features_option = click.option(
    "--features", type=click.Path(path_type=Path), help="Folder of caches.  [default: ROOT/features]"
)
wavlm_option = click.option(
    "--wavlm", default=DEFAULT_WAVLM, show_default=True, help="Name on the hub, or a folder."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
skip_bad_option = click.option(
    "--skip-bad", is_flag=True, help="Leave out utterances that cannot be used; they are listed."
)


overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config key; repeatable."
)


checkpoint_option = click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A checkpoint folder. [default: the newest stage's best under runs/]",
)


def texts_option(what: str) -> Callable[[Any], Any]:
    """Make a repeatable --text, which must be given."""
    return click.option(
        "--text",
        "texts",
        multiple=True,
        required=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"{what}, gzipped if its name ends in .gz; repeatable.",
    )


def batch_seconds_option(default: str | float) -> Callable[[Any], Any]:
    """Make --batch-seconds with a number as its default; a text says what None means."""
    return click.option(
        "--batch-seconds",
        type=PositiveFloat(),
        default=None if isinstance(default, str) else default,
        help=f"Seconds of padded audio computed at once.  [default: {default}]",
    )


def workers_option(default: str | int) -> Callable[[Any], Any]:
    """Make --workers with a number as its default; a text says what None means."""
    return click.option(
        "--workers",
        type=click.IntRange(min=0),
        default=None if isinstance(default, str) else default,
        help=f"Processes that decode audio.  [default: {default}]",
    )


def one_split(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Return the one split that was named; ConfigError for several, of which click would take the last."""
    if len(values) > 1:
        raise ConfigError(
            f"--{str(option.name).replace('_', '-')} takes one split",
            where=" and ".join(values),
            remedy="list the recordings of both in one manifest, ROOT/NAME.jsonl, and give NAME",
        )
    return values[0] if values else None


def parse_layers(text: str) -> tuple[int, ...]:
    """Read `9,10,11,12`; raise ConfigError unless these are different numbers from 1 up."""
    try:
        layers = tuple(int(part) for part in text.split(","))
    except ValueError:
        layers = ()
    if not layers or min(layers) < 1 or len(set(layers)) != len(layers):
        raise ConfigError(
            "--layers takes different numbers from 1 up",
            where=text,
            remedy=f"write --layers {','.join(map(str, DEFAULT_LAYERS))}; ranges (9-12) are not read",
        )
    return tuple(sorted(layers))

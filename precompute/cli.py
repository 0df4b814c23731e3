"""The command line of phase 1. Nothing heavy is imported until the command runs."""

from pathlib import Path

import click

from vox.defaults import DEFAULT_LAYERS
from vox.errors import ConfigError
from vox.features.fingerprint import join_layers
from vox.options import (
    PositiveFloat,
    add_text_options,
    batch_seconds_option,
    device_option,
    features_option,
    parse_layers,
    root_option,
    skip_bad_option,
    wavlm_option,
    workers_option,
)


@click.command()
@click.option("--split", "splits", multiple=True, required=True, help="Split to compute (repeatable).")
@root_option
@wavlm_option
@click.option(
    "--layers",
    default=join_layers(DEFAULT_LAYERS),
    show_default=True,
    help="WavLM hidden states to average, counted from 1.",
)
@click.option(
    "--speeds", default="1.0", show_default=True, help="Also at other speeds, each cached: 0.9,1.0,1.1."
)
@features_option
@device_option
@batch_seconds_option("320 on a GPU, 30 on a CPU")
@workers_option("one less than cores, at most 8 with a GPU, else 4")
@click.option(
    "--shard-gb",
    type=PositiveFloat(),
    default=1.0,
    show_default=True,
    help="Size of a shard in 10^9 bytes.",
)
@click.option(
    "--rank",
    type=click.IntRange(min=0),
    envvar="RANK",
    default=0,
    help="This process's number, from 0; torchrun sets it.",
)
@click.option(
    "--world-size",
    type=click.IntRange(min=1),
    envvar="WORLD_SIZE",
    default=1,
    help="How many processes share the shards out; torchrun sets it.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print how large it will be and how long it will take, and stop."
)
@skip_bad_option
@click.option("--rebuild", is_flag=True, help="Compute all shards again, also those that are there.")
@add_text_options
def precompute(
    splits: tuple[str, ...],
    root: Path,
    wavlm: str,
    layers: str,
    speeds: str,
    features: Path | None,
    device: str,
    batch_seconds: float | None,
    workers: int | None,
    shard_gb: float,
    rank: int,
    world_size: int,
    dry_run: bool,
    skip_bad: bool,
    rebuild: bool,
    config_path: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Phase 1: run WavLM over a split once and cache its features.

    A run that was stopped computes the shards that are missing. Run it with torchrun, or with --rank and
    --world-size, to share the shards out. `vox probe` measures which --layers to take.
    """
    chosen_layers, chosen_speeds = parse_layers(layers), parse_speeds(speeds)
    if rank >= world_size:
        raise ConfigError(f"--rank {rank} of --world-size {world_size}", remedy="ranks count from 0")

    from precompute.run import Options, run
    from vox.text import load_normaliser

    run(
        Options(
            splits=tuple(dict.fromkeys(splits)),
            root=root,
            wavlm=wavlm,
            layers=chosen_layers,
            speeds=chosen_speeds,
            features=features or root / "features",
            device=device,
            batch_seconds=batch_seconds,
            workers=workers,
            shard_gb=shard_gb,
            rank=rank,
            world_size=world_size,
            dry_run=dry_run,
            skip_bad=skip_bad,
            rebuild=rebuild,
            normalise=load_normaliser(config_path, overrides),
        )
    )


def parse_speeds(text: str) -> tuple[float, ...]:
    """Read `0.9,1.0,1.1`; raise ConfigError unless these are different speeds that audio is played at."""
    from vox.resample import check_speed

    try:
        speeds = tuple(float(part) for part in text.split(","))
    except ValueError:
        speeds = ()
    if not speeds or len(set(speeds)) != len(speeds):
        raise ConfigError("--speeds takes different numbers", where=text, remedy="write --speeds 0.9,1.0,1.1")
    for speed in speeds:
        check_speed(speed)
    return tuple(sorted(speeds))

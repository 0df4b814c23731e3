"""The command line of phase 1. Nothing heavy is imported until the command runs."""

from pathlib import Path

import click

from vox.errors import ConfigError
from vox.options import PositiveFloat


@click.command()
@click.option("--split", "splits", multiple=True, required=True, help="Split to compute (repeatable).")
@click.option("--root", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
@click.option(
    "--wavlm", default="microsoft/wavlm-base", show_default=True, help="Name on the hub, or a folder."
)
@click.option(
    "--layers", default="9,10,11,12", show_default=True, help="Transformer layers to average, counted from 1."
)
@click.option(
    "--features", type=click.Path(path_type=Path), help="Where the cache is.  [default: ROOT/features]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--batch-seconds",
    type=PositiveFloat(),
    help="Padded audio computed at once.  [default: 160 on a GPU, 30 on a CPU]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that decode audio.  [default: one less than cores, at most 4]",
)
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
@click.option("--dry-run", is_flag=True, help="Say how large it will be, and stop.")
@click.option("--skip-bad", is_flag=True, help="Leave out utterances that cannot be used.")
@click.option("--rebuild", is_flag=True, help="Compute all shards anew, over those that are there.")
def precompute(
    splits: tuple[str, ...],
    root: Path,
    wavlm: str,
    layers: str,
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
) -> None:
    """Phase 1: run WavLM over a split once and cache its features.

    A run that was stopped goes on with the shards that are missing. Run it with torchrun, or with --rank
    and --world-size, to share the shards out.
    """
    chosen_layers = parse_layers(layers)
    if rank >= world_size:
        raise ConfigError(f"--rank {rank} of --world-size {world_size}", remedy="ranks count from 0")

    from precompute.run import Options, run

    run(
        Options(
            splits=tuple(dict.fromkeys(splits)),
            root=root,
            wavlm=wavlm,
            layers=chosen_layers,
            features=root / "features" if features is None else features,
            device=device,
            batch_seconds=batch_seconds,
            workers=workers,
            shard_gb=shard_gb,
            rank=rank,
            world_size=world_size,
            dry_run=dry_run,
            skip_bad=skip_bad,
            rebuild=rebuild,
        )
    )


def parse_layers(text: str) -> tuple[int, ...]:
    """Read `9,10,11,12`; raise ConfigError unless these are different numbers from 1 up."""
    try:
        layers = tuple(int(part) for part in text.split(","))
    except ValueError:
        layers = ()
    if not layers or min(layers) < 1 or len(set(layers)) != len(layers):
        raise ConfigError(
            "--layers takes different numbers from 1 up", where=text, remedy="write --layers 9,10,11,12"
        )
    return tuple(sorted(layers))

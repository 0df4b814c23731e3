"""The command line of phase 1. Nothing heavy is imported until the command runs."""

from pathlib import Path

import click
from click.core import ParameterSource

from vox.config import DEFAULT_LAYERS, DEFAULT_WAVLM
from vox.errors import ConfigError
from vox.features.fingerprint import join_layers
from vox.options import PositiveFloat

# Of the probe alone, and those that it shares with caching.
PROBE_OPTIONS = frozenset(
    {"--probe", "--dev-split", "--probe-hours", "--probe-updates", "--probe-seed", "--keep-probe"}
)
SHARED_OPTIONS = frozenset(
    {"--split", "--root", "--wavlm", "--layers", "--features", "--device", "--batch-seconds", "--workers"}
    | {"--dry-run", "--skip-bad"}
)


@click.command()
@click.option("--split", "splits", multiple=True, required=True, help="Split to compute (repeatable).")
@click.option("--root", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
@click.option("--wavlm", default=DEFAULT_WAVLM, show_default=True, help="Name on the hub, or a folder.")
@click.option(
    "--layers",
    default=join_layers(DEFAULT_LAYERS),
    show_default=True,
    help="Transformer layers to average, counted from 1.",
)
@click.option(
    "--speeds", default="1.0", show_default=True, help="Also at other speeds, each cached: 0.9,1.0,1.1."
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
    help="Processes that decode audio.  [default: one less than cores, at most 8 with a GPU, else 4]",
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
@click.option("--dry-run", is_flag=True, help="Say how large it will be and how long it will take, and stop.")
@click.option("--skip-bad", is_flag=True, help="Leave out utterances that cannot be used.")
@click.option("--rebuild", is_flag=True, help="Compute all shards anew, over those that are there.")
@click.option("--probe", is_flag=True, help="Cache nothing: measure which layers hold the words.")
@click.option(
    "--dev-split", default="dev-clean", show_default=True, help="With --probe: the split to measure on."
)
@click.option(
    "--probe-hours",
    type=PositiveFloat(),
    default=1.0,
    show_default=True,
    help="With --probe: how much of the split, at random; 3.3 GB an hour for 12 layers of 768.",
)
@click.option(
    "--probe-updates",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="With --probe: updates of the linear heads.",
)
@click.option(
    "--probe-seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="With --probe: chooses the utterances and the batches.",
)
@click.option("--keep-probe", is_flag=True, help="With --probe: keep the outputs of all layers.")
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
    probe: bool,
    dev_split: str,
    probe_hours: float,
    probe_updates: int,
    probe_seed: int,
    keep_probe: bool,
) -> None:
    """Phase 1: run WavLM over a split once and cache its features.

    A run that was stopped goes on with the shards that are missing. Run it with torchrun, or with --rank
    and --world-size, to share the shards out. With --probe it caches nothing and says which --layers to
    take.
    """
    chosen_layers, chosen_speeds = parse_layers(layers), parse_speeds(speeds)
    if rank >= world_size:
        raise ConfigError(f"--rank {rank} of --world-size {world_size}", remedy="ranks count from 0")
    given = given_options(click.get_current_context())
    check_probe_options(given, probe, world_size)
    if probe:
        from precompute.probe.run import ProbeOptions, run_probe

        run_probe(
            ProbeOptions(
                splits=tuple(dict.fromkeys(splits)),
                dev_split=dev_split,
                hours=probe_hours,
                num_updates=probe_updates,
                seed=probe_seed,
                keep=keep_probe,
                root=root,
                wavlm=wavlm,
                layers=chosen_layers if "--layers" in given else None,
                features=root / "features" if features is None else features,
                device=device,
                batch_seconds=batch_seconds,
                workers=workers,
                dry_run=dry_run,
                skip_bad=skip_bad,
            )
        )
        return

    from precompute.run import Options, run

    run(
        Options(
            splits=tuple(dict.fromkeys(splits)),
            root=root,
            wavlm=wavlm,
            layers=chosen_layers,
            speeds=chosen_speeds,
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


def given_options(context: click.Context) -> set[str]:
    """Name the long options that stand on the command line."""
    return {
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    }


def check_probe_options(given: set[str], probe: bool, world_size: int) -> None:
    """Raise ConfigError for an option that means nothing with --probe, or nothing without it."""
    misplaced = sorted(given - PROBE_OPTIONS - SHARED_OPTIONS if probe else given & PROBE_OPTIONS)
    if misplaced:
        where = "means nothing with --probe" if probe else "goes with --probe only"
        raise ConfigError(f"{misplaced[0]} {where}", remedy="leave it out")
    if probe and world_size > 1:
        raise ConfigError("--probe runs in one process", where=f"world size {world_size}")


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
            remedy=f"write --layers {join_layers(DEFAULT_LAYERS)}",
        )
    return tuple(sorted(layers))


def parse_speeds(text: str) -> tuple[float, ...]:
    """Read `0.9,1.0,1.1`; raise ConfigError unless these are different speeds that audio is played at."""
    from vox.audio import check_speed

    try:
        speeds = tuple(float(part) for part in text.split(","))
    except ValueError:
        speeds = ()
    if not speeds or len(set(speeds)) != len(speeds):
        raise ConfigError("--speeds takes different numbers", where=text, remedy="write --speeds 0.9,1.0,1.1")
    for speed in speeds:
        check_speed(speed)
    return tuple(sorted(speeds))

"""The command line of the layer probe. Nothing heavy is imported until the command runs."""

import os
from pathlib import Path

import click

from vox.errors import ConfigError
from vox.options import (
    PositiveFloat,
    add_text_options,
    batch_seconds_option,
    device_option,
    features_option,
    one_split,
    parse_layers,
    root_option,
    skip_bad_option,
    wavlm_option,
    workers_option,
)


@click.command()
@click.option("--split", multiple=True, required=True, callback=one_split, help="Split to fit the heads on.")
@click.option("--dev-split", default="dev-clean", show_default=True, help="Split to measure on.")
@click.option(
    "--hours",
    type=PositiveFloat(),
    default=1.0,
    show_default=True,
    help="How much of the split, at random; 3.3 GB an hour for 12 layers of 768.",
)
@click.option(
    "--updates",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Updates of the linear heads.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Chooses the utterances and the batches.",
)
@click.option(
    "--layers", help="Hidden states whose mean to compare with, counted from 1.  [default: the top third]"
)
@click.option("--keep", is_flag=True, help="Keep the outputs of all layers.")
@root_option
@wavlm_option
@features_option
@device_option
@batch_seconds_option("320 on a GPU, 30 on a CPU")
@workers_option("one less than cores, at most 8 with a GPU, else 4")
@click.option("--dry-run", is_flag=True, help="Print how large it will be, and stop.")
@skip_bad_option
@add_text_options
def probe(
    split: str,
    dev_split: str,
    hours: float,
    updates: int,
    seed: int,
    layers: str | None,
    keep: bool,
    root: Path,
    wavlm: str,
    features: Path | None,
    device: str,
    batch_seconds: float | None,
    workers: int | None,
    dry_run: bool,
    skip_bad: bool,
    config_path: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Measure which WavLM layers hold the words, before caching them.

    Fits a linear CTC head on every layer of a part of a split, and recommends --layers for
    `vox precompute`.
    """
    compared = None if layers is None else parse_layers(layers)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("vox probe runs in one process", where=f"world size {os.environ['WORLD_SIZE']}")
    from vox.corpus import find_split
    from vox.wavlm.shape import check_layers_fit

    # Before torch is imported, which takes seconds.
    for each in (split, dev_split):
        find_split(root, each)
    check_layers_fit(wavlm, compared or (1,))

    from precompute.probe.run import ProbeOptions, run_probe
    from vox.text import load_normaliser

    run_probe(
        ProbeOptions(
            split=split,
            dev_split=dev_split,
            hours=hours,
            num_updates=updates,
            seed=seed,
            keep=keep,
            root=root,
            wavlm=wavlm,
            layers=compared,
            features=features or root / "features",
            device=device,
            batch_seconds=batch_seconds,
            workers=workers,
            dry_run=dry_run,
            skip_bad=skip_bad,
            normalise=load_normaliser(config_path, overrides),
        )
    )

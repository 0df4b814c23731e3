"""`vox train`."""

from pathlib import Path

import click

from train.options import TrainOptions


@click.command()
@click.option(
    "--stage", type=click.IntRange(1, 2), required=True, help="1: WavLM frozen; 2: its top layers train too."
)
@click.option("--cached", is_flag=True, help="Stage 1 from the features that vox precompute wrote.")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Default: configs/stageN.yaml."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config key; repeatable."
)
@click.option("--root", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
@click.option("--train-split", metavar="SPLIT", help="Config key data.train_split.")
@click.option("--dev-split", metavar="SPLIT", help="Config key data.dev_split.")
@click.option("--wavlm", metavar="NAME-OR-FOLDER", help="Config key features.wavlm.")
@click.option("--features", type=click.Path(path_type=Path), help="Folder of caches. Default: ROOT/features.")
@click.option("--run", type=click.Path(path_type=Path), help="Folder of the run. Default: runs/stageN.")
@click.option("--resume", is_flag=True, help="Go on where the run in that folder stopped.")
@click.option(
    "--from",
    "from_checkpoint",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="Start from these weights. Default for stage 2: runs/stage1/best.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--backup", metavar="URL", help="Copy each finished checkpoint there (any fsspec URL).")
@click.option(
    "--skip-bad", is_flag=True, help="Go on without the utterances that cannot be used; lists them."
)
@click.pass_context
def train(context: click.Context, **arguments: object) -> None:
    """Train one stage: the recogniser on frozen features, then with WavLM's top layers."""
    from train.loop import Interrupted
    from train.run import run_training

    try:
        run_training(TrainOptions(**arguments))  # type: ignore[arg-type]
    except Interrupted as interrupted:
        click.echo("vox train: interrupted and saved; go on with --resume", err=True)
        context.exit(128 + interrupted.signal_number)

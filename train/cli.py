"""`vox train`."""

import os
from pathlib import Path

import click

from train.options import TrainOptions, resume_command
from train.stages import STAGES
from vox.errors import ConfigError
from vox.options import device_option, features_option, overrides_option, root_option, skip_bad_option
from vox.runs.layout import LAST


@click.command()
@click.option(
    "--stage",
    type=click.IntRange(min(STAGES), max(STAGES)),
    required=True,
    help="; ".join(f"{stage.number}: {stage.summary}" for stage in STAGES.values()) + ".",
)
@click.option(
    "--cached",
    is_flag=True,
    help="From the features that vox precompute wrote (stage 2: of the layer below the unfrozen ones).",
)
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Default: configs/stageN.yaml."
)
@overrides_option
@root_option
@click.option(
    "--train-split",
    multiple=True,
    metavar="SPLIT",
    help="Config key data.train_split; repeatable. SPLIT:3 is heard three times an epoch.",
)
@click.option("--dev-split", multiple=True, metavar="SPLIT", help="Config key data.dev_split; repeatable.")
@click.option("--wavlm", metavar="NAME-OR-FOLDER", help="Config key features.wavlm.")
@features_option
@click.option(
    "--run",
    "--run-dir",  # torchrun takes --run for one of its own
    "run",
    type=click.Path(path_type=Path),
    help="Folder of the run. Default: runs/stageN.",
)
@click.option("--resume", is_flag=True, help="Go on where the run in that folder stopped.")
@click.option(
    "--from",
    "origin",
    metavar="CHECKPOINT-OR-URL",
    help="Start from these weights. Default: the best ones of the newest stage before, runs/stage1/best for "
    "stage 2. With --resume: restore the run "
    "from its backup first, into a folder that holds none; give what was given as --backup (the run then has "
    "the name of --run's folder there), or the run's own folder in it.",
)
@device_option
@click.option("--backup", metavar="URL", help="Copy each finished checkpoint there (any fsspec URL).")
@skip_bad_option
@click.option(
    "--replay-split",
    multiple=True,
    metavar="SPLIT",
    help="Stage 3: the source to replay; repeatable. Default: what the checkpoint was trained on.",
)
@click.option("--no-replay", is_flag=True, help="Stage 3: train on the target alone, which forgets.")
@click.pass_context
def train(context: click.Context, origin: str | None, resume: bool, **arguments: object) -> None:
    """Train one stage: the recogniser on frozen features, then with WavLM's top layers."""
    if origin and "://" in origin and not resume:
        raise ConfigError(
            "--from with a URL restores a run from its backup, and needs --resume",
            where=origin,
            remedy="add it, or name a checkpoint's folder on this machine",
        )
    options = TrainOptions(
        resume=resume,
        restore_from=origin if resume else None,
        from_checkpoint=Path(origin) if origin and not resume else None,
        **arguments,  # type: ignore[arg-type]
    )
    if os.environ.get("WORLD_SIZE", "1") == "1":  # of several processes, one reports an error
        from train.inputs import check_inputs

        check_inputs(options)
    from train.run import run_training
    from train.signals import Interrupted

    try:
        run_training(options)
    except Interrupted as interrupted:
        if os.environ.get("RANK", "0") == "0":  # once, where torchrun started several
            command = resume_command(options.stage, options.run)
            is_saved = (options.run_dir / LAST).exists()
            what = f"saved; go on with {command}" if is_saved else "there was nothing to save yet"
            click.echo(f"vox train: interrupted; {what}", err=True)
        context.exit(128 + interrupted.signal_number)

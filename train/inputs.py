"""What a run begins with, checked before torch is imported, which takes seconds. Imports no torch."""

from pathlib import Path

from train.options import TrainOptions, resolve_config, resume_options
from train.stages import STAGES, find_stage
from vox.checkpoint.integrity import check_place
from vox.corpus import find_split
from vox.errors import CheckpointError
from vox.runs.layout import BEST, LAST, list_checkpoints
from vox.wavlm.shape import check_config_fits


def check_inputs(options: TrainOptions) -> None:
    """Raise VoxError for splits, a WavLM, a checkpoint or a run that is not there, or does not fit.

    `run_training` finds all this too, but later.
    """
    if options.resume:
        if options.restore_from is None:
            resume_options(options)
        return
    refuse_existing(options)
    config = resolve_config(options)
    origin = find_origin(options)
    for split in (*config.data.train_weights, *config.data.dev_split):
        find_split(options.root, split)
    if origin is None:
        check_config_fits(config)
    else:
        check_place(origin)


def find_origin(options: TrainOptions) -> Path | None:
    """Return the checkpoint to start from: --from's, or an earlier stage's best; None from scratch.

    Raises CheckpointError where a stage needs one and there is none.
    """
    if options.from_checkpoint is not None:
        return options.from_checkpoint
    before = [STAGES[number] for number in find_stage(options.stage).starts_from]
    if not before:
        return None
    bests = [Path("runs") / stage.run_name / BEST for stage in before]
    if found := next((best for best in bests if best.exists()), None):
        return found
    raise CheckpointError(
        f"no stage-{before[0].number} checkpoint to start from",
        where=bests[0],
        remedy=f"run vox train --stage {before[-1].number} --cached first, or name one with --from",
    )


def refuse_existing(options: TrainOptions) -> None:
    """Raise CheckpointError if the folder of a new run holds one already."""
    if (options.run_dir / LAST).exists() or list_checkpoints(options.run_dir):
        raise CheckpointError(
            "this folder holds a run already",
            where=options.run_dir,
            remedy="continue it with --resume, or name another with --run",
        )

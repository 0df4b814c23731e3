"""What a run begins with, checked before torch is imported, which takes seconds. Imports no torch."""

import shlex
from contextlib import suppress
from pathlib import Path

from train.options import TrainOptions, resolve_config, resume_options
from train.stages import STAGES, find_stage
from vox.checkpoint.integrity import check_place
from vox.config import Config
from vox.corpus import find_split
from vox.disk import check_writable
from vox.errors import CacheError, CheckpointError, WavLMError, name_first
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
    check_writable(options.run_dir, "--run")
    config = resolve_config(options)
    origin = find_origin(options)
    for split in (*config.data.train_weights, *config.data.dev_split):
        find_split(options.root, split)
    if origin is None:
        try:
            check_config_fits(config)
        except WavLMError as error:
            raise WavLMError(str(error), remedy=_name_cached_wavlm(options, config)) from None
    else:
        check_place(origin)


def _name_cached_wavlm(options: TrainOptions, config: Config) -> str | None:
    """Return what to do about a WavLM that cannot be had, where features of another are cached."""
    from vox.features.cache import find_cache_dirs
    from vox.features.plan import read_plan

    names = set()
    for split in config.data.train_weights if options.cached else ():
        with suppress(CacheError):
            plans = [read_plan(folder) for folder in find_cache_dirs(options.features_dir, split)]
            names |= {plan.wavlm for plan in plans if plan is not None}
    commands = [shlex.join(["--wavlm", name]) for name in sorted(names - {config.features.wavlm})]
    return f"the cached features are those of {name_first(commands)}" if commands else None


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

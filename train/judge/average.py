"""At the end of training, average the newest validated checkpoints and validate the mean."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from train.judge.best import record
from train.judge.validate import DevResult, Stopped, validate_run
from train.signals import Interrupted
from train.state import Run
from train.update.ema import find_learning
from vox.checkpoint.integrity import find_damage
from vox.runs.layout import MODEL, Weights, list_validated

log = logging.getLogger(__name__)


def average_at_the_end(run: Run) -> None:
    """Average the newest validated checkpoints, if the config says so; keep the mean if it is best."""
    count = run.parts.config.train.average_checkpoints
    if count == 0 or run.progress.weights == "average":  # done before the resume
        return
    run.writer.wait()  # the newest checkpoint may not be written yet
    try:
        results = average_checkpoints(run, count)
    except Stopped:  # a resumed run repeats it
        raise Interrupted(run.signals.number) from None
    if results and not record(run, results, can_be_worse=False):
        log.info("the mean is not better: the weights are kept")


def average_checkpoints(run: Run, count: int) -> dict[Weights, DevResult]:
    """Load the mean of the newest validated checkpoints' weights into the recogniser, and validate it.

    Averages the raw trainable weights, not their exponential averages. A damaged checkpoint is skipped with
    a warning. Returns an empty dict if fewer than two are left.
    """
    # Only rank 0 lists them: all ranks must average the same checkpoints, and damage is logged once.
    folders: list[Path] = run.ranks.gather(_list_whole(run.run_dir, count) if run.ranks.is_first else [])[0]
    if len(folders) < 2:
        log.info("undamaged validated checkpoints: %d; averaging needs two", len(folders))
        return {}
    learning = find_learning(run.parts.recogniser)
    means = _mean_of([folder / MODEL for folder in folders], list(learning))
    with torch.no_grad():
        for name, parameter in learning.items():
            parameter.copy_(means[name])
    log.info("averaged the weights of %s", ", ".join(folder.name for folder in folders))
    return {"average": validate_run(run, run.signals.agree)}


def _list_whole(run_dir: Path, count: int) -> list[Path]:
    """List the newest validated checkpoints that are undamaged; log a warning for each damaged one."""
    damages = {folder: find_damage(folder) for folder in list_validated(run_dir)[-count:]}
    for folder, damage in damages.items():
        if damage is not None:
            log.warning("%s is left out of the average: %s", folder, damage)
    return [folder for folder, damage in damages.items() if damage is None]


def _mean_of(paths: Sequence[Path], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Average some tensors of safetensors files, in float64, file by file."""
    sums: dict[str, torch.Tensor] = {}
    for path in paths:
        tensors = load_file(path)
        for name in names:
            sums[name] = sums[name] + tensors[name].double() if name in sums else tensors[name].double()
    return {name: (total / len(paths)).float() for name, total in sums.items()}

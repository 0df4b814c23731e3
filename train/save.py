"""How a run is saved: its state is copied at one moment, and written while training goes on."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from train.record.metrics import MetricsLog
from train.state import Run
from vox.checkpoint.files import save_checkpoint
from vox.checkpoint.series import remove_unlinked
from vox.disk import replace_link
from vox.runs.layout import BEFORE, BEST, LAST

RngState = dict[str, torch.Tensor | None]  # of one rank's generators, by device type


def save_run(run: Run, name: str, *, is_best: bool = False) -> None:
    """Copy the run's state, and let it be written as a checkpoint while training goes on.

    Reads what the updates so far came to first. Every rank must call this; the first one writes. Waits for
    the checkpoint before, and raises what went wrong with it.
    """
    run.meter.read()
    if is_best:
        run.progress.best_checkpoint = name
    rng_states = run.ranks.gather(read_rng(run.device))
    if run.metrics is None:
        return
    with run.heartbeat.during("saving"):
        run.writer.wait()
        if (run.run_dir / LAST).resolve().name != name:  # or nothing is new: resumed from it, or just saved
            content = _copy_content(run, run.metrics, rng_states)
            run.writer.start(lambda: _write_checkpoint(run, run.checkpoints_dir / name, is_best, content))


def _copy_content(run: Run, metrics: MetricsLog, rng_states: list[RngState]) -> dict[str, Any]:
    """Copy what changes from update to update, under the names that `save_checkpoint` has for it."""
    run.progress.metrics_bytes = metrics.sync()
    changing = {
        "weights": run.parts.recogniser.state_dict(),
        "averaged": None if run.ema is None else run.ema.weights,
        "trainer_state": {
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.scaler.state_dict(),
            "rng": rng_states,
        },
    }
    return {"state": asdict(run.progress), **run.writer.copy(changing)}


def _write_checkpoint(run: Run, folder: Path, is_best: bool, content: dict[str, Any]) -> None:
    """Write a checkpoint, move the links to it, and delete those that are not to be kept.

    `best` moves first: killed before `last` has followed, the run resumes from the old `last`, whose state
    names the old best one, still there. Nothing is deleted before both links are on disk.
    """
    parts = run.parts
    save_checkpoint(
        folder,
        recogniser=parts.recogniser,
        tokenizer=parts.tokenizer,
        config=parts.config,
        words=parts.words,
        **content,
    )
    links = (run.run_dir / BEST, run.run_dir / LAST)
    for link in links if is_best else links[1:]:
        replace_link(link, folder)
    remove_unlinked(run.checkpoints_dir, (*links, run.run_dir / BEFORE), parts.config.train.keep_checkpoints)
    if run.backup is not None:
        run.backup.submit(folder, is_best=is_best)


def read_rng(device: torch.device) -> RngState:
    """Return the state of the generators that a process draws from: the CPU's and its GPU's."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }

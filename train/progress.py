"""Where a run stands, and how it is saved and found again."""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from train.backup import Backup
from train.build import Parts
from train.metrics import MetricsLog
from vox.checkpoint import point_link, remove_unlinked, save_checkpoint

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands: everything the loop carries from one update to the next, as JSON."""

    epoch: int = 0  # complete epochs: trained and validated
    update: int = 0  # complete updates, over all epochs
    update_in_epoch: int = 0
    window: dict[str, float] = field(default_factory=dict)  # sums since the last metric line
    skipped_updates: int = 0  # their gradient was not finite
    unread_updates: int = 0  # none of their recordings could be read
    best: list[float] | None = None  # rank of the best dev result
    best_checkpoint: str | None = None  # and the name of its folder
    dev: dict[str, Any] | None = None  # the newest dev result
    handoff: dict[str, float] | None = None
    metrics_bytes: int = 0
    train_digest: str = ""  # of the train split, and the number of updates: a run keeps both
    total_updates: int = 0


@dataclass
class Run:
    """The moving parts of one stage."""

    parts: Parts
    run_dir: Path
    device: torch.device
    precision: torch.dtype
    total_updates: int
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress
    metrics: MetricsLog
    backup: Backup | None = None
    last_line: float = 0.0  # when progress was last said, on the monotonic clock
    timed_updates: int = 0  # of the metric line under way, those of this process: for its rates
    timed_frames: int = 0

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoint folders are."""
        return self.run_dir / "checkpoints"


def save(run: Run, name: str, *, is_best: bool = False) -> None:
    """Write a checkpoint, move the links to it, and delete those that nothing points to.

    `best` moves first: killed before `last` has followed, the run resumes from the old `last`, whose
    state names the old best one, still there. Nothing is deleted before both links are on disk.
    """
    links = (run.run_dir / "best", run.run_dir / "last")
    if links[1].resolve().name == name:  # resumed from it, or saved a moment ago: nothing is new
        return
    if is_best:
        run.progress.best_checkpoint = name
    run.progress.metrics_bytes = run.metrics.sync()
    folder = run.checkpoints_dir / name
    save_checkpoint(
        folder,
        recogniser=run.parts.recogniser,
        tokenizer=run.parts.tokenizer,
        config=run.parts.config,
        state=asdict(run.progress),
        trainer_state={
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.scaler.state_dict(),
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None,
            },
        },
    )
    for link in links if is_best else links[1:]:
        point_link(link, folder)
    remove_unlinked(run.checkpoints_dir, links)
    if run.backup is not None:
        run.backup.submit(folder, is_best=is_best)


def restore_links(run_dir: Path, last: Path, progress: Progress) -> None:
    """Put `last` and `best` where they were when `last` was saved, and delete what neither names.

    A killed run may have moved `best` further, or left a whole checkpoint that nothing points to.
    """
    checkpoints_dir, best = run_dir / "checkpoints", run_dir / "best"
    if last.resolve().parent == checkpoints_dir.resolve():
        point_link(run_dir / "last", last.resolve())
    if progress.best is None:
        best.unlink(missing_ok=True)
    elif progress.best_checkpoint and (checkpoints_dir / progress.best_checkpoint).exists():
        point_link(best, checkpoints_dir / progress.best_checkpoint)
    elif not best.exists():
        log.warning("%s is lost: the next dev result is the best so far", best)
        progress.best = progress.best_checkpoint = None
    remove_unlinked(checkpoints_dir, (run_dir / "last", best))


def restore(run: Run, trainer_state: dict[str, Any]) -> None:
    """Put optimizer, scaler and random generators back where a checkpoint left them."""
    run.optimizer.load_state_dict(trainer_state["optimizer"])
    if trainer_state["scaler"]:  # empty when the run had none: resumed on another device
        run.scaler.load_state_dict(trainer_state["scaler"])
    states = trainer_state["rng"]
    torch.set_rng_state(states["cpu"])
    if states["cuda"] is not None and run.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], run.device)

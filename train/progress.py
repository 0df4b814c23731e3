"""Where a run stands, and how it is saved and found again."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from train.backup import Backup
from train.build import Parts
from train.checkpoint_writer import CheckpointWriter
from train.heartbeat import Heartbeat
from train.metrics import MetricsLog
from train.ranks import Ranks
from train.signals import Signals
from train.step import UpdateResult
from vox.checkpoint import find_damage, read_state, remove_unlinked, save_checkpoint, set_aside
from vox.data.plan import Update
from vox.disk import replace_link
from vox.errors import CheckpointError, name_first
from vox.runs.layout import BEST, LAST, STATE, checkpoints_of, list_checkpoints

if TYPE_CHECKING:
    from train.average import Ema

log = logging.getLogger(__name__)

RngState = dict[str, torch.Tensor | None]  # of one rank's generators, by device type


@dataclass
class Progress:
    """Where a run stands: everything the loop carries from one update to the next, as JSON."""

    epoch: int = 0  # complete epochs: trained and validated
    update: int = 0  # complete updates, over all epochs
    update_in_epoch: int = 0
    window: dict[str, float] = field(default_factory=dict)  # sums since the last metric line
    skipped_updates: int = 0  # their gradient was not finite
    skipped_in_a_row: int = 0  # of these, those since the last update that changed the weights
    unread_updates: int = 0  # none of their recordings could be read
    best: list[float] | None = None  # rank of the best dev result
    best_checkpoint: str | None = None  # and the name of its folder
    dev: dict[str, Any] | None = None  # the newest dev result
    weights: str = "raw"  # which weights it is of, and the checkpoint stands for: raw, ema or average
    micro_batch_utterances: int = 0  # what data.micro_batch_utterances came to; 0: not known yet
    longest_train_samples: int = 0  # the longest utterance trained on, in this stage or before
    cache_weights: str | None = None  # sha256 of the WavLM that made the cache that is read
    handoff: dict[str, float] | None = None
    metrics_bytes: int = 0
    train_digest: str = ""  # of the train split, and the number of updates: a run keeps both
    dev_digest: str = ""  # of the dev split; empty in runs of older versions
    total_updates: int = 0

    @classmethod
    def from_state(cls, state: Mapping[str, Any], folder: Path) -> "Progress":
        """Take up a checkpoint's state; keys that an older version did not write get their defaults.

        folder: the checkpoint. Raises CheckpointError for keys that only another version of Vox knows.
        """
        unknown = sorted(state.keys() - {each.name for each in fields(cls)})
        if unknown:
            raise CheckpointError(
                f"the checkpoint's state has keys that this Vox does not know ({name_first(unknown)})",
                where=folder / STATE,
                remedy="resume with the version of Vox that wrote it, or a newer one",
            )
        return cls(**state)


@dataclass
class Run:
    """The moving parts of one stage, as one rank has them."""

    parts: Parts
    run_dir: Path
    device: torch.device
    precision: torch.dtype
    ranks: Ranks
    total_updates: int
    losses: torch.nn.Module  # what an update calls; adds gradients up over ranks
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress
    metrics: MetricsLog | None  # of the first rank only, as is the backup
    heartbeat: Heartbeat
    signals: Signals
    writer: CheckpointWriter
    ema: "Ema | None" = None
    backup: Backup | None = None
    unread_results: list[tuple[int, Update, float, UpdateResult]] = field(default_factory=list)
    last_line: float = 0.0  # when progress was last said, on the monotonic clock
    window_start: float = 0.0  # of the metric line under way, on the same
    timed_updates: int = 0  # of that line, those of this process: for its rates
    timed_frames: int = 0

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoint folders are."""
        return checkpoints_of(self.run_dir)

    def write(self, kind: str, update: int, values: dict[str, Any]) -> None:
        """Write one event to the metrics, on the first rank."""
        if self.metrics is not None:
            self.metrics.write(kind, update, values)

    def write_text(self, name: str, update: int, text: str) -> None:
        """Write a text to TensorBoard, on the first rank."""
        if self.metrics is not None:
            self.metrics.write_text(name, update, text)


def save_run(run: Run, name: str, *, is_best: bool = False) -> None:
    """Copy the run's state, and let it be written as a checkpoint while training goes on.

    Every rank must call this; the first one writes. Waits for the checkpoint before, and raises what went
    wrong with it.
    """
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
        folder, recogniser=parts.recogniser, tokenizer=parts.tokenizer, config=parts.config, **content
    )
    links = (run.run_dir / BEST, run.run_dir / LAST)
    for link in links if is_best else links[1:]:
        replace_link(link, folder)
    remove_unlinked(run.checkpoints_dir, links, parts.config.train.keep_checkpoints)
    if run.backup is not None:
        run.backup.submit(folder, is_best=is_best)


def restore_links(run_dir: Path, last: Path, progress: Progress, keep: int = 0) -> None:
    """Put `last` and `best` where they were when `last` was saved, and delete what is not to be kept.

    A killed run may have moved `best` further, or left a whole checkpoint that nothing points to. What is
    damaged was passed over, and is set aside. `keep`: train.keep_checkpoints.
    """
    checkpoints_dir, best = checkpoints_of(run_dir), run_dir / BEST
    last = last.resolve()
    if last.parent == checkpoints_dir.resolve():
        is_fallback = (run_dir / LAST).resolve() != last
        for newer in (name for name in list_checkpoints(run_dir) if name > last.name):
            if is_fallback:  # or it would have been taken
                set_aside(checkpoints_dir / newer)
            else:
                log.info("deleting %s: the run goes on from %s and makes it anew", newer, last.name)
                shutil.rmtree(checkpoints_dir / newer)
        replace_link(run_dir / LAST, last)
    if progress.best is None:
        best.unlink(missing_ok=True)
    elif name := _find_best(run_dir, progress, last):
        replace_link(best, checkpoints_dir / name)
    elif not best.exists():
        log.warning("%s is lost: the next dev result is the best so far", best)
        best.unlink(missing_ok=True)
        progress.best = progress.best_checkpoint = None
    remove_unlinked(checkpoints_dir, (run_dir / LAST, best), keep, with_damaged=False)


def _find_best(run_dir: Path, progress: Progress, last: Path) -> str | None:
    """Return the best checkpoint's name; where it is gone or damaged, the newest that was best when saved.

    Then `progress` is told. Checkpoints newer than the run's state must be gone before; `last` is whole.
    """
    wanted = progress.best_checkpoint
    for name in sorted(list_checkpoints(run_dir), key=lambda name: (name == wanted, name), reverse=True):
        folder = checkpoints_of(run_dir) / name
        try:
            state = read_state(folder)
        except CheckpointError:
            state = {}
        if name != wanted and state.get("best_checkpoint") != name:
            continue
        if name != last.name and (damage := find_damage(folder)):
            log.warning("checkpoint %s, once the best, is damaged: %s", folder, damage)
            set_aside(folder)
            continue
        if name != wanted:
            log.warning("the best checkpoint, %s, is lost: %s is now", wanted, name)
            progress.best, progress.best_checkpoint = state["best"], name
        return name
    return None


def restore(run: Run, trainer_state: dict[str, Any], rank: int = 0) -> None:
    """Put optimizer, scaler and this rank's random generators back where a checkpoint left them.

    A rank that the checkpoint does not know keeps the generators that it has.
    """
    run.optimizer.load_state_dict(trainer_state["optimizer"])
    if trainer_state["scaler"]:  # empty when the run had none: resumed on another device
        run.scaler.load_state_dict(trainer_state["scaler"])
    states = trainer_state["rng"]
    if isinstance(states, dict):  # saved when there was one process only
        states = [states]
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    num_ranks = torch.distributed.get_world_size() if is_distributed else 1
    if rank == 0 and len(states) != num_ranks:
        log.warning(
            "saved by %d processes, resumed by %d: random numbers will differ", len(states), num_ranks
        )
    if rank < len(states):
        write_rng(run.device, states[rank])


def read_rng(device: torch.device) -> RngState:
    """Return the state of the generators that a process draws from: the CPU's and its GPU's."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def write_rng(device: torch.device, state: RngState) -> None:
    """Put the generators back where `read_rng` found them; a GPU's only where there is one now."""
    assert state["cpu"] is not None
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)

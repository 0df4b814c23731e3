"""How a run resumes: which checkpoint, whether it is the same run, its links, optimizer and random states."""

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from train.build import Parts
from train.judge.validate import rank_result
from train.options import TrainOptions
from train.progress import OF_BEST, Progress
from train.ranks import Ranks
from train.record.utterances import describe_changes
from train.save import RngState
from train.state import Run
from vox.checkpoint.files import read_state
from vox.checkpoint.integrity import find_damage
from vox.checkpoint.series import remove_unlinked, set_aside
from vox.disk import replace_link
from vox.errors import CheckpointError, name_count
from vox.runs.layout import ALIVE, BEFORE, BEST, LAST, checkpoints_of, list_checkpoints
from vox.runs.lenient import read_json
from vox.runs.liveness import judge_liveness

log = logging.getLogger(__name__)


def refuse_living(options: TrainOptions) -> None:
    """Raise CheckpointError if another process is at work on the run: two would spoil its files."""
    alive = read_json(options.run_dir / ALIVE, [])
    if judge_liveness(alive, time.time()) == "alive":
        raise CheckpointError(
            f"process {alive.get('pid')} on {alive.get('host')} trains this run",
            where=options.run_dir,
            remedy="stop it first, or wait a minute if its machine is dead",
        )


def find_progress(options: TrainOptions, parts: Parts, fresh: Progress, ranks: Ranks) -> Progress:
    """Return where the run stood, after checking that it is still the same run, and put its links back."""
    assert parts.origin is not None
    progress = Progress.from_state(parts.origin.state, parts.origin.folder)
    _refuse_changes(options.run_dir, parts, progress, fresh)
    progress.longest_train_samples = fresh.longest_train_samples
    with ranks.first_goes_first():
        if ranks.is_first:
            keep = parts.config.train.keep_checkpoints
            restore_links(options.run_dir, parts.origin.folder, progress, keep)
            rank_best(options.run_dir, parts.origin.state, progress)
    # Where the best checkpoint is lost, rank 0 has found the next best one.
    for name, value in ranks.gather({name: getattr(progress, name) for name in OF_BEST})[0].items():
        setattr(progress, name, value)
    return progress


def _refuse_changes(run_dir: Path, parts: Parts, before: Progress, now: Progress) -> None:
    """Raise CheckpointError where a split, or the number of updates, is not as when the run began."""
    splits = parts.utterances_by_use
    train = {"train": splits.pop("train")}
    if before.train_digest != now.train_digest:
        changes = describe_changes(run_dir, train) or "ids, lengths or transcripts"
        raise CheckpointError(
            f"{parts.train.name} has changed since the run began ({changes})",
            where=run_dir,
            remedy="restore it, or start another run with --run",
        )
    if before.total_updates != now.total_updates:
        raise CheckpointError(
            f"the config has changed since the run began ({before.total_updates} updates then, "
            f"{now.total_updates} now)",
            where=run_dir,
            remedy="restore it, or start another run with --run",
        )
    if before.dev_digest not in ("", now.dev_digest):
        changed = {use: describe_changes(run_dir, {use: splits[use]}) for use in splits}
        names = [parts.splits[use].name for use in splits if changed[use]] or [parts.dev.name]
        changes = "; ".join(filter(None, changed.values())) or "ids, lengths or transcripts"
        raise CheckpointError(
            f"{', '.join(names)} has changed since the run began ({changes}): results cannot be compared",
            where=run_dir,
            remedy="restore it, cached or live as it was, or start another run with --run",
        )


def rank_best(run_dir: Path, state: Mapping[str, Any], progress: Progress) -> None:
    """Rank the best checkpoint of an older version, which ranked by the mean of both WERs, as this one does.

    state: what the run is resumed from. Since it has `best_limit`, `best` need not be the lowest.
    """
    if "best_limit" in state:
        return
    best = run_dir / BEST
    dev = read_state(best).get("dev") if best.exists() else None
    if dev is not None:
        source = dev.get("source")
        judged = source["wer"] if source else dev["wer"]
        progress.best = list(rank_result(dev["wer"], dev["ctc"] + dev["attention"], judged))


def restore_links(run_dir: Path, last: Path, progress: Progress, keep: int = 0) -> None:
    """Put `last` and `best` where they were when `last` was saved, and delete checkpoints that are not kept.

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
                log.info("deleting %s: the run continues from %s and makes it again", newer, last.name)
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
    links = (run_dir / LAST, best, run_dir / BEFORE)
    remove_unlinked(checkpoints_dir, links, keep, with_damaged=False)


def _find_best(run_dir: Path, progress: Progress, last: Path) -> str | None:
    """Return the best checkpoint's name; where it is missing or damaged, the newest that was best when saved.

    In that case `progress` is updated. Delete checkpoints newer than the run's state first; `last` is whole.
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
            for key in OF_BEST:
                setattr(progress, key, state.get(key, getattr(Progress, key)))
        return name
    return None


def resume_state(run: Run, trainer_state: dict[str, Any]) -> None:
    """Put optimizer, scaler and this rank's random generators back where a checkpoint left them.

    A rank that the checkpoint does not know keeps the generators that it has.
    """
    run.optimizer.load_state_dict(trainer_state["optimizer"])
    if trainer_state["scaler"]:  # empty when the run had none: resumed on another device
        run.scaler.load_state_dict(trainer_state["scaler"])
    states = trainer_state["rng"]
    if isinstance(states, dict):  # saved when there was one process only
        states = [states]
    rank, num_ranks = run.ranks.rank, run.ranks.world_size
    if rank == 0 and len(states) != num_ranks:
        log.warning(
            "saved by %s, resumed by %d: random numbers will differ",
            name_count(len(states), "process", "processes"),
            num_ranks,
        )
    if rank < len(states):
        write_rng(run.device, states[rank])


def write_rng(device: torch.device, state: RngState) -> None:
    """Put the generators back where `read_rng` found them; a GPU's only where there is one now."""
    assert state["cpu"] is not None
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)

"""A run's checkpoints together: which to resume from, which to keep, which is the newest of all runs."""

import logging
import shutil
from pathlib import Path

from vox.checkpoint.integrity import check_place, find_damage
from vox.errors import CheckpointError, name_first
from vox.runs.layout import BEST, LAST, TRAINER, checkpoints_of, kind_of, list_checkpoints

log = logging.getLogger(__name__)

DAMAGED = ".damaged-"  # begins the name of one that was passed over


def set_aside(folder: Path) -> None:
    """Take a damaged checkpoint out of the run, without deleting it."""
    aside = folder.with_name(DAMAGED + folder.name)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    log.warning("%s is damaged: kept as %s until the next checkpoint is saved", folder.name, aside.name)


def remove_unlinked(
    checkpoints_dir: Path, links: tuple[Path, ...], keep: int = 0, *, with_damaged: bool = True
) -> None:
    """Delete the checkpoints that no link points to, and what killed runs left half-written.

    The one before the newest that a link points to stays, for when that is damaged, and the `keep` newest
    of the validated ones. with_damaged: also delete what was set aside.
    """
    linked = {link.resolve().name for link in links if link.exists()}
    names = list_checkpoints(checkpoints_dir.parent)
    older = [name for name in names if name < max(linked, default="")]
    validated = [name for name in names if kind_of(name) == "validated" and name not in linked]
    kept = {*linked, *older[-1:], *validated[max(len(validated) - keep, 0) :]}
    for folder in checkpoints_dir.iterdir():
        is_spared = folder.name.startswith(DAMAGED) and not with_damaged
        if folder.name not in kept and not is_spared:
            shutil.rmtree(folder, ignore_errors=True)


def find_last(run_dir: Path) -> Path:
    """Return the checkpoint that a run resumes from: `last`, or the newest whole one if that is damaged.

    `last` may also be lost (some file systems and object stores keep no links). What is passed over
    is logged. Raises CheckpointError when there is none.
    """
    last, checkpoints_dir = run_dir / LAST, checkpoints_of(run_dir)
    newest_first = [checkpoints_dir / name for name in reversed(list_checkpoints(run_dir))]
    others = [folder for folder in newest_first if folder.resolve() != last.resolve()]
    candidates = [last, *others] if last.exists() else others
    if not candidates:
        raise CheckpointError(
            "the run was not saved yet, so there is nothing to resume",
            where=run_dir,
            remedy="start it again without --resume",
        )
    reasons = []
    for folder in candidates:
        damage = find_damage(folder)
        if damage is None and not (folder / TRAINER).exists():
            damage = f"it has no {TRAINER}"
        if damage is None:
            if folder != last:
                what = "damaged" if last.exists() else "missing"
                log.warning(
                    "%s is %s: resuming from the newest whole checkpoint, %s", last, what, folder.name
                )
            return folder
        reasons.append(f"{folder.resolve().name}: {damage}")
        log.warning("checkpoint %s cannot be resumed from: %s", folder.resolve(), damage)
    raise CheckpointError(
        f"none of the run's checkpoints is whole ({name_first(reasons)})",
        where=run_dir,
        remedy="restore it from a backup into another folder with --resume --from URL --run DIR",
    )


def find_checkpoint(folder: Path | str | None) -> Path:
    """Return the checkpoint that was named, or for None the newest; raise CheckpointError if it is none."""
    found = newest_checkpoint() if folder is None else Path(folder)
    check_place(found)
    return found


def newest_checkpoint(runs_dir: Path | str = "runs") -> Path:
    """Return the newest stage's best checkpoint under a folder of runs: `stage2/best` over `stage1/best`.

    Logs which it is, for it was not named. Raises CheckpointError when there is none.
    """
    for folder in sorted(Path(runs_dir).glob("stage[0-9]"), reverse=True):
        if (folder / BEST).exists():
            log.info("checkpoint: %s", folder / BEST)
            return folder / BEST
    raise CheckpointError(
        "no checkpoint",
        where=f"{runs_dir}/stage1/best",
        remedy="run vox train, or name one with --checkpoint",
    )

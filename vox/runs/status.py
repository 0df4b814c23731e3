"""A run's folder, read from outside: how far training is, and whether it still goes on. Imports no torch.

Any of its files (see layout.py) may be missing, of an older version, or cut short by a crash: what cannot
be read is None here (a damaged file is named among the faults), never an error.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vox.errors import CheckpointError
from vox.runs.layout import (
    ALIVE,
    BACKUP,
    BEST,
    CHECKSUMS,
    LAST,
    METRICS,
    OPTIONS,
    STATE,
    checkpoints_of,
    list_checkpoints,
)
from vox.runs.lenient import (
    Tree,
    modification_time,
    number_in,
    read_config_sections,
    read_json,
    read_metrics,
    text_in,
    whole_number_in,
)
from vox.runs.liveness import Liveness, judge_liveness

SEARCH_DEPTH = 3  # folders below the one that is searched: runs/demo/stage1 is 2


@dataclass(frozen=True)
class DevFigures:
    """One dev result. `wer` is by decoder, in fractions; losses are nats a label.

    weights: "raw", or the average of weights that was validated: "ema", "average".
    """

    weights: str
    update: int | None
    wer: dict[str, float]
    ctc: float | None
    attention: float | None


@dataclass(frozen=True)
class CheckpointFigures:
    """A checkpoint's name, and when it was written (unix time)."""

    name: str
    written: float


@dataclass(frozen=True)
class BackupFigures:
    """The copies made elsewhere. Times are unix times; `error` is None when the newest copy went well."""

    target: str | None
    checkpoint: str | None
    last_good: float | None
    error: str | None


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands. None is what the folder does not say; times are unix times, in seconds.

    since: when the process started (alive), wrote its last heartbeat (dead), or the folder
    last grew (unknown).
    heard: when the training loop last reported; a hung loop does not.
    epoch: the one under way, counted from 1. error_rate: what `wer` in the dev results is, WER or CER.
    dev: the newest result of each set of weights that is validated.
    seconds_left: None unless the run is alive.
    """

    run: str
    stage: int | None
    state: str
    liveness: Liveness
    since: float | None
    heard: float | None
    error: str | None
    pid: int | None
    host: str | None
    world_size: int | None
    epoch: int | None
    epochs: int | None
    update: int | None
    total_updates: int | None
    loss: float | None
    ctc: float | None
    attention: float | None
    learning_rate: float | None
    grad_norm: float | None
    error_rate: str
    dev: tuple[DevFigures, ...]
    best_dev: DevFigures | None
    updates_per_second: float | None
    audio_seconds_per_second: float | None
    seconds_left: float | None
    device: str | None
    gpu: dict[str, float | None] | None
    peak_memory_gb: float | None
    last_checkpoint: CheckpointFigures | None
    best_checkpoint: CheckpointFigures | None
    backup: BackupFigures | None
    skipped_updates: int | None
    unread_updates: int | None
    faults: tuple[str, ...]


def is_run(folder: Path) -> bool:
    """Say whether a folder holds a run of training."""
    return any((folder / name).is_file() for name in (ALIVE, METRICS))


def find_runs(runs_dir: Path) -> list[Path]:
    """Return the runs in and below a folder, the one that last grew first.

    Raises CheckpointError when there is none. Folders inside a run are not searched.
    """
    found: dict[Path, Path] = {}
    _collect_runs(runs_dir, SEARCH_DEPTH, found)
    if not found:
        raise CheckpointError(
            "no run of training here", where=runs_dir, remedy="name another folder, or start one: vox train"
        )
    return sorted(found.values(), key=lambda run: (-last_growth(run), str(run)))


def last_growth(run: Path) -> float:
    """Return when a run last wrote its heartbeat or its metrics (unix time by the files)."""
    return max(modification_time(run / ALIVE) or 0.0, modification_time(run / METRICS) or 0.0)


def read_status(run: Path, now: float) -> RunStatus:
    """Read where a run stands at `now` (unix time); raises CheckpointError when the folder holds no run."""
    if not is_run(run):
        raise CheckpointError(
            "not a run's folder", where=run, remedy=f"name one that holds {METRICS}, such as runs/stage1"
        )
    faults: list[str] = []
    alive = read_json(run / ALIVE, faults)
    last = _find_last(run)
    saved = read_json(last / STATE, faults) if last else {}
    options, (train_config, text_config) = read_json(run / OPTIONS, faults), read_config_sections(run, faults)
    newest, train, devs = read_metrics(run / METRICS, faults)
    best = next((event for event in devs if event.get("is_best")), None)
    liveness = judge_liveness(alive, now)
    since = number_in(alive, "started") if liveness == "alive" else number_in(alive, "written")
    epochs = whole_number_in(alive, "epochs") or whole_number_in(train_config, "epochs")
    update = _first(whole_number_in(alive, "update"), _newest_update(newest, saved))
    total_updates = _first(whole_number_in(alive, "total_updates"), whole_number_in(saved, "total_updates"))
    is_done = update is not None and update == total_updates
    rate = _first(number_in(alive, "updates_per_second"), number_in(train, "updates_per_second"))
    return RunStatus(
        run=str(run),
        stage=_first(whole_number_in(options, "stage"), whole_number_in(train_config, "stage")),
        state=text_in(alive, "state") or "unknown",
        liveness=liveness,
        since=since if since is not None else last_growth(run),
        heard=number_in(alive, "heard"),
        error=text_in(alive, "error"),
        pid=whole_number_in(alive, "pid"),
        host=text_in(alive, "host"),
        world_size=whole_number_in(alive, "world_size"),
        epoch=_first(whole_number_in(alive, "epoch"), _epoch_under_way(newest or saved, epochs, is_done)),
        epochs=epochs,
        update=update,
        total_updates=total_updates,
        loss=number_in(train, "loss"),
        ctc=number_in(train, "ctc"),
        attention=number_in(train, "attention"),
        learning_rate=number_in(train, "learning_rate"),
        grad_norm=number_in(train, "grad_norm"),
        error_rate="CER" if text_config.get("alphabet") == "characters" else "WER",
        dev=_newest_dev_figures(devs),
        best_dev=_dev_figures(best) if best else None,
        updates_per_second=rate,
        audio_seconds_per_second=number_in(train, "audio_seconds_per_second"),
        seconds_left=_seconds_left(update, total_updates, rate) if liveness == "alive" else None,
        device=text_in(alive, "device_name") or text_in(alive, "device") or text_in(options, "device"),
        gpu=_gpu_figures(alive.get("gpu")),
        peak_memory_gb=number_in(train, "peak_memory_gb"),
        last_checkpoint=_checkpoint_figures(last),
        best_checkpoint=_checkpoint_figures(run / BEST),
        backup=_backup_figures(read_json(run / BACKUP, faults), options),
        skipped_updates=_first(
            whole_number_in(train, "skipped_updates"), whole_number_in(saved, "skipped_updates")
        ),
        unread_updates=_first(
            whole_number_in(train, "unread_updates"), whole_number_in(saved, "unread_updates")
        ),
        faults=tuple(faults),
    )


def _collect_runs(folder: Path, depth: int, found: dict[Path, Path]) -> None:
    """Add runs by their resolved path, so that a link to one is not a second run."""
    if is_run(folder):
        found.setdefault(folder.resolve(), folder)
    elif depth > 0 and folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                _collect_runs(path, depth - 1, found)


def _find_last(run: Path) -> Path | None:
    """Return the newest checkpoint: `last`, or by name where links were not kept."""
    if (run / LAST).is_dir():
        return (run / LAST).resolve()
    names = list_checkpoints(run)
    return checkpoints_of(run) / names[-1] if names else None


def _checkpoint_figures(folder: Path | None) -> CheckpointFigures | None:
    written = modification_time(folder / CHECKSUMS) if folder else None  # the last file to be written
    return CheckpointFigures(folder.resolve().name, written) if folder and written is not None else None


def _dev_figures(event: Tree) -> DevFigures:
    wer = {name.removeprefix("wer_"): number_in(event, name) for name in event if name.startswith("wer_")}
    return DevFigures(
        weights=(text_in(event, "kind") or "").partition("_")[2] or "raw",
        update=whole_number_in(event, "update"),
        wer={name: value for name, value in wer.items() if value is not None},
        ctc=number_in(event, "ctc"),
        attention=number_in(event, "attention"),
    )


def _newest_dev_figures(devs: list[Tree]) -> tuple[DevFigures, ...]:
    newest: dict[str, DevFigures] = {}
    for figures in map(_dev_figures, devs):  # newest first
        newest.setdefault(figures.weights, figures)
    return tuple(sorted(newest.values(), key=lambda figures: (figures.weights != "raw", figures.weights)))


def _gpu_figures(tree: object) -> dict[str, float | None] | None:
    return {name: number_in(tree, name) for name in tree} if isinstance(tree, dict) else None


def _backup_figures(state: Tree, options: Tree) -> BackupFigures | None:
    target = text_in(options, "backup")
    if not state and target is None:
        return None
    return BackupFigures(
        target, text_in(state, "checkpoint"), number_in(state, "last_good"), text_in(state, "error")
    )


def _newest_update(newest: Tree, saved: Tree) -> int | None:
    updates = [whole_number_in(newest, "update"), whole_number_in(saved, "update")]
    return max((update for update in updates if update is not None), default=None)


def _epoch_under_way(event: Tree, epochs: int | None, is_done: bool) -> int | None:
    """Return the epoch counted from 1: events and checkpoints count the complete ones.

    is_done: no other epoch begins, even if the updates ended before the epochs did.
    """
    complete = whole_number_in(event, "epoch")
    if complete is None or is_done:
        return complete
    return complete + 1 if epochs is None else min(complete + 1, epochs)


def _seconds_left(update: int | None, total_updates: int | None, rate: float | None) -> float | None:
    if update is None or total_updates is None or not rate or not rate > 0:
        return None
    return max(total_updates - update, 0) / rate


def _first(*values: Any) -> Any:
    """Return the first value that is not None."""
    return next((value for value in values if value is not None), None)

"""`vox status`: where runs of training stand."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vox.options import PositiveFloat
from vox.progress import format_duration
from vox.runs.liveness import ENDED
from vox.runs.status import BackupFigures, DevFigures, RunStatus, find_runs, read_status

UNKNOWN = "-"
LABEL_WIDTH = 15


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path), metavar="[RUN]")
@click.option(
    "--json", "as_json", is_flag=True, help="The same as JSON: times are unix times, error rates fractions."
)
@click.option("--watch", type=PositiveFloat(), metavar="SECONDS", help="Redraw so often, until Ctrl-C.")
def status(run: Path | None, as_json: bool, watch: float | None) -> None:
    """Say where a run stands: alive or dead, how far, newest figures, time left.

    RUN is a run's folder; without it, all runs under runs/, newest first. It only reads, so it works while
    a run goes on, after it has died, and on a copy of its folder.
    """
    if watch is None:
        click.echo(_render(run, as_json))
        return
    try:
        while True:
            screen = _render(run, as_json)
            click.clear()  # nothing where there is no terminal
            click.echo(screen)
            time.sleep(watch)
    except KeyboardInterrupt:
        return


def format_status(status: RunStatus, now: float) -> str:
    """Write one screen about one run; `now` is unix time."""
    title = status.run if status.stage is None else f"{status.run} (stage {status.stage})"
    rows = [f"  {label:<{LABEL_WIDTH}}{text}" for label, text in _list_rows(status, now)]
    return "\n".join([title, *rows])


def _render(run: Path | None, as_json: bool) -> str:
    now = time.time()
    statuses = [read_status(folder, now) for folder in ([run] if run else find_runs(Path("runs")))]
    if as_json:
        trees = [to_json(asdict(status)) for status in statuses]
        return json.dumps(trees[0] if run else trees, indent=1, allow_nan=False)
    return "\n\n".join(format_status(status, now) for status in statuses)


def _list_rows(status: RunStatus, now: float) -> Iterator[tuple[str, str]]:
    yield "state", _say_state(status, now)
    if status.liveness == "alive":
        yield "last news", _ago(status.heard, now)
    if status.error:
        yield "error", status.error
    if status.last_checkpoint is None and status.update is None and status.liveness != "alive":
        return  # it never began
    yield "epoch", f"{_count(status.epoch)} of {_count(status.epochs)}"
    yield "update", f"{_count(status.update)} of {_count(status.total_updates)}"
    has_ctc = status.ctc is not None or status.loss is None  # none where the decoder learns alone
    ctc = f"CTC {_figure(status.ctc)}, " if has_ctc else ""
    yield "loss", f"{_figure(status.loss)} ({ctc}attention {_figure(status.attention)} a label)"
    yield "learning rate", _figure(status.learning_rate, ".3g")
    yield "gradient norm", _figure(status.grad_norm, ".3g")
    for dev in status.dev or (None,):
        yield f"dev {status.error_rate}", _say_rates(dev)
    yield f"best dev {status.error_rate}", _say_rates(status.best_dev)
    rate = f"{_figure(status.updates_per_second, '.3g')} updates/s, "
    yield "rate", f"{rate}{_figure(status.audio_seconds_per_second, '.3g')} s of audio a second"
    yield "time left", UNKNOWN if status.seconds_left is None else format_duration(status.seconds_left)
    yield "device", _say_device(status)
    yield "memory", _say_memory(status)
    for name, checkpoint in (("last", status.last_checkpoint), ("best", status.best_checkpoint)):
        age = f"{checkpoint.name}, {_ago(checkpoint.written, now)}" if checkpoint else "none"
        yield f"{name} saved", age
    yield "backup", _say_backup(status.backup, now)
    unfinite, unread = _count(status.skipped_updates), _count(status.unread_updates)
    yield "skipped", f"updates: {unfinite} without a finite gradient, {unread} without a readable recording"
    for fault in status.faults:
        yield "fault", fault


def _say_state(status: RunStatus, now: float) -> str:
    since = f"{_moment(status.since)} ({_ago(status.since, now)})"
    if status.liveness == "alive":
        return f"{status.state}; alive since {since}, process {status.pid} on {status.host}"
    if status.liveness == "unknown":
        return f"unknown (no heartbeat to judge by); last written {since}"
    if status.state in ENDED:
        return f"{status.state}; ended {since}"
    return f"died in {status.state}; dead since {since}"


def _say_rates(dev: DevFigures | None) -> str:
    if dev is None:
        return UNKNOWN
    rates = ", ".join(f"{name} {100 * wer:.2f} %" for name, wer in dev.wer.items())
    weights = "" if dev.weights == "raw" else f", {dev.weights} weights"
    return f"{rates or UNKNOWN} (update {_count(dev.update)}{weights})"


def _say_device(status: RunStatus) -> str:
    device = status.device or UNKNOWN
    return device if status.world_size in (None, 1) else f"{device}, {status.world_size} processes"


def _say_memory(status: RunStatus) -> str:
    """Write memory in GB, and the GPU's utilization where it was measured."""
    peak = f"peak {_figure(status.peak_memory_gb, '.2f')} GB"
    if status.gpu is None:
        return peak
    held, total, utilization = (status.gpu.get(name) for name in ("memory_gb", "total_gb", "utilization"))
    used = "" if utilization is None else f", GPU {utilization:.0f} % busy"
    return f"{_figure(held, '.2f')} of {_figure(total, '.1f')} GB, {peak}{used}"


def _say_backup(backup: BackupFigures | None, now: float) -> str:
    if backup is None:
        return "off"
    good = "none yet" if backup.last_good is None else f"{backup.checkpoint}, {_ago(backup.last_good, now)}"
    return good if backup.error is None else f"{good}; the newest failed: {backup.error}"


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def _figure(value: float | None, form: str = ".4f") -> str:
    return UNKNOWN if value is None else format(value, form)


def _moment(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _ago(seconds: float | None, now: float) -> str:
    return UNKNOWN if seconds is None else f"{format_duration(max(now - seconds, 0.0))} ago"


def to_json(value: Any) -> Any:
    """Return a tree that any JSON reader takes: a figure that is not finite becomes its name."""
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

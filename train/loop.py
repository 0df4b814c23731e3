"""The order of events in a stage: updates, metrics, validation, checkpoints."""

import json
import logging
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from train.backup import Backup
from train.build import Parts
from train.metrics import MetricsLog
from train.schedule import ctc_weight_at, learning_rate_at, set_learning_rate
from train.splits import TrainingSplit
from train.step import LabelTotals, StepSettings, UpdateResult, run_update
from train.validate import DevResult, validate
from vox.checkpoint import point_link, remove_unlinked, save_checkpoint
from vox.data.batch import AudioBatch, FeatureBatch, LabelBatch
from vox.data.plan import Update, plan_epoch
from vox.device import peak_memory_gb
from vox.units import FRAME_RATE, SAMPLE_RATE

log = logging.getLogger(__name__)

LINE_SECONDS = 15.0  # between progress lines where there is no terminal


class Interrupted(Exception):  # noqa: N818 - an event, no error
    """SIGTERM or Ctrl-C arrived; everything is saved. Carries the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


@dataclass
class Progress:
    """Where a run stands: everything the loop carries from one update to the next, as JSON."""

    epoch: int = 0  # complete epochs
    update: int = 0  # complete updates, over all epochs
    update_in_epoch: int = 0
    window: dict[str, float] = field(default_factory=dict)  # sums since the last metric line
    skipped_updates: int = 0
    best: list[float] | None = None  # rank of the best dev result
    dev: dict[str, Any] | None = None  # the newest dev result
    handoff: dict[str, float] | None = None
    metrics_bytes: int = 0


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

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoint folders are."""
        return self.run_dir / "checkpoints"


def train_epochs(run: Run) -> None:
    """Train until the run's last update. Raises Interrupted after saving, when a signal asked for it."""
    progress = run.progress
    with _SignalFlag() as signalled:
        while not _is_complete(run):
            _train_epoch(run, signalled)
            progress.epoch += 1
            progress.update_in_epoch = 0
            record(run, validate_run(run))
            if signalled.number is not None and not _is_complete(run):
                raise Interrupted(signalled.number)


def validate_run(run: Run) -> DevResult:
    """Validate the run's model as it stands."""
    parts = run.parts
    return validate(parts.recogniser, parts.dev, parts.tokenizer, device=run.device, precision=run.precision)


def record(run: Run, result: DevResult) -> None:
    """Write a dev result's figures, save a checkpoint, and point `last` (and `best`, if it is) to it."""
    progress, parts = run.progress, run.parts
    values = asdict(result) | {"rank": list(result.rank)}
    progress.dev = values
    is_best = progress.best is None or list(result.rank) < progress.best
    if is_best:
        progress.best = list(result.rank)
    run.metrics.write(
        "dev", progress.update, {"epoch": progress.epoch, "is_best": is_best} | _dev_scalars(result)
    )
    for example in result.examples:
        run.metrics.write_text(f"dev/{example['id']}", progress.update, json.dumps(example, indent=1))
    log.info(
        "epoch %d of %d: dev CTC %.4f, attention %.4f a label; WER %s%s%s",
        progress.epoch,
        parts.config.train.epochs,
        result.ctc,
        result.attention,
        ", ".join(f"{name} {100 * wer:.2f} %" for name, wer in result.wer.items()),
        f"; {result.num_truncated} hypotheses cut at the length limit" if result.num_truncated else "",
        "; best so far" if is_best else "",
    )
    save(run, f"update-{progress.update:08d}-validated", is_best=is_best)


def save(run: Run, name: str, *, is_best: bool = False) -> None:
    """Write a checkpoint, move the links to it, and delete those that nothing points to."""
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
            "rng": _random_states(),
        },
    )
    links = (run.run_dir / "last", run.run_dir / "best")
    point_link(links[0], folder)
    if is_best:
        point_link(links[1], folder)
    remove_unlinked(run.checkpoints_dir, links)
    if run.backup is not None:
        run.backup.submit(folder, is_best=is_best)


def restore(run: Run, trainer_state: dict[str, Any]) -> None:
    """Put optimizer, scaler and random generators back where a checkpoint left them."""
    run.optimizer.load_state_dict(trainer_state["optimizer"])
    run.scaler.load_state_dict(trainer_state["scaler"])
    states = trainer_state["rng"]
    torch.set_rng_state(states["cpu"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def _is_complete(run: Run) -> bool:
    """Tell whether the last update is done and validated (a checkpoint inside an epoch is neither)."""
    progress = run.progress
    if progress.epoch >= run.parts.config.train.epochs:
        return True
    return progress.update >= run.total_updates and progress.update_in_epoch == 0


def _train_epoch(run: Run, signalled: "_SignalFlag") -> None:
    parts, progress = run.parts, run.progress
    config = parts.config
    plan = plan_epoch(
        parts.train.lengths,
        seed=config.train.seed,
        epoch=progress.epoch,
        utterances_per_update=config.data.utterances_per_update,
        micro_batch_utterances=config.data.micro_batch_utterances,
        micro_batch_length=_micro_batch_samples(config.data.micro_batch_seconds),
    )
    rest = plan[progress.update_in_epoch :][: run.total_updates - progress.update]
    parts.recogniser.train()
    last_save = window_start = time.monotonic()
    bar = tqdm(
        total=len(plan),
        initial=progress.update_in_epoch,
        desc=f"epoch {progress.epoch + 1}",
        disable=None,
        leave=False,
    )
    with bar:
        for totals, batches in _read_updates(parts.train, rest):
            ctc_weight = ctc_weight_at(progress.update, run.total_updates, config.train)
            settings = StepSettings(
                device=run.device,
                precision=run.precision,
                ctc_weight=ctc_weight,
                label_smoothing=config.train.label_smoothing,
                max_grad_norm=config.optimizer.max_grad_norm,
                augment=config.augment,
            )
            learning_rate = learning_rate_at(progress.update, run.total_updates, config.optimizer)
            set_learning_rate(run.optimizer, learning_rate)
            result = run_update(parts.recogniser, run.optimizer, run.scaler, batches, totals, settings)
            progress.update += 1
            progress.update_in_epoch += 1
            _note(run, result, learning_rate, ctc_weight)
            bar.update()
            if progress.update % config.train.log_updates == 0:
                window_start = _write_window(run, window_start, bar)
            minutes = (time.monotonic() - last_save) / 60
            if signalled.number is not None or minutes >= config.train.checkpoint_minutes:
                save(run, f"update-{progress.update:08d}")
                last_save = time.monotonic()
            if signalled.number is not None:
                raise Interrupted(signalled.number)
        if progress.window:
            _write_window(run, window_start, bar)


def _read_updates(
    split: TrainingSplit, plan: list[Update]
) -> Iterator[tuple[LabelTotals, Iterator[tuple[AudioBatch | FeatureBatch, LabelBatch]]]]:
    """Yield each update's totals and its micro-batches, read ahead across updates."""
    ids = split.ids
    named = [[[ids[position] for position in micro] for micro in update[0]] for update in plan]
    stream = split.source.read([micro for update in named for micro in update])
    for update in named:
        labels = [split.labels[name] for micro in update for name in micro]
        num_labels = sum(len(row) for row in labels)
        yield LabelTotals(num_labels, num_labels + len(labels)), _take(split, stream, sum(map(bool, update)))


def _take(
    split: TrainingSplit, stream: Iterator[AudioBatch | FeatureBatch], count: int
) -> Iterator[tuple[AudioBatch | FeatureBatch, LabelBatch]]:
    for _ in range(count):
        batch = next(stream)
        if batch.ids:  # empty when none of its recordings could be read
            yield batch, split.label_batch(batch.ids)


def _note(run: Run, result: UpdateResult, learning_rate: float, ctc_weight: float) -> None:
    """Add an update to the window of the next metric line; count it if it was not finite."""
    if not result.is_finite:
        run.progress.skipped_updates += 1
        log.warning("update %d skipped: its gradient is not finite", run.progress.update)
        return
    window = run.progress.window
    for name in ("ctc", "attention", "loss", "grad_norm", "num_frames"):
        window[name] = window.get(name, 0.0) + getattr(result, name)
    window["count"] = window.get("count", 0) + 1
    window["learning_rate"], window["ctc_weight"] = learning_rate, ctc_weight


def _write_window(run: Run, started: float, bar: "tqdm[NoReturn]") -> float:
    """Write the means since the last metric line, and start a new window; returns its start."""
    progress, now = run.progress, time.monotonic()
    window, progress.window = progress.window, {}
    if not window:
        return now
    count = window["count"]
    values = {name: window[name] / count for name in ("ctc", "attention", "loss", "grad_norm")}
    values |= {"learning_rate": window["learning_rate"], "ctc_weight": window["ctc_weight"]}
    timing = {
        "epoch": progress.epoch,
        "updates_per_second": count / (now - started),
        "audio_seconds_per_second": window["num_frames"] / FRAME_RATE / (now - started),
        "peak_memory_gb": peak_memory_gb(run.device),
        "skipped_updates": progress.skipped_updates,
    }
    run.metrics.write("train", progress.update, values | timing)
    _say_progress(run, values | timing, bar)
    return now


def _say_progress(run: Run, values: dict[str, Any], bar: "tqdm[NoReturn]") -> None:
    """Show the newest figures beside the bar on a terminal; elsewhere log them now and then."""
    progress, now = run.progress, time.monotonic()
    if not bar.disable:
        bar.set_postfix_str(f"loss {values['loss']:.3f}")
    if not bar.disable or now - run.last_line < LINE_SECONDS:
        return
    run.last_line = now
    left = (run.total_updates - progress.update) / values["updates_per_second"]
    log.info(
        "update %d of %d: loss %.4f (CTC %.4f, attention %.4f a label), gradient %.2f, %.2f/s, %s left",
        progress.update,
        run.total_updates,
        values["loss"],
        values["ctc"],
        values["attention"],
        values["grad_norm"],
        values["updates_per_second"],
        tqdm.format_interval(left),
    )


def _dev_scalars(result: DevResult) -> dict[str, Any]:
    return {
        "ctc": result.ctc,
        "attention": result.attention,
        **{f"wer_{name}": wer for name, wer in result.wer.items()},
        "num_truncated": result.num_truncated,
        "seconds": result.seconds,
    }


def _micro_batch_samples(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * SAMPLE_RATE)


def _random_states() -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


class _SignalFlag:
    """Notes SIGTERM and SIGINT instead of dying, so that the update under way can be finished and saved."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_SignalFlag":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number is not None:  # asked twice: do not wait for the update
            raise KeyboardInterrupt
        self.number = number

"""The order of events in a stage: updates, metrics, validation, checkpoints."""

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import FrameType
from typing import Any, NoReturn

from tqdm import tqdm

from train.progress import Run, save
from train.schedule import ctc_weight_at, learning_rate_at, set_learning_rate
from train.splits import TrainingSplit
from train.step import LabelTotals, StepSettings, UpdateResult, run_update
from train.validate import DevResult, Stopped, validate
from vox.data.batch import AudioBatch, FeatureBatch, LabelBatch
from vox.data.plan import Update, plan_epoch
from vox.device import peak_memory_gb
from vox.errors import AudioError
from vox.units import FRAME_RATE, SAMPLE_RATE

log = logging.getLogger(__name__)

LINE_SECONDS = 15.0  # between progress lines where there is no terminal


class Interrupted(Exception):  # noqa: N818 - an event, no error
    """SIGTERM or Ctrl-C arrived; everything is saved. Carries the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def train_epochs(run: Run) -> None:
    """Train until the run's last update. Raises Interrupted after saving, when a signal asked for it."""
    progress = run.progress
    with _SignalFlag() as signalled:
        while not _is_complete(run):
            _train_epoch(run, signalled)
            save(run, f"update-{progress.update:08d}")  # validation takes long
            try:
                result = validate_run(run, lambda: signalled.number is not None)
            except Stopped:
                assert signalled.number is not None
                raise Interrupted(signalled.number) from None
            progress.epoch += 1
            progress.update_in_epoch = 0
            record(run, result)
            if signalled.number is not None and not _is_complete(run):
                raise Interrupted(signalled.number)


def validate_run(run: Run, is_stopped: Callable[[], bool] = lambda: False) -> DevResult:
    """Validate the run's model as it stands; raises Stopped when `is_stopped` says so in between."""
    parts = run.parts
    return validate(
        parts.recogniser,
        parts.dev,
        parts.tokenizer,
        device=run.device,
        precision=run.precision,
        is_stopped=is_stopped,
    )


def record(run: Run, result: DevResult) -> None:
    """Write a dev result's figures, save a checkpoint, and point `last` (and `best`, if it is) to it."""
    progress, parts = run.progress, run.parts
    rank = list(result.rank)
    progress.dev = asdict(result) | {"rank": rank, "update": progress.update}
    is_best = math.isfinite(rank[1]) and (progress.best is None or rank < progress.best)
    if is_best:
        progress.best = rank
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
    is_whole, num_read = progress.update_in_epoch == 0, 0
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
            num_read += result.num_targets > 0
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
        if is_whole and num_read == 0:
            raise AudioError(
                f"not one recording of epoch {progress.epoch + 1} could be read",
                where=parts.train.name,
                remedy="the first reasons are above; restore the audio, then go on with --resume",
            )
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
    """Add an update to the window of the next metric line; count it if it changed nothing."""
    if result.num_targets == 0:
        run.progress.unread_updates += 1
        log.warning("update %d skipped: none of its recordings could be read", run.progress.update)
        return
    if not result.is_finite:
        run.progress.skipped_updates += 1
        log.warning("update %d skipped: its gradient is not finite", run.progress.update)
        return
    window = run.progress.window
    for name in ("ctc", "attention", "loss", "grad_norm", "num_frames"):
        window[name] = window.get(name, 0.0) + getattr(result, name)
    window["count"] = window.get("count", 0) + 1
    window["learning_rate"], window["ctc_weight"] = learning_rate, ctc_weight
    run.timed_updates += 1
    run.timed_frames += result.num_frames


def _write_window(run: Run, started: float, bar: "tqdm[NoReturn]") -> float:
    """Write the means since the last metric line, and start a new window; returns its start."""
    progress, now = run.progress, time.monotonic()
    window, progress.window = progress.window, {}
    timed_updates, timed_frames = run.timed_updates, run.timed_frames
    run.timed_updates = run.timed_frames = 0
    if not window:
        return now
    count = window["count"]
    values = {name: window[name] / count for name in ("ctc", "attention", "loss", "grad_norm")}
    values |= {"learning_rate": window["learning_rate"], "ctc_weight": window["ctc_weight"]}
    timing = {
        "epoch": progress.epoch,
        "updates_per_second": timed_updates / (now - started),
        "audio_seconds_per_second": timed_frames / FRAME_RATE / (now - started),
        "peak_memory_gb": peak_memory_gb(run.device),
        "skipped_updates": progress.skipped_updates,
        "unread_updates": progress.unread_updates,
    }
    run.metrics.write("train", progress.update, values | timing)
    _say_progress(run, values | timing, bar)
    return now


def _say_progress(run: Run, values: dict[str, Any], bar: "tqdm[NoReturn]") -> None:
    """Show the newest figures beside the bar on a terminal; elsewhere log them now and then."""
    progress, now = run.progress, time.monotonic()
    if not bar.disable:
        bar.set_postfix_str(f"loss {values['loss']:.3f}")
    if not bar.disable or now - run.last_line < LINE_SECONDS or not values["updates_per_second"]:
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

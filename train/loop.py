"""The order of events in a stage: updates, metrics, validation, checkpoints."""

import logging
import time
from collections.abc import Iterator
from itertools import chain
from typing import NoReturn

from tqdm import tqdm

from train.judge.best import record
from train.judge.validate import Stopped, validate_weights
from train.memory import halve_micro_batch
from train.plan import plan_run_epoch
from train.save import save_run
from train.signals import Interrupted
from train.splits import TrainingSplit
from train.state import Run
from train.update.schedule import ctc_weight_at, learning_rate_at, set_learning_rate
from train.update.step import LabelTotals, MicroBatchTooLargeError, StepSettings, run_update
from vox.data.batch import AudioBatch, FeatureBatch, LabelBatch
from vox.data.concatenate import RowUpdate, concatenate_batch, count_in_rows
from vox.errors import AudioError
from vox.runs.layout import checkpoint_name

log = logging.getLogger(__name__)


def train_epochs(run: Run) -> None:
    """Train until the run's last update. Raises Interrupted after saving, on a signal."""
    while not _is_complete(run):
        _train_epoch(run)
        save_run(run, checkpoint_name(run.progress.update))  # validation takes long
        _validate_and_record(run, is_epoch_end=True)
        report_failures(run)
        if not _is_complete(run):
            run.signals.stop_if_heard()


def _is_complete(run: Run) -> bool:
    """Say whether the last update is done and validated (a checkpoint inside an epoch is neither)."""
    progress = run.progress
    if progress.epoch >= run.parts.config.train.epochs:
        return True
    return progress.update >= run.total_updates and progress.update_in_epoch == 0


def _train_epoch(run: Run) -> None:
    progress = run.progress
    num_updates, first_update = len(_plan_epoch(run)), progress.update
    run.parts.recogniser.train()
    run.meter.start()
    is_whole, unread_before = progress.update_in_epoch == 0, progress.unread_updates
    bar = tqdm(
        total=num_updates,
        initial=progress.update_in_epoch,
        desc=f"epoch {progress.epoch + 1}",
        disable=None if run.ranks.is_first else True,
        leave=False,
    )
    with bar:
        _validate_if_due(run, num_updates)  # resumed from the moment before
        while not _run_updates(run, bar):
            halve_micro_batch(run)
        run.meter.read()
        if is_whole and progress.unread_updates - unread_before == progress.update - first_update:
            raise AudioError(
                f"no recording of epoch {progress.epoch + 1} could be read",
                where=run.parts.train.name,
                remedy="the first reasons are above; restore the audio, then continue with --resume",
            )
        if progress.window:
            run.meter.write_line(bar)


def _run_updates(run: Run, bar: "tqdm[NoReturn]") -> bool:
    """Run the rest of the epoch's updates; return False where one did not fit into memory."""
    progress, config = run.progress, run.parts.config
    plan = _plan_epoch(run)
    rest = plan[progress.update_in_epoch :][: run.total_updates - progress.update]
    last_save = time.monotonic()
    for update, (totals, batches) in zip(rest, _read_updates(run, rest), strict=True):
        try:
            _update(run, update, totals, batches)
        except MicroBatchTooLargeError:
            return False  # the error keeps tensors alive: the caller continues without it
        bar.update()
        run.writer.check()
        if progress.update % config.train.log_updates == 0:
            run.meter.write_line(bar)
        is_due = (time.monotonic() - last_save) / 60 >= config.train.checkpoint_minutes
        is_asked_to_stop = run.signals.agree(is_save_due=is_due)
        if is_asked_to_stop or run.signals.is_save_due:
            save_run(run, checkpoint_name(progress.update))
            last_save = time.monotonic()
        if is_asked_to_stop:
            run.writer.wait()
            raise Interrupted(run.signals.number)
        _validate_if_due(run, len(plan))
    return True


def _plan_epoch(run: Run) -> list[RowUpdate]:
    progress = run.progress
    return plan_run_epoch(
        run.parts,
        progress.epoch,
        micro_batch_utterances=progress.micro_batch_utterances,
        world_size=run.ranks.world_size,
    )


def _update(
    run: Run,
    update: RowUpdate,
    totals: LabelTotals,
    batches: Iterator[tuple[AudioBatch | FeatureBatch, LabelBatch]],
) -> None:
    """Run one update; its result is read later, so that the host does not wait for the device."""
    progress, config = run.progress, run.parts.config
    ctc_weight = ctc_weight_at(progress.update, run.total_updates, config.train)
    learning_rate = learning_rate_at(progress.update, run.total_updates, config.optimizer)
    set_learning_rate(run.optimizer, learning_rate)
    settings = step_settings(run, ctc_weight)
    result = run_update(
        run.losses, run.optimizer, run.scaler, batches, totals, settings, run.ranks, run.l2_sp
    )
    if run.ema is not None:
        run.ema.follow(progress.update, result)
    progress.update += 1
    progress.update_in_epoch += 1
    run.meter.add(update, learning_rate, result)
    run.heartbeat.beat(
        state="training",
        update=progress.update,
        total_updates=run.total_updates,
        epoch=progress.epoch + 1,
        epochs=config.train.epochs,
    )


def step_settings(run: Run, ctc_weight: float) -> StepSettings:
    """Return what an update of this run needs beside the model and the data."""
    return StepSettings.from_config(
        run.parts.config,
        run.device,
        run.precision,
        ctc_weight=ctc_weight,
        cached_layer=run.parts.cached_layer,
    )


def _read_updates(
    run: Run, plan: list[RowUpdate]
) -> Iterator[tuple[LabelTotals, Iterator[tuple[AudioBatch | FeatureBatch, LabelBatch]]]]:
    """Yield each update's totals, over all ranks, and this rank's micro-batches, read ahead."""
    split = run.parts.train
    ids = split.ids
    mine = [
        [[[ids[position] for position in row] for row in micro] for micro in update[run.ranks.rank]]
        for update in plan
    ]
    stream = split.source.read([list(chain.from_iterable(micro)) for update in mine for micro in update])
    for update, my_share in zip(plan, mine, strict=True):
        positions, num_rows = count_in_rows(update)
        num_labels = sum(len(split.labels[ids[position]]) for position in positions)
        totals = LabelTotals(num_labels, num_labels + num_rows)
        yield totals, _take(split, stream, list(filter(None, my_share)), pin=run.device.type == "cuda")


def _take(
    split: TrainingSplit,
    stream: Iterator[AudioBatch | FeatureBatch],
    micros: list[list[list[str]]],
    *,
    pin: bool,
) -> Iterator[tuple[AudioBatch | FeatureBatch, LabelBatch]]:
    for rows in micros:
        batch, there = concatenate_batch(next(stream), rows)
        if batch.ids:  # empty when none of its recordings could be read
            labels = split.label_batch(there)
            yield (batch.pin(), labels.pin()) if pin else (batch, labels)


def _validate_if_due(run: Run, epoch_updates: int) -> None:
    """Validate inside an epoch, where the config asks for it and it was not done before."""
    progress, every = run.progress, run.parts.config.train.validate_updates
    is_inside = 0 < progress.update_in_epoch < epoch_updates and progress.update < run.total_updates
    if every is None or not is_inside or progress.update % every:
        return
    if progress.dev is None or progress.dev["update"] != progress.update:
        save_run(run, checkpoint_name(progress.update))
        _validate_and_record(run, is_epoch_end=False)
        run.signals.stop_if_heard()


def _validate_and_record(run: Run, *, is_epoch_end: bool) -> None:
    """Validate the weights, and their average if one is kept; raise Interrupted if a signal ended it."""
    try:
        results = validate_weights(run, run.signals.agree)
    except Stopped:
        raise Interrupted(run.signals.number) from None
    if is_epoch_end:
        run.progress.epoch += 1
        run.progress.update_in_epoch = 0
    record(run, results)


def report_failures(run: Run) -> None:
    """Gather which recordings could not be read; rank 0 logs those of the other ranks, once each."""
    for split in run.parts.splits.values():
        mine: dict[str, str] = getattr(split.source, "failures", {})
        for theirs in run.ranks.gather(dict(mine))[1:]:
            for name in theirs.keys() - mine.keys():
                mine[name] = theirs[name]
                log.warning("skipped %s: %s", name, theirs[name])

"""The order of events in a stage: updates, metrics, validation, checkpoints."""

import json
import logging
import math
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from tqdm import tqdm

from train.average import validate_weights
from train.heartbeat import measure_gpu
from train.memory import halve_micro_batch
from train.progress import Run, save_run
from train.schedule import ctc_weight_at, learning_rate_at, set_learning_rate
from train.signals import Interrupted
from train.splits import TrainingSplit
from train.step import LabelTotals, MicroBatchTooLargeError, StepSettings, run_update
from train.validate import DevResult, Stopped
from vox.config import switch_is_on
from vox.data.batch import AudioBatch, FeatureBatch, LabelBatch
from vox.data.plan import Update, plan_epoch
from vox.device import peak_memory_gb
from vox.errors import AudioError, TrainingError, name_first
from vox.runs.layout import Kind, checkpoint_name
from vox.units import FRAME_RATE, SAMPLE_RATE

log = logging.getLogger(__name__)

LINE_SECONDS = 15.0  # between progress lines where there is no terminal

# Updates in a row whose gradient is not finite, after which training stops. More than float16's search for a
# scale can take: each halves the loss scale, and 50 bring it from 2^16 to 2^-34.
MAX_SKIPPED_IN_A_ROW = 50


def train_epochs(run: Run) -> None:
    """Train until the run's last update. Raises Interrupted after saving, when a signal asked for it."""
    while not _is_complete(run):
        _train_epoch(run)
        save_run(run, checkpoint_name(run.progress.update))  # validation takes long
        _validate_and_record(run, is_epoch_end=True)
        report_failures(run)
        if not _is_complete(run):
            run.signals.stop_if_heard()


def _is_complete(run: Run) -> bool:
    """Tell whether the last update is done and validated (a checkpoint inside an epoch is neither)."""
    progress = run.progress
    if progress.epoch >= run.parts.config.train.epochs:
        return True
    return progress.update >= run.total_updates and progress.update_in_epoch == 0


def _train_epoch(run: Run) -> None:
    progress = run.progress
    num_updates, first_update = len(_plan_epoch(run)), progress.update
    run.parts.recogniser.train()
    run.window_start = time.monotonic()
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
        _read_results(run)
        if is_whole and progress.unread_updates - unread_before == progress.update - first_update:
            raise AudioError(
                f"not one recording of epoch {progress.epoch + 1} could be read",
                where=run.parts.train.name,
                remedy="the first reasons are above; restore the audio, then go on with --resume",
            )
        if progress.window:
            _write_window(run, bar)


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
            return False  # the error holds on to tensors: the caller goes on without it
        bar.update()
        run.writer.check()
        if progress.update % config.train.log_updates == 0:
            _write_window(run, bar)
        is_due = (time.monotonic() - last_save) / 60 >= config.train.checkpoint_minutes
        is_asked_to_stop = run.signals.agree(is_save_due=is_due)
        if is_asked_to_stop or run.signals.is_save_due:
            save(run, checkpoint_name(progress.update))
            last_save = time.monotonic()
        if is_asked_to_stop:
            run.writer.wait()
            raise Interrupted(run.signals.number)
        _validate_if_due(run, len(plan))
    return True


def _plan_epoch(run: Run) -> list[Update]:
    data = run.parts.config.data
    return plan_epoch(
        run.parts.train.lengths,
        seed=run.parts.config.train.seed,
        epoch=run.progress.epoch,
        utterances_per_update=data.utterances_per_update,
        micro_batch_utterances=run.progress.micro_batch_utterances,
        micro_batch_length=(
            None if data.micro_batch_seconds is None else int(data.micro_batch_seconds * SAMPLE_RATE)
        ),
        world_size=run.ranks.world_size,
    )


def _update(
    run: Run,
    update: Update,
    totals: LabelTotals,
    batches: Iterator[tuple[AudioBatch | FeatureBatch, LabelBatch]],
) -> None:
    """Run one update; what it came to is read later, so that the device is not waited for."""
    progress, config = run.progress, run.parts.config
    ctc_weight = ctc_weight_at(progress.update, run.total_updates, config.train)
    learning_rate = learning_rate_at(progress.update, run.total_updates, config.optimizer)
    set_learning_rate(run.optimizer, learning_rate)
    settings = step_settings(run, ctc_weight)
    result = run_update(run.losses, run.optimizer, run.scaler, batches, totals, settings, run.ranks)
    if run.ema is not None:
        run.ema.follow(progress.update, result)
    progress.update += 1
    progress.update_in_epoch += 1
    run.unread_results.append((progress.update, update, learning_rate, result))
    run.heartbeat.beat(
        state="training",
        update=progress.update,
        total_updates=run.total_updates,
        epoch=progress.epoch + 1,
        epochs=config.train.epochs,
    )


def step_settings(run: Run, ctc_weight: float) -> StepSettings:
    """Return what an update of this run needs beside the model and the data."""
    config = run.parts.config
    return StepSettings(
        device=run.device,
        precision=run.precision,
        ctc_weight=ctc_weight,
        label_smoothing=config.train.label_smoothing,
        max_grad_norm=config.optimizer.max_grad_norm,
        augment=config.augment,
        cached_layer=run.parts.cached_layer,
        is_padded_to_few_shapes=switch_is_on(config.train.few_shapes, auto=run.device.type == "cuda"),
    )


def _read_updates(
    run: Run, plan: list[Update]
) -> Iterator[tuple[LabelTotals, Iterator[tuple[AudioBatch | FeatureBatch, LabelBatch]]]]:
    """Yield each update's totals, over all ranks, and this rank's micro-batches, read ahead."""
    split = run.parts.train
    ids = split.ids
    mine = [[[ids[position] for position in micro] for micro in update[run.ranks.rank]] for update in plan]
    stream = split.source.read([micro for update in mine for micro in update])
    for update, my_share in zip(plan, mine, strict=True):
        labels = [split.labels[ids[position]] for position in _positions_of(update)]
        num_labels = sum(len(row) for row in labels)
        totals = LabelTotals(num_labels, num_labels + len(labels))
        yield totals, _take(split, stream, sum(map(bool, my_share)), pin=run.device.type == "cuda")


def _positions_of(update: Update) -> list[int]:
    """Return the utterances of an update, over all ranks and micro-batches."""
    return [position for share in update for micro in share for position in micro]


def _take(
    split: TrainingSplit, stream: Iterator[AudioBatch | FeatureBatch], count: int, *, pin: bool
) -> Iterator[tuple[AudioBatch | FeatureBatch, LabelBatch]]:
    for _ in range(count):
        batch = next(stream)
        if batch.ids:  # empty when none of its recordings could be read
            labels = split.label_batch(batch.ids)
            yield batch, labels.pin() if pin else labels


def save(run: Run, name: str, *, is_best: bool = False) -> None:
    """Read what the updates so far came to, and save the run."""
    _read_results(run)
    save_run(run, name, is_best=is_best)


def _validate_if_due(run: Run, epoch_updates: int) -> None:
    """Validate inside an epoch, where the config asks for it and it was not done before."""
    progress, every = run.progress, run.parts.config.train.validate_updates
    is_inside = 0 < progress.update_in_epoch < epoch_updates and progress.update < run.total_updates
    if every is None or not is_inside or progress.update % every:
        return
    if progress.dev is None or progress.dev["update"] != progress.update:
        save(run, checkpoint_name(progress.update))
        _validate_and_record(run, is_epoch_end=False)
        run.signals.stop_if_heard()


def _validate_and_record(run: Run, *, is_epoch_end: bool) -> None:
    """Validate the weights, and their average if one is kept; raise Interrupted if that was given up."""
    try:
        results = validate_weights(run, run.signals.agree)
    except Stopped:
        raise Interrupted(run.signals.number) from None
    if is_epoch_end:
        run.progress.epoch += 1
        run.progress.update_in_epoch = 0
    record(run, results)


def report_failures(run: Run) -> None:
    """Tell the first rank which recordings the others could not read; it says so, once each."""
    for split in (run.parts.train, run.parts.dev):
        mine: dict[str, str] = getattr(split.source, "failures", {})
        for theirs in run.ranks.gather(dict(mine))[1:]:
            for name in theirs.keys() - mine.keys():
                mine[name] = theirs[name]
                log.warning("skipped %s: %s", name, theirs[name])


def record(run: Run, results: dict[str, DevResult], *, can_be_worse: bool = True) -> bool:
    """Write dev results, by the weights they are of; save a checkpoint, as `best` if one of them is.

    The better of the results stands for the checkpoint. can_be_worse: save it even if it is not the best.
    Returns whether it is.
    """
    progress = run.progress
    weights, result = min(results.items(), key=lambda item: item[1].rank)
    rank = list(result.rank)
    is_best = math.isfinite(rank[1]) and (progress.best is None or rank < progress.best)
    for name, each in results.items():
        event = "dev" if name == "raw" else f"dev_{name}"
        figures = {"epoch": progress.epoch, "is_best": is_best and name == weights} | each.scalars()
        run.write(event, progress.update, figures)
        _say_result(run, name, each, is_best=is_best and name == weights)
    for example in result.examples:
        run.write_text(f"dev/{example['id']}", progress.update, json.dumps(example, indent=1))
    if is_best:
        progress.best = rank
    if is_best or can_be_worse:
        progress.dev = result.to_dict() | {"rank": rank, "update": progress.update}
        progress.weights = weights
        kind: Kind = "average" if weights == "average" else "validated"
        save(run, checkpoint_name(progress.update, kind), is_best=is_best)
    return is_best


def _say_result(run: Run, weights: str, result: DevResult, *, is_best: bool) -> None:
    log.info(
        "epoch %d of %d%s: dev CTC %.4f, attention %.4f a label; WER %s%s%s",
        run.progress.epoch,
        run.parts.config.train.epochs,
        "" if weights == "raw" else f", {weights} weights",
        result.ctc,
        result.attention,
        ", ".join(f"{name} {100 * wer:.2f} %" for name, wer in result.wer.items()),
        f"; {result.num_truncated} hypotheses cut at the length limit" if result.num_truncated else "",
        "; best so far" if is_best else "",
    )


def _read_results(run: Run) -> None:
    """Wait for the updates under way; add them to the window of the next metric line, or count them out."""
    progress = run.progress
    results, run.unread_results = run.unread_results, []
    for number, update, learning_rate, result in results:
        figures = result.read()
        if figures.num_targets == 0:
            progress.unread_updates += 1
            log.warning("update %d skipped: none of its recordings could be read", number)
        elif not figures.is_finite:
            _count_skipped(run, number, update)
        else:
            progress.skipped_in_a_row = 0
            window = progress.window
            for name in ("ctc", "attention", "loss", "grad_norm", "num_frames"):
                window[name] = window.get(name, 0.0) + getattr(figures, name)
            window["count"] = window.get("count", 0) + 1
            window["learning_rate"], window["ctc_weight"] = learning_rate, result.ctc_weight
            run.timed_updates += 1
            run.timed_frames += figures.num_frames


def _count_skipped(run: Run, number: int, update: Update) -> None:
    """Record an update whose gradient is not finite; raise TrainingError after too many in a row."""
    progress = run.progress
    progress.skipped_updates += 1
    progress.skipped_in_a_row += 1
    ids = [run.parts.train.ids[position] for position in _positions_of(update)]
    run.write("skipped", number, {"ids": ids})
    limit = MAX_SKIPPED_IN_A_ROW
    if run.scaler.is_enabled():
        log.info("update %d skipped: float16 overflowed, and the loss is scaled less now", number)
    else:
        log.warning("update %d skipped: non-finite gradient; utterance ids are in metrics.jsonl", number)
        limit = min(limit, run.total_updates)  # a short run of which every update is skipped fails as well
    if progress.skipped_in_a_row >= limit:
        raise TrainingError(
            f"{limit} updates in a row, up to update {number}, had a non-finite gradient (utterances of the "
            f"last: {name_first(ids)}; the others are in metrics.jsonl)",
            where=run.run_dir,
            remedy="check the recordings or their cache (vox cache verify), then go on with --resume; if "
            "they are sound, start another run with a lower optimizer.learning_rate or train.precision=fp32",
        )


def _write_window(run: Run, bar: "tqdm[NoReturn]") -> None:
    """Write the means since the last metric line, and start a new window."""
    _read_results(run)
    progress, now = run.progress, time.monotonic()
    seconds, run.window_start = now - run.window_start, now
    window, progress.window = progress.window, {}
    timed_updates, timed_frames = run.timed_updates, run.timed_frames
    run.timed_updates = run.timed_frames = 0
    if not window:
        return
    count = window["count"]
    values = {name: window[name] / count for name in ("ctc", "attention", "loss", "grad_norm")}
    values |= {"learning_rate": window["learning_rate"], "ctc_weight": window["ctc_weight"]}
    timing = {
        "epoch": progress.epoch,
        "updates_per_second": timed_updates / seconds,
        "audio_seconds_per_second": timed_frames / FRAME_RATE / seconds,
        "peak_memory_gb": peak_memory_gb(run.device),
        "skipped_updates": progress.skipped_updates,
        "unread_updates": progress.unread_updates,
    }
    gpu = measure_gpu(run.device) or {}
    timing |= {f"gpu_{name}": value for name, value in gpu.items() if value is not None}
    run.write("train", progress.update, values | timing)
    run.heartbeat.beat(updates_per_second=timing["updates_per_second"])
    _say_progress(run, values | timing, bar)


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

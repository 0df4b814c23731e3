"""One stage of training, as a list of parts being built, then a loop."""

import logging
import os

import torch

from train.build import Parts, build_parts, count_trainable
from train.inputs import refuse_existing
from train.joined import find_shared_recordings, join_names
from train.judge.adapt import begin_adaptation, interpolate_at_the_end, link_before, start_l2_sp
from train.judge.average import average_at_the_end
from train.judge.handoff import hand_over, record_start
from train.loop import report_failures, step_settings, train_epochs
from train.memory import settle_micro_batch
from train.meter import Meter
from train.options import TrainOptions, resolve_config, resume_options, save_options, warn_if_all_frozen
from train.progress import Progress
from train.ranks import Ranks, join_ranks, refuse_shared_gpu
from train.record.backup import Backup, start_backup
from train.record.checkpoint_writer import CheckpointWriter
from train.record.heartbeat import Heartbeat
from train.record.metrics import MetricsLog
from train.record.restore import restore_run
from train.record.utterances import save_utterances
from train.resume import find_progress, refuse_living, resume_state
from train.save import save_run
from train.signals import Interrupted, Signals
from train.stages import find_stage
from train.state import Run
from train.update.ema import Ema
from train.update.schedule import build_optimizer, count_updates
from train.update.step import settle_buckets, wrap_losses
from vox.checkpoint.files import load_averaged, load_trainer_state
from vox.config import Config, dump_config, load_saved_config
from vox.data.concatenate import longest_row
from vox.data.plan import num_updates
from vox.device import local_device, pick_device, pick_precision
from vox.disk import write_whole
from vox.errors import name_count, name_first
from vox.runs.layout import BEST, CONFIG, UTTERANCES, checkpoint_name
from vox.units import seconds_to_samples

log = logging.getLogger(__name__)

# How long to wait for the copies under way: after SIGTERM a machine soon disappears, and torchrun kills
# its processes after half a minute.
BACKUP_PATIENCE_SECONDS = 1800.0
BACKUP_PATIENCE_STOPPED_SECONDS = 60.0
BACKUP_PATIENCE_TORCHRUN_SECONDS = 15.0


def run_training(options: TrainOptions) -> None:
    """Train one stage from start, or from where it stopped, to its end.

    Under torchrun, as one of several processes. Raises VoxError for what a user can fix, and Interrupted
    after SIGTERM or Ctrl-C.
    """
    with join_ranks() as ranks:
        options, config = _settle(options, ranks)
        refuse_shared_gpu(options.device)
        device = pick_device(local_device(options.device))
        heartbeat = Heartbeat(
            options.run_dir,
            device=device,
            world_size=ranks.world_size,
            interruptions=(Interrupted, KeyboardInterrupt),
            is_enabled=ranks.is_first,
        )
        with heartbeat, Signals(ranks) as signals:
            _run_stage(options, config, device, ranks, heartbeat, signals)


def _settle(options: TrainOptions, ranks: Ranks) -> tuple[TrainOptions, Config]:
    """Return what this run is to do: as asked for, or as the run that is resumed was asked for."""
    if not options.resume:
        refuse_existing(options)
        return options, resolve_config(options)
    with ranks.first_goes_first():
        if ranks.is_first:
            refuse_living(options)
            if options.restore_from is not None:
                restore_run(options.restore_from, options.run_dir, options.stage)
    options = resume_options(options)
    return options, load_saved_config(options.run_dir / CONFIG, options.overrides)


def _run_stage(
    options: TrainOptions,
    config: Config,
    device: torch.device,
    ranks: Ranks,
    heartbeat: Heartbeat,
    signals: Signals,
) -> None:
    precision = pick_precision(config.train.precision, device)
    parts = build_parts(options, config, device, ranks)
    run = _build_run(options, parts, device, precision, ranks, heartbeat, signals)
    is_done = False
    try:
        with run.writer:
            _start(run, options)
            train_epochs(run)
            average_at_the_end(run)
            interpolate_at_the_end(run)
        is_done = True
    finally:
        if run.metrics is not None:
            run.metrics.close()
        if run.backup is not None:
            _wait_for_backup(run, run.backup, is_done=is_done)
        if signals.number:
            ranks.wait()  # torchrun ends all when one has left: none may before the first has saved
    _report_end(run)


def _wait_for_backup(run: Run, backup: Backup, *, is_done: bool) -> None:
    with run.heartbeat.during("saving"):
        if is_done:
            with run.signals.ending_at_once():
                backup.close(BACKUP_PATIENCE_SECONDS)
        elif "TORCHELASTIC_RUN_ID" in os.environ:
            backup.close(BACKUP_PATIENCE_TORCHRUN_SECONDS)
        else:
            backup.close(BACKUP_PATIENCE_STOPPED_SECONDS)


def _start(run: Run, options: TrainOptions) -> None:
    """Bring a run to where its next update may follow, saved so that it can be resumed from there."""
    if options.resume:
        assert run.parts.origin is not None
        folder = run.parts.origin.folder
        resume_state(run, load_trainer_state(folder))
        if run.ema is not None:
            run.ema.load(load_averaged(folder))
        if run.parts.source_dev is not None:
            link_before(run)
        if run.progress.update < run.total_updates:
            log.info("resuming after update %d of %d", run.progress.update, run.total_updates)
        else:
            log.info(
                "all %d updates of this run are done: nothing is left to train; to train longer, start "
                "another run from its weights: --from %s --run DIR",
                run.total_updates,
                options.run_dir / BEST,
            )
    elif run.ranks.is_first:
        save_options(options)
        write_whole(options.run_dir / CONFIG, dump_config(run.parts.config).encode())
    if run.ranks.is_first and not (options.resume and (options.run_dir / UTTERANCES).exists()):
        save_utterances(options.run_dir, run.parts.utterances_by_use)
    _announce(run)
    left_out = run.parts.train.left_out
    if left_out and not options.resume:
        run.write("left_out", 0, {"count": len(left_out), "utterances": left_out})
    settings = step_settings(run, run.parts.config.train.ctc_weight)
    if run.progress.update < run.total_updates:
        run.l2_sp = start_l2_sp(run, is_resumed=options.resume)
        settle_micro_batch(run, settings)
    settle_buckets(run.losses, settings)
    if options.resume:
        return
    if run.parts.source_dev is not None:
        begin_adaptation(run)
    elif find_stage(options.stage).checks_handoff:
        hand_over(run)
    elif run.parts.origin is not None:
        record_start(run)
    else:
        save_run(run, checkpoint_name(0))
    run.writer.wait()  # finds a disk that is too small before any work is done


def _build_run(
    options: TrainOptions,
    parts: Parts,
    device: torch.device,
    precision: torch.dtype,
    ranks: Ranks,
    heartbeat: Heartbeat,
    signals: Signals,
) -> Run:
    config = parts.config
    per_epoch = num_updates(parts.train.num_target, config.data.utterances_per_update)
    total_updates = count_updates(per_epoch, config)
    progress = Progress(
        train_digest=parts.train.digest(),
        dev_digest=parts.dev.digest() + ("" if parts.source_dev is None else parts.source_dev.digest()),
        total_updates=total_updates,
        longest_train_samples=_find_longest(parts),
        cache_weights=None if parts.fingerprint is None else parts.fingerprint.weights_sha256,
    )
    if options.resume:
        progress = find_progress(options, parts, progress, ranks)
    metrics = backup = None
    if ranks.is_first:
        backup = start_backup(options.backup, options.run_dir)
        metrics = MetricsLog(
            options.run_dir,
            keep_bytes=progress.metrics_bytes,
            purge_update=progress.update + 1 if options.resume else None,
        )
    scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
    return Run(
        parts=parts,
        run_dir=options.run_dir,
        device=device,
        precision=precision,
        ranks=ranks,
        total_updates=total_updates,
        losses=wrap_losses(parts.recogniser, ranks),
        optimizer=build_optimizer(parts.recogniser, config.optimizer),
        scaler=scaler,
        progress=progress,
        metrics=metrics,
        heartbeat=heartbeat,
        signals=signals,
        writer=CheckpointWriter(device),
        meter=Meter(
            progress=progress,
            split=parts.train,
            metrics=metrics,
            heartbeat=heartbeat,
            device=device,
            run_dir=options.run_dir,
            total_updates=total_updates,
            is_scaled=scaler.is_enabled(),
        ),
        ema=None if config.train.ema_decay is None else Ema(parts.recogniser, config.train.ema_decay),
        backup=backup,
    )


def _find_longest(parts: Parts) -> int:
    """Return the samples of the longest row trained on, in this stage and those before it."""
    before = 0 if parts.origin is None else parts.origin.state.get("longest_train_samples", 0)
    data, lengths = parts.config.data, parts.train.lengths
    if not data.concatenate:
        return max(before, *lengths)
    return max(before, longest_row(lengths, seconds_to_samples(data.concatenate_seconds)))


def _announce(run: Run) -> None:
    parts, config, rate = run.parts, run.parts.config, run.parts.tokenizer.rate
    log.info(
        "stage %d on %s, %s: %.2f h of %s (%s), dev %s (%s); %s parameters learn; %d updates",
        config.train.stage,
        run.device,
        str(run.precision).removeprefix("torch."),
        parts.train.hours,
        parts.train.name,
        "cached" if parts.train.is_cached else "live",
        parts.dev.name,
        "cached" if parts.dev.is_cached else "live",
        f"{count_trainable(parts.recogniser):,}",
        run.total_updates,
    )
    warn_if_all_frozen(config)
    if both := config.data.train_weights.keys() & set(config.data.dev_split):
        log.warning(
            "%s is the train split and the dev split: its %s will say nothing", join_names(both), rate
        )
    for dev in (parts.dev, parts.source_dev):
        if dev is None or both or not (shared := find_shared_recordings(parts.train, dev)):
            continue
        log.warning(
            "%s of %s are in %s too, which makes its %s too good: %s",
            name_count(len(shared), "recording"),
            dev.name,
            parts.train.name,
            rate,
            name_first([f"{name} is {trained_on}" for name, trained_on in shared.items()]),
        )


def _report_end(run: Run) -> None:
    report_failures(run)
    for split in run.parts.splits.values():
        failures: dict[str, str] = getattr(split.source, "failures", {})
        for name, reason in failures.items():
            log.warning("%s: left out %s: %s", split.name, name, reason)
    if run.progress.skipped_updates:
        skipped = name_count(run.progress.skipped_updates, "update")
        log.warning("skipped %s with a non-finite gradient", skipped)
    if run.progress.unread_updates:
        skipped = name_count(run.progress.unread_updates, "update")
        log.warning("skipped %s without a readable recording", skipped)
    if run.progress.best is None:
        log.warning("done, but no dev loss was finite: there is no best checkpoint in %s", run.run_dir)
        return
    log.info("done: best checkpoint in %s", run.run_dir / BEST)
    if run.progress.best_checkpoint != checkpoint_name(0, "validated"):
        return
    if run.parts.source_dev is not None:
        log.warning(
            "no weights were better on %s without forgetting %s: the old weights stay the best checkpoint",
            run.parts.dev.name,
            run.parts.source_dev.name,
        )
    else:
        log.info("no epoch improved on the weights that this stage began with: they are the best checkpoint")

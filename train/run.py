"""One stage of training, as a list of parts being built, then a loop."""

import logging

import torch

from train.backup import Backup
from train.build import Parts, build_parts, count_trainable
from train.handoff import check_handoff
from train.loop import record, train_epochs, validate_run
from train.metrics import MetricsLog
from train.options import TrainOptions, resolve_config, resume_options, save_options
from train.progress import Progress, Run, restore, restore_links, save
from train.schedule import build_optimizer, count_updates
from vox.checkpoint import list_checkpoints, load_trainer_state
from vox.config import dump_config, load_config
from vox.data.plan import num_updates
from vox.device import pick_device, pick_precision
from vox.errors import CheckpointError

log = logging.getLogger(__name__)

# How long to wait for the copies under way: after SIGTERM a machine soon disappears.
BACKUP_PATIENCE_SECONDS = 1800.0
BACKUP_PATIENCE_STOPPED_SECONDS = 60.0


def run_training(options: TrainOptions) -> None:
    """Train one stage from start, or from where it stopped, to its end.

    Raises VoxError for what a user can mend, and Interrupted after SIGTERM or Ctrl-C.
    """
    if options.resume:
        options = resume_options(options)
        config = load_config(options.run_dir / "config.yaml")
    else:
        _refuse_existing(options)
        config = resolve_config(options)
    device = pick_device(options.device)
    precision = pick_precision(config.train.precision, device)
    parts = build_parts(options, config, device)
    run = _build_run(options, parts, device, precision)
    patience_seconds = BACKUP_PATIENCE_STOPPED_SECONDS
    try:
        _start(run, options)
        train_epochs(run)
        patience_seconds = BACKUP_PATIENCE_SECONDS
    finally:
        run.metrics.close()
        if run.backup is not None:
            run.backup.close(patience_seconds)
    _report_end(run)


def _start(run: Run, options: TrainOptions) -> None:
    """Bring a run to where its next update may follow, saved so that it can be resumed from there."""
    if options.resume:
        assert run.parts.origin is not None
        restore(run, load_trainer_state(run.parts.origin[0]))
        log.info("resuming after update %d of %d", run.progress.update, run.total_updates)
    else:
        save_options(options)
        (options.run_dir / "config.yaml").write_text(dump_config(run.parts.config), encoding="utf-8")
    _announce(run)
    if options.resume:
        return
    if options.stage == 2:
        _hand_over(run)
    else:
        save(run, "update-00000000")  # also finds a disk that is too small before any work is done


def _build_run(options: TrainOptions, parts: Parts, device: torch.device, precision: torch.dtype) -> Run:
    config = parts.config
    per_epoch = num_updates(len(parts.train.utterances), config.data.utterances_per_update)
    total_updates = count_updates(per_epoch, config)
    optimizer = build_optimizer(parts.recogniser, config.optimizer)
    progress = Progress(train_digest=parts.train.digest(), total_updates=total_updates)
    if options.resume:
        progress = _find_progress(options, parts, progress)
    metrics = MetricsLog(
        options.run_dir,
        keep_bytes=progress.metrics_bytes,
        purge_update=progress.update + 1 if options.resume else None,
    )
    return Run(
        parts=parts,
        run_dir=options.run_dir,
        device=device,
        precision=precision,
        total_updates=total_updates,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=precision is torch.float16),
        progress=progress,
        metrics=metrics,
        backup=Backup(options.backup, options.run_dir) if options.backup else None,
    )


def _find_progress(options: TrainOptions, parts: Parts, fresh: Progress) -> Progress:
    """Return where the run stood, after checking that it is still the same run, and put its links back."""
    assert parts.origin is not None
    last, state = parts.origin
    progress = Progress(**state)
    if (progress.train_digest, progress.total_updates) != (fresh.train_digest, fresh.total_updates):
        raise CheckpointError(
            f"{parts.train.name} or the config has changed since the run began ({progress.total_updates} "
            f"updates then, {fresh.total_updates} now)",
            where=options.run_dir,
            remedy="restore utterances, lengths and transcripts, or start another run with --run",
        )
    restore_links(options.run_dir, last, progress)
    return progress


def _hand_over(run: Run) -> None:
    """Validate the loaded weights from live audio and compare with what stage 1 recorded for them (T8)."""
    assert run.parts.origin is not None
    origin, state = run.parts.origin
    dev = state.get("dev")
    if not dev or dev.get("update") != state.get("update"):  # saved inside an epoch: newer than its result
        raise CheckpointError(
            "the checkpoint has no dev result of its weights to compare with",
            where=origin,
            remedy="start from a `best` one",
        )
    result = validate_run(run)
    difference = check_handoff(dev, result, run.parts.config.train.ctc_weight, origin)
    run.progress.handoff = {"relative_difference": difference}
    run.metrics.write("handoff", run.progress.update, run.progress.handoff)
    log.info("handoff: the dev loss from live audio is within %.3f %% of stage 1's", 100 * difference)
    record(run, result)


def _refuse_existing(options: TrainOptions) -> None:
    if (options.run_dir / "last").exists() or list_checkpoints(options.run_dir):
        raise CheckpointError(
            "this folder holds a run already",
            where=options.run_dir,
            remedy="continue it with --resume, or name another with --run",
        )


def _announce(run: Run) -> None:
    parts, config = run.parts, run.parts.config
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


def _report_end(run: Run) -> None:
    for split in (run.parts.train, run.parts.dev):
        failures: dict[str, str] = getattr(split.source, "failures", {})
        for name, reason in failures.items():
            log.warning("%s: left out %s: %s", split.name, name, reason)
    if run.progress.skipped_updates:
        log.warning("%d updates were skipped: their gradients were not finite", run.progress.skipped_updates)
    if run.progress.unread_updates:
        log.warning(
            "%d updates were skipped: none of their recordings could be read", run.progress.unread_updates
        )
    if run.progress.best is None:
        log.warning("done, but no dev loss was finite: there is no best checkpoint in %s", run.run_dir)
    else:
        log.info("done: best checkpoint in %s", run.run_dir / "best")

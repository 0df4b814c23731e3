"""The handoff check (T8): a stage must start with the dev loss that the previous stage ended with."""

import logging
from collections.abc import Mapping
from typing import Any

from train.judge.best import record
from train.judge.validate import DevResult, validate_unless_stopped
from train.state import Run
from vox.errors import CheckpointError, HandoffError

log = logging.getLogger(__name__)

TOLERANCE = 0.01  # relative difference of the dev loss


def hand_over(run: Run) -> None:
    """Validate the loaded weights and compare with the dev result that the previous stage recorded (T8)."""
    assert run.parts.origin is not None
    folder, state = run.parts.origin.folder, run.parts.origin.state
    dev = state.get("dev")
    if not dev or dev.get("update") != state.get("update"):  # saved inside an epoch: weights are newer
        raise CheckpointError(
            "the checkpoint has no dev result for its weights",
            where=folder,
            remedy="start from a `best` checkpoint",
        )
    result = validate_unless_stopped(run)
    difference = check_handoff(
        dev,
        result,
        run.parts.config.train.ctc_weight,
        folder,
        stages=(run.parts.origin.config.train.stage, run.parts.config.train.stage),
    )
    run.progress.handoff = {"relative_difference": difference}
    run.write("handoff", run.progress.update, run.progress.handoff)
    log.info("handoff: the dev loss is within %.3f %% of the recorded one", 100 * difference)
    record(run, {"raw": result})


def record_start(run: Run) -> None:
    """Validate the weights that a stage begins with, for later ones to improve on."""
    record(run, {"raw": validate_unless_stopped(run)})


def check_handoff(
    recorded: Mapping[str, Any],
    measured: DevResult,
    ctc_weight: float,
    where: object,
    *,
    stages: tuple[int, int] = (1, 2),
) -> float:
    """Compare the dev loss of the loaded weights with the recorded one.

    recorded: `dev` of the checkpoint's state. measured: this stage's result before any update. stages:
    numbers of the recording stage and of this one. Returns the relative difference. Raises HandoffError with
    the likely cause if it exceeds TOLERANCE or if the two are not of the same split.
    """
    earlier, stage = stages
    if recorded["split"] != measured.split:
        raise HandoffError(
            f"stage {earlier} recorded its dev loss on {recorded['split']}, not on {measured.split}",
            where=where,
            remedy="pass --dev-split " + recorded["split"].replace("+", " --dev-split "),
        )
    if recorded["split_digest"] != measured.split_digest:
        raise HandoffError(
            f"{measured.split} has changed since stage {earlier}: other utterances, lengths or texts",
            where=where,
            remedy=f"restore it, or run stage {earlier} again",
        )
    before = ctc_weight * recorded["ctc"] + (1 - ctc_weight) * recorded["attention"]
    after = measured.loss(ctc_weight)
    difference = abs(after - before) / max(abs(before), 1e-12)
    if not difference <= TOLERANCE:  # not: so that NaN is caught too
        raise HandoffError(
            f"stage {stage} would not start where stage {earlier} ended: dev loss {before:.4f} "
            f"recorded, {after:.4f} measured (CTC {recorded['ctc']:.4f} and {measured.ctc:.4f}, "
            f"attention {recorded['attention']:.4f} and {measured.attention:.4f})",
            where=where,
            remedy=f"likely cause: {_likely_cause(recorded, measured)}",
        )
    return difference


def _likely_cause(recorded: Mapping[str, Any], measured: DevResult) -> str:
    limit = 1 + TOLERANCE
    if measured.ctc > limit * recorded["ctc"] and measured.attention > limit * recorded["attention"]:
        return (
            "the live features are not the cached ones (frozen layers in training mode, another WavLM or "
            "layer mix, or audio that changed since it was cached: run vox cache verify)"
        )
    return "the weights are not those that were validated (another or a partly loaded checkpoint)"

"""The handoff check (T8): stage 2 starts where stage 1 ended, or does not start."""

from collections.abc import Mapping
from typing import Any

from train.validate import DevResult
from vox.errors import HandoffError

TOLERANCE = 0.01  # relative difference of the dev loss


def check_handoff(
    recorded: Mapping[str, Any], measured: DevResult, ctc_weight: float, where: object
) -> float:
    """Compare the dev loss of the loaded weights with the one stage 1 recorded for them.

    recorded: the `dev` part of the checkpoint's state. measured: from live audio, before any update.
    Returns the relative difference. Raises HandoffError, naming the likely cause, when it exceeds
    TOLERANCE or when the two are not of the same split.
    """
    if recorded["split"] != measured.split:
        raise HandoffError(
            f"stage 1 recorded its dev loss on {recorded['split']}, not on {measured.split}",
            where=where,
            remedy=f"pass --dev-split {recorded['split']}",
        )
    if recorded["split_digest"] != measured.split_digest:
        raise HandoffError(
            f"{measured.split} has changed since stage 1: other utterances, lengths or transcripts",
            where=where,
            remedy="restore it, or run stage 1 again",
        )
    before = ctc_weight * recorded["ctc"] + (1 - ctc_weight) * recorded["attention"]
    after = measured.loss(ctc_weight)
    difference = abs(after - before) / max(abs(before), 1e-12)
    if not difference <= TOLERANCE:  # not: so that NaN is caught too
        raise HandoffError(
            f"stage 2 would not start where stage 1 ended: dev loss {before:.4f} recorded, {after:.4f} from "
            f"live audio (CTC {recorded['ctc']:.4f} and {measured.ctc:.4f}, "
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

"""Calibration on the evaluation page: of the texts with 90 % confidence, are nine in ten correct?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

NUM_BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """Utterances of similar confidence."""

    count: int
    confidence: float  # mean
    share_right: float  # fraction of utterances without an error


def bin_confidences(confidences: Sequence[float], are_right: Sequence[bool]) -> list[CalibrationBin]:
    """Group utterances into confidence bins of equal width, without empty bins."""
    numbers = np.minimum((np.asarray(confidences) * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for number in np.unique(numbers):
        is_here = numbers == number
        confidence, share = np.mean(np.asarray(confidences)[is_here]), np.mean(np.asarray(are_right)[is_here])
        bins.append(CalibrationBin(int(is_here.sum()), float(confidence), float(share)))
    return bins


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Return the expected calibration error, the mean of |confidence - share right| (Guo et al. 2017)."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.confidence - one.share_right) for one in bins) / total


def render_calibration(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Render the section; empty if no decoder has a `confidence` (0 to 1) in all of its rows."""
    parts = [
        _render_decoder(name, some)
        for name, some in rows.items()
        if some and all(row.get("confidence") is not None for row in some)
    ]
    if not parts:
        return ""
    note = (
        "Utterances grouped by confidence. The share without an error should equal the confidence; the "
        "calibration error is the mean difference between the two."
    )
    return (
        f'<section id="calibration"><h2>Confidence</h2><p class="note">{note}</p>{"".join(parts)}</section>'
    )


def _render_decoder(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    bins = bin_confidences([row["confidence"] for row in rows], [row["errors"] == 0 for row in rows])
    lines = "".join(
        f"<tr><td>{one.confidence:.2f}</td><td>{one.share_right:.2f}</td><td>{one.count:,}</td>"
        f'<td><span class="whisker"><u style="left:{100 * one.confidence:.1f}%"></u>'
        f'<b style="left:{100 * one.share_right:.1f}%"></b></span></td></tr>'
        for one in bins
    )
    return (
        f"<h3>{escape(name)}: calibration error {calibration_error(bins):.3f}</h3>"
        '<div class="scroll"><table><thead><tr><th>mean confidence</th><th>share without an error</th>'
        "<th>utterances</th><th>line: confidence, dot: share</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )

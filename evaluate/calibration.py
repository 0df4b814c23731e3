"""Calibration on an evaluation's page: is a text that is called 90 % certain right nine times out of ten?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

NUM_BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """Utterances of about the same confidence."""

    count: int
    confidence: float  # mean
    share_right: float  # of the utterances without an error


def bin_confidences(confidences: Sequence[float], are_right: Sequence[bool]) -> list[CalibrationBin]:
    """Put utterances into bins of equal width in confidence, and leave out empty bins."""
    numbers = np.minimum((np.asarray(confidences) * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for number in np.unique(numbers):
        is_here = numbers == number
        confidence, share = np.mean(np.asarray(confidences)[is_here]), np.mean(np.asarray(are_right)[is_here])
        bins.append(CalibrationBin(int(is_here.sum()), float(confidence), float(share)))
    return bins


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Return the mean distance of confidence and share right, over utterances (Guo et al. 2017, ECE)."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.confidence - one.share_right) for one in bins) / total


def render_calibration(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Write the section; nothing where no decoder has a `confidence` (0 to 1) in each of its rows."""
    parts = [
        _render_decoder(name, some)
        for name, some in rows.items()
        if some and all(row.get("confidence") is not None for row in some)
    ]
    if not parts:
        return ""
    note = (
        "Utterances by the confidence that the decoder gave them: the share without an error should be that "
        "confidence. The calibration error is the mean distance of the two."
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

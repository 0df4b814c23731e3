"""The page of `vox corpus check --html`: one file with tables and histograms, for a browser without network.

All text of a corpus passes through `escape`.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from vox.corpora.check import REMEDIES, Checked, Finding, describe
from vox.corpora.measure import Measured

NUM_BINS = 30
MAX_ROWS = 200  # findings shown of each kind; --out writes all

# Each histogram but that of speaking rates: a title, and the value of an utterance.
HISTOGRAMS: tuple[tuple[str, Callable[[Measured], float]], ...] = (
    ("seconds", lambda each: each.seconds),
    ("level of the loudest channel, dB of full scale", lambda each: _decibels(each.rms)),
    ("peak, dB of full scale", lambda each: _decibels(each.peak)),
)
LOWEST_DECIBELS = -100.0

_META = (
    '<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
    '<meta http-equiv="Content-Security-Policy"'
    " content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
)
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --bar: #2557a7; }
@media (prefers-color-scheme: dark) { :root { --bar: #8ab4f8; } }
body { margin: 0 auto; max-width: 64rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); text-align: left;
  overflow-wrap: anywhere; }
.histograms { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .9rem; }
svg { width: 100%; height: 8rem; } rect { fill: var(--bar); }
.ends { display: flex; justify-content: space-between; }
"""


def render_check(splits: Sequence[Checked], findings: Sequence[tuple[str, Sequence[Finding]]]) -> str:
    """Return the page's HTML.

    findings: a title (a split, or several) and what was found there.
    """
    title = escape("Corpus check: " + ", ".join(each.split for each in splits))
    body = "".join(_render_split(each) for each in splits)
    body += "".join(_render_findings(name, some) for name, some in findings if some)
    if not any(some for _, some in findings):
        body += "<p>Nothing to look at.</p>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{_META}<title>{title}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1>{body}</body></html>\n"
    )


def count_bins(values: Sequence[float], num_bins: int = NUM_BINS) -> tuple[list[int], float, float]:
    """Return the counts of equal bins from the smallest to the largest value, and these two."""
    rounded = np.round(values, 6)  # values that differ by rounding alone fill one bin
    counts, edges = np.histogram(rounded, num_bins)
    return counts.tolist(), float(edges[0]), float(edges[-1])


def _render_split(checked: Checked) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in describe(checked)
    )
    values = {f"{checked.unit} a second": checked.list_speeds()}
    values |= {title: [value(each) for each in checked.measured] for title, value in HISTOGRAMS}
    histograms = "".join(_render_histogram(title, some) for title, some in values.items() if some)
    return f'<h2>{escape(checked.split)}</h2><table>{rows}</table><div class="histograms">{histograms}</div>'


def _render_histogram(title: str, values: Sequence[float]) -> str:
    counts, low, high = count_bins(values)
    most = max(counts)
    step = (high - low) / len(counts)
    bars = "".join(
        f'<rect x="{number}.05" y="{100 - 100 * count / most:.2f}" width=".9" '
        f'height="{100 * count / most:.2f}">'
        f"<title>{low + number * step:.2f} to {low + (number + 1) * step:.2f}: {count}</title></rect>"
        for number, count in enumerate(counts)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {len(counts)} 100" preserveAspectRatio="none">{bars}</svg>'
        f'<div class="ends"><span>{low:.2f}</span><span>{high:.2f}</span></div></figure>'
    )


def _render_findings(name: str, findings: Sequence[Finding]) -> str:
    sections = [f"<h2>To look at: {escape(name)}</h2>"]
    for kind, remedy in REMEDIES.items():
        some = [finding for finding in findings if finding.kind == kind]
        if not some:
            continue
        rows = "".join(
            f"<tr><td>{escape(finding.name)}</td><td>{escape(finding.detail)}</td></tr>"
            for finding in some[:MAX_ROWS]
        )
        more = f"<p>… and {len(some) - MAX_ROWS} more</p>" if len(some) > MAX_ROWS else ""
        sections.append(
            f"<h3>{escape(kind)} ({len(some)})</h3><p>{escape(remedy)}</p><table>{rows}</table>{more}"
        )
    return "".join(sections)


def _decibels(value: float) -> float:
    return max(LOWEST_DECIBELS, 20 * math.log10(value)) if value > 0 else LOWEST_DECIBELS

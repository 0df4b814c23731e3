"""The evaluation page: one HTML file that opens from disk and needs no network.

`page.html` is the template: layout, colours and the script that searches and sorts. All text from a corpus
or a model passes through `escape`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from evaluate.calibration import render_calibration
from evaluate.intervals import FEW_SPEAKERS, Comparison, Intervals
from evaluate.results import DecoderResult, Evaluation
from evaluate.utterance_cards import render_cards
from evaluate.word_table import render_words
from vox.bootstrap import LEVEL, NUM_DRAWS, Interval
from vox.corpus import Utterance
from vox.errors import name_count
from vox.score import UtteranceScore, draw_pair
from vox.units import samples_to_seconds

MAX_GROUPS = 5  # by length, by speaking rate
MIN_GROUP = 10  # utterances
MOST_CONFUSED = 15

Indices = list[int]  # of utterances, in the order of Evaluation.ids


def render_page(
    evaluation: Evaluation,
    intervals: Intervals,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    utterances: Mapping[str, Utterance],
    checkpoint: Mapping[str, Any],
    out_dir: Path,
) -> str:
    """Render the whole page.

    rows: by decoder, the rows of the hypotheses file; if all of them have a `confidence`, the page shows its
    calibration. utterances: by id, probed. out_dir: the page's folder; links to recordings that are too large
    to embed are relative to it.
    """
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    recordings = [utterances[utterance_id] for utterance_id in evaluation.ids]
    return template.substitute(
        title=escape(f"{evaluation.split}: Vox evaluation"),
        split=escape(evaluation.split),
        unit=evaluation.unit,
        facts=_render_facts(evaluation, recordings, checkpoint),
        decoders="".join(
            _render_decoder(name, result, intervals) for name, result in evaluation.decoders.items()
        ),
        how=_explain_intervals(intervals, evaluation.rate),
        comparisons=_render_comparisons(intervals),
        confusions="".join(
            _render_confusions(name, result.score.utterances) for name, result in evaluation.decoders.items()
        ),
        listed_words=render_words(evaluation),
        groups=_render_groups(evaluation, recordings),
        calibration=render_calibration(rows),
        cards=render_cards(evaluation, recordings, out_dir),
        sort_options="".join(
            f'<option value="{number}">errors of {escape(name)}</option>'
            for number, name in enumerate(evaluation.decoders)
        ),
        excluded=_render_excluded(evaluation.excluded),
    )


def _format_percent(share: float, sign: str = "") -> str:
    """Format 0.0123 as `1.23`; sign: `+` to sign positive numbers too."""
    return f"{100 * share:{sign}.2f}".replace("-", "\N{MINUS SIGN}")


def _render_facts(
    evaluation: Evaluation, recordings: Sequence[Utterance], checkpoint: Mapping[str, Any]
) -> str:
    speakers = {utterance.speaker for utterance in recordings if utterance.speaker}
    facts = [
        ("checkpoint", str(checkpoint.get("path", "unknown"))),
        ("utterances", f"{len(recordings):,}"),
        ("audio", f"{evaluation.audio_seconds / 60:.1f} min"),
        (
            f"{evaluation.unit}s",
            f"{next(iter(evaluation.decoders.values())).score.num_words:,}",
        ),
        ("speakers", f"{len(speakers):,}" if speakers else "unknown"),
        ("computed in", f"{evaluation.precision} on {checkpoint.get('device', 'an unknown device')}"),
    ]
    if evaluation.standard.name:
        facts.append(("texts scored after", f"--normalise {evaluation.standard.name}"))
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)


def _render_decoder(name: str, result: DecoderResult, intervals: Intervals) -> str:
    counts, rate = result.score, intervals.wer[name]
    scale = max(one.interval[1] for one in intervals.wer.values()) or 1.0
    num_wrong = sum(one.num_errors > 0 for one in counts.utterances)
    kinds = [
        ("sub", "substitutions", counts.substitutions),
        ("del", "deletions", counts.deletions),
        ("ins", "insertions", counts.insertions),
    ]
    num_errors = sum(count for _, _, count in kinds)
    bar = "".join(
        f'<i class="{key}" style="width:{100 * count / max(num_errors, 1):.1f}%"></i>'
        for key, _, count in kinds
    )
    legend = "".join(f'<li><i class="{key}"></i>{count:,} {kind}</li>' for key, kind, count in kinds)
    cut = (
        f"<p>{name_count(len(result.truncated_ids), 'text')} cut off at the label limit</p>"
        if result.truncated_ids
        else ""
    )
    cer = f"<p>CER {_format_percent(counts.cer)} % ({_format_interval(intervals.cer[name].interval)})</p>"
    cer = cer if counts.rate == "WER" else ""
    return (
        f'<article class="decoder" data-decoder="{escape(name)}"><h3>{escape(name)}</h3>'
        f'<p class="big">{_format_percent(rate.value)}<small> % {counts.rate}</small></p>'
        f"{_render_whisker(rate.value, rate.interval, 0.0, scale)}"
        f"<p>{_format_interval(rate.interval)}</p>"
        f'<div class="stack">{bar}</div><ul class="kinds">{legend}</ul>'
        f"{cer}"
        f"<p>with an error: {num_wrong:,} of {name_count(counts.num_utterances, 'utterance')}</p>"
        f"<p>real-time factor {result.real_time_factor:.3f}</p>{cut}</article>"
    )


def _format_interval(interval: Interval, unit: str = " %") -> str:
    low, high = map(_format_percent, interval)
    return f"{low} to {high}{unit}"


def _render_whisker(value: float, interval: Interval, start: float, end: float) -> str:
    """Draw a value and its interval on an axis from start to end; a line marks 0 inside it."""
    low, high, point, zero = (100 * (x - start) / (end - start) for x in (*interval, value, 0.0))
    axis = f'<u style="left:{zero:.2f}%"></u>' if start < 0 else ""
    return (
        f'<span class="whisker">{axis}<i style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        f'<b style="left:{point:.2f}%"></b></span>'
    )


def _explain_intervals(intervals: Intervals, rate: str) -> str:
    kinds = "substitutions, deletions and insertions of the whole split over its"
    rates = f"WER: {kinds} words; CER the same with characters."
    if rate == "CER":
        rates = f"CER: {kinds} characters."
    text = (
        f"{rates} Intervals: {100 * LEVEL:.0f} %, by bootstrap, {NUM_DRAWS:,} draws of "
        f"{intervals.num_units:,} {intervals.over}."
    )
    if intervals.over == "speakers" and intervals.num_units < FEW_SPEAKERS:
        text += f" With {intervals.num_units} speakers they are rough, and probably too narrow."
    if any(rate.value == 0 for rate in intervals.wer.values()):
        text += " A decoder without errors has an interval of no width: evaluate on more speech to rate it."
    return text


def _render_comparisons(intervals: Intervals) -> str:
    parts = []
    for title, some in (
        ("Decoder against decoder", intervals.between_decoders),
        (f"Against the report in {intervals.earlier_folder}", intervals.against),
    ):
        if some:
            widest = max(abs(bound) for one in some for bound in (*one.wer.interval, one.wer.value)) or 1.0
            lines = "".join(_render_comparison(one, widest) for one in some)
            parts.append(
                f'<h3>{escape(title)}</h3><div class="scroll"><table><thead><tr><th>first</th><th>second</th>'
                f"<th>{some[0].rate} %</th><th>difference, points</th><th></th><th>verdict</th></tr></thead>"
                f"<tbody>{lines}</tbody></table></div>"
            )
    if not parts:
        return ""
    note = "Paired: both are measured on the same draws, so what is hard for both cancels out."
    return (
        f'<section id="comparisons"><h2>Comparisons</h2><p class="note">{note}</p>{"".join(parts)}</section>'
    )


def _render_comparison(one: Comparison, widest: float) -> str:
    count = name_count(one.num_utterances, "utterance")
    chance = f"better in {100 * one.wer.probability:.0f} % of the draws, {count}"
    return (
        f"<tr><td>{escape(one.first)}</td><td>{escape(one.second)}</td>"
        f"<td>{_format_percent(one.first_rate)} → {_format_percent(one.second_rate)}</td>"
        f"<td>{_format_percent(one.wer.value, '+')}"
        f"<small>{_format_interval(one.wer.interval, '')}</small></td>"
        f"<td>{_render_whisker(one.wer.value, one.wer.interval, -widest, widest)}</td>"
        f"<td>{one.verdict}<small>{chance}</small></td></tr>"
    )


def _render_confusions(name: str, scores: Sequence[UtteranceScore]) -> str:
    """List the most frequent substitutions, deletions and insertions of a decoder."""
    counted = Counter(pair for one in scores for pair in one.pairs if pair[0] != pair[1])
    columns = []
    for title, kind in (
        ("Substituted", [pair for pair in counted if None not in pair]),
        ("Deleted", [pair for pair in counted if pair[1] is None]),
        ("Inserted", [pair for pair in counted if pair[0] is None]),
    ):
        most = sorted(kind, key=lambda pair: (-counted[pair], draw_pair(pair)))[:MOST_CONFUSED]
        items = "".join(
            f'<li><button type="button" data-find="{escape(draw_pair(pair))}">'
            f"{escape(' → '.join(word for word in pair if word is not None))}</button> {counted[pair]:,}</li>"
            for pair in most
        )
        columns.append(f"<div><h4>{title}</h4>{f'<ol>{items}</ol>' if items else '<p>none</p>'}</div>")
    lists = f'<div class="columns">{"".join(columns)}</div>'
    return f"<details open><summary>{escape(name)}</summary>{lists}</details>"


def _render_groups(evaluation: Evaluation, recordings: Sequence[Utterance]) -> str:
    seconds = [samples_to_seconds(utterance.num_samples or 0) for utterance in recordings]
    scores = next(iter(evaluation.decoders.values())).score.utterances
    rates = [one.num_words / length for one, length in zip(scores, seconds, strict=True)]
    tables = []
    if any(utterance.speaker for utterance in recordings):
        tables.append(_render_group_table("By speaker", _group_by_speaker(recordings), evaluation))
    tables.append(_render_group_table("By length", split_evenly(seconds, "{:.1f} to {:.1f} s"), evaluation))
    by_rate = split_evenly(rates, f"{{:.1f}} to {{:.1f}} {evaluation.unit}s/s")
    tables.append(_render_group_table("By speaking rate", by_rate, evaluation))
    return "".join(tables)


def _group_by_speaker(recordings: Sequence[Utterance]) -> dict[str, Indices]:
    groups: dict[str, Indices] = {}
    for index, utterance in enumerate(recordings):
        groups.setdefault(utterance.speaker or "unknown", []).append(index)
    return groups


def split_evenly(values: Sequence[float], label: str) -> dict[str, Indices]:
    """Sort utterances into groups of about the same size, from low values to high.

    label: format string for a group's lowest and highest value. Equal values stay together.
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    size = math.ceil(len(order) / max(1, min(MAX_GROUPS, len(order) // MIN_GROUP)))
    groups: list[Indices] = []
    for index in order:
        if not groups or (len(groups[-1]) >= size and values[index] > values[groups[-1][-1]]):
            groups.append([])
        groups[-1].append(index)
    labelled: dict[str, Indices] = {}
    for group in groups:  # merge groups with the same label
        labelled.setdefault(label.format(values[group[0]], values[group[-1]]), []).extend(group)
    return labelled


def _render_group_table(title: str, groups: Mapping[str, Indices], evaluation: Evaluation) -> str:
    scores = {name: result.score.utterances for name, result in evaluation.decoders.items()}
    rate = {
        (group, name): _rate_of([some[index] for index in indices])
        for group, indices in groups.items()
        for name, some in scores.items()
    }
    highest = max(wer for wer, _, _ in rate.values()) or 1.0
    heads = "".join(f"<th>{escape(name)}, {evaluation.rate} %</th>" for name in scores)
    lines = []
    for group, indices in groups.items():
        cells = "".join(
            f"<td>{_format_percent(wer)}{_render_bar(wer / highest)}"
            f"<small>{errors:,} of {words:,}</small></td>"
            for wer, errors, words in (rate[group, name] for name in scores)
        )
        lines.append(f"<tr><td>{escape(group)}</td><td>{len(indices):,}</td>{cells}</tr>")
    return (
        f'<h3>{title}</h3><div class="scroll tall"><table><thead><tr><th></th><th>utterances</th>{heads}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _render_bar(share: float) -> str:
    return f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span>'


def _rate_of(scores: Sequence[UtteranceScore]) -> tuple[float, int, int]:
    """Return the WER of some utterances, the number of errors and the number of words."""
    errors, words = sum(one.num_errors for one in scores), sum(one.num_words for one in scores)
    return errors / max(words, 1), errors, words


def _render_excluded(excluded: Mapping[str, str]) -> str:
    if not excluded:
        return ""
    items = "".join(
        f"<li><code>{escape(utterance_id)}</code> {escape(reason)}</li>"
        for utterance_id, reason in excluded.items()
    )
    title = f"Excluded from all figures: {name_count(len(excluded), 'unusable utterance')}"
    return f"<section><h2>{title}</h2><ul>{items}</ul></section>"

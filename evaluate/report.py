"""Output files of an evaluation: a table and a page to read, a report and the hypotheses for programs.

report.json               every figure, the checkpoint's identity, versions, what was excluded and why
report.txt                the table
report.html               the page (see evaluate/page.py)
hypotheses-<decoder>.jsonl  an utterance a line: id, reference, hypothesis, errors, words, alignment
"""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vox
from evaluate.intervals import Comparison, EarlierReport, Intervals, describe_intervals, measure_intervals
from evaluate.page import render_page
from evaluate.results import DecoderResult, Evaluation
from evaluate.word_table import describe_words, format_words
from vox.bootstrap import LEVEL
from vox.checkpoint.files import Checkpoint
from vox.corpus import Utterance
from vox.decode import SearchOptions
from vox.decoder_names import GREEDY_DECODERS
from vox.disk import check_writable, remove_leftovers, write_whole
from vox.errors import name_count
from vox.hear import device_of
from vox.runs.layout import CHECKPOINTS, CHECKSUMS, MODEL
from vox.score import Score, UtteranceScore
from vox.score_hotwords import HotwordScore

VERSIONS_OF = ("torch", "transformers", "sentencepiece", "jiwer", "whisper-normalizer")


def default_out_dir(checkpoint: Path, split: str) -> Path:
    """Return RUN/evaluate/CHECKPOINT-SPLIT: in the run's folder, outside its checkpoints."""
    folder = checkpoint if checkpoint.name else checkpoint.absolute()
    run_dir = folder.parent.parent if folder.parent.name == CHECKPOINTS else folder.parent
    return run_dir / "evaluate" / f"{folder.name}-{split}"


def prepare_out_dir(out_dir: Path) -> Path:
    """Create the folder, before the work. Raises VoxError if it cannot be written."""
    check_writable(out_dir, "--out")
    out_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out_dir)
    return out_dir


def format_table(evaluation: Evaluation) -> str:
    """Format one line a decoder, then what was scored and what was excluded."""
    has_words = evaluation.rate == "WER"
    rates = f"{'WER %':>8}{'CER %':>8}" if has_words else f"{'CER %':>8}"
    unit = "words" if has_words else "chars"
    lines = [f"{'decoder':<16}{rates}{'sub':>8}{'del':>8}{'ins':>8}{unit:>9}{'RTF':>8}"]
    for name, result in evaluation.decoders.items():
        counts = result.score
        cer = f"{100 * counts.cer:>8.2f}" if has_words else ""
        lines.append(
            f"{name:<16}{100 * counts.wer:>8.2f}{cer}{counts.substitutions:>8}"
            f"{counts.deletions:>8}{counts.insertions:>8}{counts.num_words:>9}{result.real_time_factor:>8.3f}"
        )
    lines.append(
        f"{evaluation.split}: {name_count(len(evaluation.ids), 'utterance')}, "
        f"{evaluation.audio_seconds / 60:.1f} min"
    )
    if evaluation.vad:
        lines.append(f"heard where {evaluation.vad.partition(',')[0]} finds speech")
    if evaluation.standard.name:
        lines.append(f"scored after --normalise {evaluation.standard.name}, transcripts as written")
    lines += _split_lines(evaluation)
    lines += _hotword_lines(evaluation)
    lines += format_words(evaluation)
    for name, result in evaluation.decoders.items():
        if result.truncated_ids:
            count = name_count(len(result.truncated_ids), "hypothesis", "hypotheses")
            lines.append(f"{name}: {count} cut off at the label limit")
    if evaluation.excluded:
        count = name_count(len(evaluation.excluded), "unusable utterance")
        lines.append(f"excluded from all figures above: {count}")
        lines += [f"  {utterance_id}: {reason}" for utterance_id, reason in evaluation.excluded.items()]
    return "\n".join(lines)


def describe_former_report(out_dir: Path) -> str | None:
    """Return the date and checkpoint of the report in a folder; None if there is none."""
    try:
        report = json.loads((out_dir / "report.json").read_text(encoding="utf-8"))
        return f"{report['date']}, of {report['checkpoint']['resolved']}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown date: it cannot be read"


def format_comparison(comparison: Comparison) -> str:
    """Format in one line two WERs, their difference with its interval, and whether it is clear."""
    low, high = (100 * bound for bound in comparison.wer.interval)
    return (
        f"{comparison.first} -> {comparison.second}: {comparison.rate} {100 * comparison.first_rate:.2f} -> "
        f"{100 * comparison.second_rate:.2f} %, difference {100 * comparison.wer.value:+.2f} points "
        f"({100 * LEVEL:.0f} % interval {low:+.2f} to {high:+.2f}), "
        f"{name_count(comparison.num_utterances, 'utterance')}: {comparison.verdict}"
    )


def _split_lines(evaluation: Evaluation) -> list[str]:
    """Write each split's error rates by decoder, and those of all; none where there is one split."""
    if not evaluation.by_split:
        return []
    total = {name: result.score for name, result in evaluation.decoders.items()}
    rows = {**evaluation.by_split, "total": total}
    width = max(16, *(len(split) + 2 for split in rows))
    unit = "words" if evaluation.rate == "WER" else "chars"
    lines = [f"{evaluation.rate + ' %':<{width}}{unit:>9}" + "".join(f"{name:>16}" for name in total)]
    for split, scores in rows.items():
        rates = "".join(f"{_rate_or_words(each):>16}" for each in scores.values())
        lines.append(f"{split:<{width}}{next(iter(scores.values())).num_words:>9}{rates}")
    return lines


def _rate_or_words(counts: Score) -> str:
    """Format an error rate; of a split in which nothing is spoken, how many words were recognised."""
    return f"{100 * counts.wer:.2f}" if counts.num_words else f"{counts.insertions} heard"


def _hotword_lines(evaluation: Evaluation) -> list[str]:
    """Format one line a decoder with its hotword figures; an empty list without hotwords."""
    columns = f"{'WER %':>8}{'other %':>9}{'recall %':>10}{'precision %':>13}{'false alarms':>14}"
    lines = []
    for name, result in evaluation.decoders.items():
        if (found := result.hotwords) is not None:
            rates = (found.hotword_wer, found.other_wer, found.recall, found.precision)
            cells = ["-" if rate is None else f"{100 * rate:.2f}" for rate in rates]
            shown = "".join(f"{cell:>{width}}" for cell, width in zip(cells, (8, 9, 10, 13), strict=True))
            lines.append(f"{name:<16}{shown}{found.false_alarms:>14}")
    return [f"{'hotwords':<16}{columns}", *lines] if lines else []


def describe_checkpoint(path: Path, loaded: Checkpoint) -> dict[str, Any]:
    """Return the checkpoint's identity. Call it right after loading: training may delete the folder later."""
    checksums = json.loads((loaded.folder / CHECKSUMS).read_text(encoding="utf-8"))
    return {
        "path": str(path),
        "resolved": str(loaded.folder),
        "model_sha256": checksums[MODEL],
        "stage": loaded.config.train.stage,
        "state": loaded.state,
        "device": str(device_of(loaded.recogniser)),
    }


def write_report(
    out_dir: Path,
    evaluation: Evaluation,
    checkpoint: Mapping[str, Any],
    utterances: Sequence[Utterance],
    earlier: EarlierReport | None = None,
) -> Intervals:
    """Write the report's files, each atomically; return the intervals and comparisons. Raises OSError.

    checkpoint: from `describe_checkpoint`. utterances: probed; all of the evaluation, maybe more.
    earlier: the report to compare with.
    """
    by_id = {utterance.id: utterance for utterance in utterances}
    intervals = measure_intervals(evaluation, by_id, earlier)
    rows = {name: _hypothesis_rows(evaluation, result) for name, result in evaluation.decoders.items()}
    for name, some in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        write_whole(out_dir / f"hypotheses-{name}.jsonl", lines.encode())
    write_whole(out_dir / "report.txt", f"{format_table(evaluation)}\n".encode())
    page = render_page(evaluation, intervals, rows, by_id, checkpoint, out_dir)
    write_whole(out_dir / "report.html", page.encode())
    # Written last: if report.json exists, the other files are complete.
    report = json.dumps(_make_report(evaluation, intervals, checkpoint), indent=1, ensure_ascii=False)
    write_whole(out_dir / "report.json", f"{report}\n".encode())
    return intervals


def _make_report(
    evaluation: Evaluation, intervals: Intervals, checkpoint: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "split": evaluation.split,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": dict(checkpoint),
        "num_utterances": len(evaluation.ids),
        "audio_seconds": evaluation.audio_seconds,
        "precision": evaluation.precision,
        "rate": evaluation.rate,  # CER: `wer` and `words` count characters
        "vad": evaluation.vad or None,
        "normalise": evaluation.standard.name or None,  # of the texts, before they were scored
        "decoders": {
            name: _decoder_figures(name, result)
            | _search_figures(name, evaluation.options)
            | {
                "wer_interval": intervals.wer[name].interval,
                "cer_interval": intervals.cer[name].interval,
            }
            for name, result in evaluation.decoders.items()
        },
        **describe_intervals(intervals),
        "splits": {
            split: {
                "num_utterances": next(iter(scores.values())).num_utterances,
                "decoders": {name: _score_figures(counts) for name, counts in scores.items()},
            }
            for split, scores in evaluation.by_split.items()
        },
        **({"words": describe_words(evaluation)} if evaluation.word_pieces else {}),
        "num_excluded": len(evaluation.excluded),
        "excluded": evaluation.excluded,
        "page": "report.html",
        "versions": {"vox": vox.__version__, "python": platform.python_version()} | _find_versions(),
    }


def _decoder_figures(name: str, result: DecoderResult) -> dict[str, Any]:
    return {
        **_score_figures(result.score),
        "real_time_factor": result.real_time_factor,
        "truncated": result.truncated_ids,
        "hypotheses": f"hypotheses-{name}.jsonl",
        **({} if result.hotwords is None else {"hotwords": _hotword_figures(result.hotwords)}),
    }


def _score_figures(counts: Score) -> dict[str, Any]:
    return {
        "wer": counts.wer if counts.num_words else None,
        "cer": counts.cer if counts.num_words else None,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "hits": counts.hits,
        "words": counts.num_words,
    }


def _hotword_figures(found: HotwordScore) -> dict[str, Any]:
    return {
        "errors": found.hotword_errors,
        "words": found.hotword_words,
        "other_errors": found.other_errors,
        "other_words": found.other_words,
        "right": found.num_right,
        "said": found.num_said,
        "found": found.num_found,
    }


def _search_figures(name: str, options: SearchOptions) -> dict[str, Any]:
    if name in GREEDY_DECODERS:
        return {}
    return {
        "beam": options.beam,
        "ctc_weight": options.ctc_weight,
        "length_bonus": options.length_bonus,
        "weights": {scorer.name: weight for scorer, weight in options.scorers},
    }


def _hypothesis_rows(evaluation: Evaluation, result: DecoderResult) -> list[dict[str, Any]]:
    rows = zip(
        evaluation.ids,
        evaluation.references,
        result.hypotheses,
        result.score.utterances,
        result.confidences,
        strict=True,
    )
    return [
        {
            "id": utterance_id,
            "reference": reference,
            "hypothesis": hypothesis,
            "errors": counts.num_errors,
            "words": counts.num_words,
            "alignment": counts.alignment,
            "confidence": confidence,
            **_scored_texts(evaluation, counts),
        }
        for utterance_id, reference, hypothesis, counts, confidence in rows
    ]


def _scored_texts(evaluation: Evaluation, counts: UtteranceScore) -> dict[str, str]:
    """Return the texts that were scored, if they differ from the transcript and the hypothesis."""
    if not evaluation.standard.name:
        return {}
    return {"scored_reference": counts.reference, "scored_hypothesis": counts.hypothesis}


def _find_versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found

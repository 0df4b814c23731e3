"""Evaluation's outputs: a table for people, a report and the hypotheses for programs.

report.json               every figure, the checkpoint's identity, versions, what was excluded and why
report.txt                the table
hypotheses-<decoder>.jsonl  an utterance a line: id, reference, hypothesis, errors, words, alignment
"""

import json
import os
import platform
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vox
from evaluate.run import DecoderResult, Evaluation
from vox.checkpoint import CHECKSUMS, MODEL, Checkpoint
from vox.decode import GREEDY_DECODERS, SearchOptions
from vox.score_hotwords import HotwordScore
from vox.transcribe import device_of

VERSIONS_OF = ("torch", "transformers", "sentencepiece", "jiwer")


def default_out_dir(checkpoint: Path, split: str) -> Path:
    """Return RUN/evaluate/CHECKPOINT-SPLIT: in the run's folder, never among its checkpoints."""
    folder = checkpoint if checkpoint.name else checkpoint.absolute()
    run_dir = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    return run_dir / "evaluate" / f"{folder.name}-{split}"


def prepare_out_dir(out_dir: Path) -> Path:
    """Make the folder and try to write in it, before the work: raises OSError if that cannot be done."""
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out_dir):
        return out_dir


def format_table(evaluation: Evaluation) -> str:
    """Write a line for each decoder, then what was scored and what was not."""
    lines = [f"{'decoder':<16}{'WER %':>8}{'CER %':>8}{'sub':>8}{'del':>8}{'ins':>8}{'words':>9}{'RTF':>8}"]
    for name, result in evaluation.decoders.items():
        counts = result.score
        lines.append(
            f"{name:<16}{100 * counts.wer:>8.2f}{100 * counts.cer:>8.2f}{counts.substitutions:>8}"
            f"{counts.deletions:>8}{counts.insertions:>8}{counts.num_words:>9}{result.real_time_factor:>8.3f}"
        )
    lines.append(
        f"{evaluation.split}: {len(evaluation.ids)} utterances, {evaluation.audio_seconds / 60:.1f} min"
    )
    lines += _hotword_lines(evaluation)
    for name, result in evaluation.decoders.items():
        if result.truncated_ids:
            lines.append(f"{name}: {len(result.truncated_ids)} hypotheses cut off at the most labels")
    if evaluation.excluded:
        lines.append(
            f"excluded, in no figure above: {len(evaluation.excluded)} utterances that cannot be used"
        )
        lines += [f"  {utterance_id}: {reason}" for utterance_id, reason in evaluation.excluded.items()]
    return "\n".join(lines)


def _hotword_lines(evaluation: Evaluation) -> list[str]:
    """Write a line for each decoder of what it made of the hotwords; none where none were asked for."""
    columns = f"{'WER %':>8}{'other %':>9}{'recall %':>10}{'precision %':>13}{'false alarms':>14}"
    lines = []
    for name, result in evaluation.decoders.items():
        if (found := result.hotwords) is not None:
            rates = (found.hotword_wer, found.other_wer, found.recall, found.precision)
            cells = ["-" if rate is None else f"{100 * rate:.2f}" for rate in rates]
            widths = zip(cells, (8, 9, 10, 13), strict=True)
            shown = "".join(f"{cell:>{width}}" for cell, width in widths)
            lines.append(f"{name:<16}{shown}{found.false_alarms:>14}")
    return [f"{'hotwords':<16}{columns}", *lines] if lines else []


def describe_checkpoint(path: Path, loaded: Checkpoint) -> dict[str, Any]:
    """Say which checkpoint it is. Call it right after loading: training may replace and delete it later."""
    checksums = json.loads((loaded.folder / CHECKSUMS).read_text(encoding="utf-8"))
    return {
        "path": str(path),
        "resolved": str(loaded.folder),
        "model_sha256": checksums[MODEL],
        "stage": loaded.config.train.stage,
        "state": loaded.state,
        "device": str(device_of(loaded.recogniser)),
    }


def write_report(out_dir: Path, evaluation: Evaluation, checkpoint: Mapping[str, Any]) -> None:
    """Write the report's files; each replaces an old one whole. Raises OSError.

    checkpoint: from `describe_checkpoint`.
    """
    for name, result in evaluation.decoders.items():
        _replace_text(out_dir / f"hypotheses-{name}.jsonl", _hypothesis_lines(evaluation, result))
    _replace_text(out_dir / "report.txt", format_table(evaluation) + "\n")
    # Last: a report.json that is there has all its parts beside it.
    report = json.dumps(_make_report(evaluation, checkpoint), indent=1, ensure_ascii=False)
    _replace_text(out_dir / "report.json", report + "\n")


def _make_report(evaluation: Evaluation, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "split": evaluation.split,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": dict(checkpoint),
        "num_utterances": len(evaluation.ids),
        "audio_seconds": evaluation.audio_seconds,
        "precision": evaluation.precision,
        "decoders": {
            name: _decoder_figures(name, result) | _search_figures(name, evaluation.options)
            for name, result in evaluation.decoders.items()
        },
        "num_excluded": len(evaluation.excluded),
        "excluded": evaluation.excluded,
        "versions": {"vox": vox.__version__, "python": platform.python_version()} | _find_versions(),
    }


def _decoder_figures(name: str, result: DecoderResult) -> dict[str, Any]:
    counts = result.score
    return {
        "wer": counts.wer,
        "cer": counts.cer,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "hits": counts.hits,
        "words": counts.num_words,
        "real_time_factor": result.real_time_factor,
        "truncated": result.truncated_ids,
        "hypotheses": f"hypotheses-{name}.jsonl",
        **({} if result.hotwords is None else {"hotwords": _hotword_figures(result.hotwords)}),
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


def _hypothesis_lines(evaluation: Evaluation, result: DecoderResult) -> str:
    rows = zip(evaluation.ids, evaluation.references, result.hypotheses, result.score.utterances, strict=True)
    return "".join(
        json.dumps(
            {
                "id": utterance_id,
                "reference": reference,
                "hypothesis": hypothesis,
                "errors": counts.num_errors,
                "words": counts.num_words,
                "alignment": counts.alignment,
            },
            ensure_ascii=False,
        )
        + "\n"
        for utterance_id, reference, hypothesis, counts in rows
    )


def _find_versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _replace_text(path: Path, text: str) -> None:
    """Write a file beside its name, then rename: it is there whole, or the old one is."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise

"""Confidence intervals of an evaluation's rates, and comparisons of decoders and with an earlier report.

Shape suffix: N utterances.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from evaluate.results import Evaluation
from evaluate.standard import UNCHANGED, Standard
from vox.bootstrap import LEVEL, NUM_DRAWS, Difference, Rate, compare_rates, measure_rates
from vox.corpus import Utterance
from vox.errors import ReportError
from vox.score import score

FEW_SPEAKERS = 10  # below this, intervals over speakers are rough


@dataclass(frozen=True)
class EarlierReport:
    """The texts of an earlier evaluation (`--against`)."""

    folder: Path
    texts: dict[str, dict[str, tuple[str, str]]]  # decoder: id: reference and hypothesis


@dataclass(frozen=True)
class Comparison:
    """The word error rates of two systems on the same utterances."""

    first: str
    second: str
    first_rate: float
    second_rate: float
    wer: Difference
    num_utterances: int
    rate: str = "WER"  # CER in scripts without words

    @property
    def verdict(self) -> str:
        """Whether the interval of the difference excludes 0, and in whose favour."""
        low, high = self.wer.interval
        if low <= 0 <= high:
            return "no clear difference"
        return f"the second is {'better' if high < 0 else 'worse'}"


@dataclass(frozen=True)
class Intervals:
    """The rates of every decoder with their bootstrap draws, and the comparisons."""

    over: str  # what was drawn: "speakers" or "utterances"
    num_units: int
    wer: dict[str, Rate]
    cer: dict[str, Rate]
    between_decoders: list[Comparison]
    against: list[Comparison]  # this evaluation with an earlier one, for each decoder; may be empty
    earlier_folder: Path | None  # of the earlier report


def read_earlier(
    folder: Path,
    decoders: Sequence[str],
    utterances: Sequence[Utterance],
    standard: Standard = UNCHANGED,
) -> EarlierReport:
    """Read the report of an earlier evaluation from its folder.

    Raises ReportError if it is missing or damaged, if it was scored by another standard, or if it shares no
    decoder or no utterance (with the same reference) with this evaluation.
    """
    remedy = "name a folder that `vox evaluate` wrote"
    if not (folder / "report.json").is_file():
        raise ReportError("no report.json of an earlier evaluation", where=folder, remedy=remedy)
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        there, normalise = report["decoders"], report.get("normalise") or ""
        names = [name for name in decoders if name in there]
        texts = {name: _read_texts(folder / f"hypotheses-{name}.jsonl") for name in names}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ReportError("a report that cannot be read", where=folder, remedy=remedy) from None
    if normalise != standard.name:
        raise ReportError(
            f"the earlier report was made {_describe(normalise)}, this one is {_describe(standard.name)}",
            where=folder,
            remedy="evaluate both alike",
        )
    if not names:
        shown = ", ".join(map(str, there)) or "none"
        raise ReportError(f"the earlier report has no decoder in common (it has {shown})", where=folder)
    for name, pairs in texts.items():
        spoken = [each for each in utterances if each.text]
        if not any(each.id in pairs and each.text == pairs[each.id][0] for each in spoken):
            what = f"the earlier report has no utterance in common ({name})"
            raise ReportError(what, where=folder, remedy="compare reports of the same split")
    return EarlierReport(folder, texts)


def _describe(normalise: str) -> str:
    return f"with --normalise {normalise}" if normalise else "without --normalise"


def _read_texts(path: Path) -> dict[str, tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not all(isinstance(row[key], str) for row in rows for key in ("id", "reference", "hypothesis")):
        raise ValueError("not a text")
    return {row["id"]: (row["reference"], row["hypothesis"]) for row in rows}


def measure_intervals(
    evaluation: Evaluation, utterances: Mapping[str, Utterance], earlier: EarlierReport | None = None
) -> Intervals:
    """Bootstrap all rates over speakers, or over utterances if a speaker is unknown or there is only one.

    utterances: by id; all of the evaluation, maybe more.
    """
    scores = {name: result.score.utterances for name, result in evaluation.decoders.items()}
    speakers = _find_speakers(evaluation.ids, utterances)
    units_N = _pick_units(evaluation.ids, speakers)
    some_N = next(iter(scores.values()))
    wer = measure_rates(
        {name: [one.num_errors for one in some] for name, some in scores.items()},
        [one.num_words for one in some_N],
        units_N,
    )
    cer = measure_rates(
        {name: [one.num_character_errors for one in some] for name, some in scores.items()},
        [one.num_characters for one in some_N],
        units_N,
    )
    return Intervals(
        over="speakers" if speakers else "utterances",
        num_units=len(set(speakers.values()) or evaluation.ids),
        wer=wer,
        cer=cer,
        between_decoders=[
            _compare(first, second, wer[first], wer[second], len(units_N), evaluation.rate)
            for first, second in combinations(wer, 2)
        ],
        against=_compare_with_earlier(evaluation, utterances, earlier) if earlier else [],
        earlier_folder=earlier.folder if earlier else None,
    )


def _find_speakers(ids: Sequence[str], utterances: Mapping[str, Utterance]) -> dict[str, str]:
    """Return the speaker of each utterance with speech; nothing if one is unknown or there is only one."""
    speakers = {each: utterances[each].speaker for each in ids if utterances[each].text}
    return speakers if all(speakers.values()) and len(set(speakers.values())) > 1 else {}


def _pick_units(ids: Sequence[str], speakers: Mapping[str, str]) -> list[Hashable]:
    """Return each utterance's speaker as its unit; an utterance without one is a unit of its own."""
    return [("speaker", speakers[each]) if each in speakers else ("utterance", each) for each in ids]


def _compare(first: str, second: str, one: Rate, other: Rate, num_utterances: int, rate: str) -> Comparison:
    difference = compare_rates(one, other)
    return Comparison(first, second, one.value, other.value, difference, num_utterances, rate)


def _compare_with_earlier(
    evaluation: Evaluation, utterances: Mapping[str, Utterance], earlier: EarlierReport
) -> list[Comparison]:
    comparisons = []
    for name, texts in earlier.texts.items():
        now = dict(zip(evaluation.ids, evaluation.decoders[name].score.utterances, strict=True))
        references = dict(zip(evaluation.ids, evaluation.references, strict=True))
        # Compare only utterances that are in both, with the same reference.
        ids = [i for i in evaluation.ids if i in texts and texts[i][0] == references[i]]
        pairs = [tuple(map(evaluation.standard.apply, texts[i])) for i in ids]
        if not any(said for said, _ in pairs):  # the shared recordings could not be read this time
            continue
        by_character = evaluation.rate == "CER"
        then = score(
            [said for said, _ in pairs], [found for _, found in pairs], by_character=by_character
        ).utterances
        rates = measure_rates(
            {"then": [one.num_errors for one in then], "now": [now[i].num_errors for i in ids]},
            [one.num_words for one in then],
            _pick_units(ids, _find_speakers(ids, utterances)),
        )
        comparisons.append(
            _compare(
                f"{name}, earlier", f"{name}, now", rates["then"], rates["now"], len(ids), evaluation.rate
            )
        )
    return comparisons


def describe_intervals(intervals: Intervals) -> dict[str, Any]:
    """Return report.json's entries for the bootstrap and the comparisons."""
    return {
        "bootstrap": {
            "level": LEVEL,
            "draws": NUM_DRAWS,
            "over": intervals.over,
            "units": intervals.num_units,
        },
        "between_decoders": [_comparison_figures(one) for one in intervals.between_decoders],
        "against": intervals.earlier_folder
        and {
            "report": str(intervals.earlier_folder),
            "decoders": [_comparison_figures(one) for one in intervals.against],
        },
    }


def _comparison_figures(comparison: Comparison) -> dict[str, Any]:
    return {
        "first": comparison.first,
        "second": comparison.second,
        "first_wer": comparison.first_rate,
        "second_wer": comparison.second_rate,
        "difference": comparison.wer.value,
        "interval": comparison.wer.interval,
        "probability_second_better": comparison.wer.probability,
        "utterances": comparison.num_utterances,
    }

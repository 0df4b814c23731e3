"""Read splits whole, once: report their content and what to look at."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from vox.audio import hash_recording
from vox.corpora.measure import Measured, measure
from vox.corpus import Problem, Utterance, probe_audio, read_split
from vox.errors import CorpusError, VoxError, name_count, name_first
from vox.progress import ProgressBar
from vox.segment import WHOLE, Segment, find_overlaps
from vox.text import ENGLISH, Normaliser
from vox.units import samples_to_seconds

SILENT_PEAK = 1e-3  # of full scale: -60 dB
QUIET_RMS = 3e-3  # -50 dB
MAX_OFFSET = 0.01
MAX_CLIPPED = 1e-3
MAX_SECONDS = 30.0
MIN_WORDS_A_SECOND, MAX_WORDS_A_SECOND = 0.3, 6.0

PORTION = 1024  # utterances submitted at a time


@dataclass(frozen=True)
class Finding:
    """Something to look at in one utterance, or in several."""

    kind: str
    name: str
    detail: str
    seconds: float = 0.0


@dataclass
class Checked:
    """A split: its usable utterances with their measurements, and the findings."""

    split: str
    has_words: bool = True  # False: speaking rates are in characters
    measured: list[Measured] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """What speaking rates count."""
        return "words" if self.has_words else "characters"

    def list_speeds(self) -> list[float]:
        """Return the speaking rate of each utterance in which something is spoken, in units a second."""
        spoken = [each for each in self.measured if each.utterance.text]
        return [each.words_per_second if self.has_words else each.characters_per_second for each in spoken]


# What to check, in the order of the table: the kind, and a test that returns the detail.
UNUSABLE = "cannot be used"
DUPLICATE = "the same recording twice"
SHARED = "in two splits"
_TESTS: dict[str, Callable[[Measured], str | None]] = {
    "silent": lambda m: f"peak {m.peak:.5f}" if m.peak < SILENT_PEAK else None,
    "very quiet": lambda m: f"rms {m.rms:.5f}" if m.rms < QUIET_RMS and m.peak >= SILENT_PEAK else None,
    "clipped": lambda m: f"{100 * m.clipped:.2f} % of the samples" if m.clipped > MAX_CLIPPED else None,
    "DC offset": lambda m: f"{m.offset:+.3f}" if abs(m.offset) > MAX_OFFSET else None,
    "channels cancel": lambda m: f"{m.channels} channels" if m.cancels and m.peak >= SILENT_PEAK else None,
    "long": lambda m: f"{m.seconds:.1f} s" if m.seconds > MAX_SECONDS else None,
    "too few words": lambda m: (
        f"{m.words_per_second:.2f} words/s" if m.words_per_second < MIN_WORDS_A_SECOND else None
    ),
    "too many words": lambda m: (
        f"{m.words_per_second:.1f} words/s" if m.words_per_second > MAX_WORDS_A_SECOND else None
    ),
    "text longer than audio": lambda m: (
        f"{len(m.utterance.text)} characters in {m.seconds:.2f} s" if m.is_too_long_for_ctc else None
    ),
}
IN_WORDS = ("too few words", "too many words")  # say nothing of a script without words
OF_SPEECH = ("silent", "very quiet", *IN_WORDS)  # say nothing of a recording in which nothing is spoken
REMEDIES = {
    UNUSABLE: "correct it, or leave it out with --skip-bad",
    "silent": "remove it, or record it again",
    "very quiet": "listen: is it speech?",
    "clipped": "record with less gain",
    "DC offset": "filter it out (sox: highpass 10)",
    "channels cancel": "name one with `channel`",
    "long": "cut it into segments: memory grows with the longest",
    "too few words": "is the text complete?",
    "too many words": "is it another recording's text?",
    "text longer than audio": "is the recording cut off? CTC cannot align it letter by letter",
    DUPLICATE: "keep one",
    SHARED: "remove it from one: the error rate on it says nothing",
}


def check_split(root: Path, split: str, workers: int, normalise: Normaliser = ENGLISH) -> Checked:
    """Read a whole split; raise CorpusError if it is missing or nothing in it can be used."""
    utterances, problems = read_split(root, split, normalise)
    probed, unreadable = probe_audio(utterances, workers)
    checked = Checked(split, normalise.has_words)
    measured = _measure_all(probed, workers, f"checking {split}")
    for utterance, found in zip(probed, measured, strict=True):
        if isinstance(found, str):
            unreadable.append(Problem(utterance.id, found))
        else:
            checked.measured.append(found)
            without_words = () if normalise.has_words else IN_WORDS
            ignored = without_words if utterance.text else OF_SPEECH
            checked.findings += [finding for finding in _examine(found) if finding.kind not in ignored]
    unusable = [Finding(UNUSABLE, problem.name, problem.reason) for problem in (*problems, *unreadable)]
    checked.findings = unusable + checked.findings
    if not checked.measured:
        shown = name_first([f"{finding.name} ({finding.detail})" for finding in unusable])
        raise CorpusError(f"nothing in split {split} can be used: {shown}", remedy="correct the corpus")
    return checked


def _measure_all(utterances: Sequence[Utterance], workers: int, title: str) -> Iterator[Measured | str]:
    """Yield each utterance's measurements, or the reason why it has none."""

    def try_to_measure(utterance: Utterance) -> Measured | str:
        try:
            return measure(utterance)
        except VoxError as error:
            return str(error)

    remaining = iter(utterances)
    with ThreadPoolExecutor(workers) as pool, ProgressBar(sum(map(_seconds, utterances)), title) as bar:
        while portion := list(islice(remaining, PORTION)):
            for utterance, found in zip(portion, pool.map(try_to_measure, portion), strict=True):
                bar.add(_seconds(utterance))
                yield found


def _seconds(utterance: Utterance) -> float:
    return samples_to_seconds(utterance.num_samples or 0)


def _examine(measured: Measured) -> Iterator[Finding]:
    for kind, test in _TESTS.items():
        if (detail := test(measured)) is not None:
            yield Finding(kind, measured.utterance.id, detail, measured.seconds)


def find_shared(splits: Sequence[Checked], workers: int) -> Iterator[Finding]:
    """Find recordings that occur twice, in one split or in two: by content and segments."""
    paths = sorted({each.utterance.audio_path for checked in splits for each in checked.measured})
    with ThreadPoolExecutor(workers) as pool:
        hashes = dict(zip(paths, pool.map(hash_recording, paths), strict=True))
    by_content: dict[str, list[tuple[str, Segment]]] = {}
    split_of = {}
    for checked in splits:
        for each in checked.measured:
            name = each.utterance.id if len(splits) == 1 else f"{checked.split}: {each.utterance.id}"
            split_of[name] = checked.split
            segment = each.utterance.segment or WHOLE
            by_content.setdefault(hashes[each.utterance.audio_path], []).append((name, segment))
    for segments in by_content.values():
        if len(segments) > 1:
            for first, second, _ in find_overlaps(segments):
                kind = DUPLICATE if split_of[first] == split_of[second] else SHARED
                yield Finding(kind, first, f"and {second}")


def describe(checked: Checked) -> list[tuple[str, str]]:
    """Return what is in a split, as rows of a table."""
    seconds = np.array([each.seconds for each in checked.measured])
    speeds = np.array(checked.list_speeds())
    speakers = Counter(each.utterance.speaker for each in checked.measured)
    unknown = speakers.pop("", 0)
    nameless = name_count(unknown, "utterance")
    num_empty = sum(not each.utterance.text for each in checked.measured)
    words = Counter(word for each in checked.measured for word in each.utterance.text.split())
    letters = Counter("".join(words.elements()))
    kinds = Counter((each.sample_rate, each.channels) for each in checked.measured)
    return [
        ("utterances", f"{len(seconds)} ({seconds.sum() / 3600:.2f} hours)"),
        ("speakers", f"{len(speakers)}{f' ({nameless} without one)' if unknown else ''}"),
        *([("no speech", name_count(num_empty, "utterance"))] if num_empty else []),
        ("seconds", _spread(seconds)),
        *([(f"{checked.unit}/s", _spread(speeds))] if len(speeds) else []),
        *([("words", f"{words.total()} ({len(words)} different)")] if checked.has_words else []),
        ("characters", " ".join(f"{letter}:{count}" for letter, count in sorted(letters.items()))),
        ("recorded as", ", ".join(f"{n} at {rate} Hz x {c}" for (rate, c), n in kinds.most_common())),
    ]


def _spread(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return (
        f"{values.min():.2f} to {values.max():.2f} (median {middle:.2f}; 90 % from {low:.2f} to {high:.2f})"
    )


def summarise(findings: Sequence[Finding]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield a row for each kind of finding: kind, count, hours, examples, what to do."""
    for kind, remedy in REMEDIES.items():
        some = [finding for finding in findings if finding.kind == kind]
        if some:
            hours = sum(finding.seconds for finding in some) / 3600
            examples = name_first([f"{finding.name} ({finding.detail})" for finding in some])
            yield kind, str(len(some)), f"{hours:.2f}" if hours else "", examples, remedy


def list_findings(split: str, findings: Sequence[Finding]) -> str:
    """Write every finding as JSON lines."""
    rows = [{"split": split, "finding": f.kind, "id": f.name, "detail": f.detail} for f in findings]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

"""The utterances of a split that can be used, with their lengths; what is left out is said."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from vox.audio import AudioHeader, read_header
from vox.corpus.layouts import collect
from vox.corpus.utterance import Problem, Utterance
from vox.errors import CorpusError, VoxError, name_count, name_first
from vox.text import ENGLISH, Normaliser
from vox.units import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE, samples_to_frames

log = logging.getLogger(__name__)

KnownLength = Callable[[Utterance], int | None]  # samples at the utterance's speed, or None


def probe_audio(
    utterances: Sequence[Utterance], workers: int = 8, known_length: KnownLength | None = None
) -> tuple[list[Utterance], list[Problem]]:
    """Read every recording's header in threads and fill in `num_samples`; keep the order.

    known_length: asked first, from several threads. Problems: recordings that are missing, unreadable, empty,
    or shorter than one frame.
    """
    probed, problems, _ = _probe(utterances, workers, known_length)
    return probed, problems


def load_split(
    root: Path | str,
    split: str,
    *,
    needs_audio: bool = True,
    skip_bad: bool = False,
    speed: float = 1.0,
    known_length: KnownLength | None = None,
    normalise: Callable[[str], str] = ENGLISH,
    left_out: list[Problem] | None = None,
) -> list[Utterance]:
    """List the utterances of a split that can be used; log what was converted.

    needs_audio: also read the audio headers and fill in `num_samples`; without this, transcripts are enough,
    and nothing is said of recordings that are not there. speed: at which the recordings are played.
    known_length: asked first, from several threads; a header is read where it returns None.
    normalise: as in `read_split`. left_out: gets what cannot be used.
    Raises CorpusError if anything in the split cannot be used; with `skip_bad`, logs each problem and returns
    the rest, and raises only if nothing is left.
    """
    reading = collect(Path(root), split, normalise, needs_audio=needs_audio)
    utterances, problems = reading.utterances, reading.problems
    if speed != 1:
        utterances = [replace(utterance, speed=speed) for utterance in utterances]
    if needs_audio:
        utterances, unreadable, headers = _probe(utterances, known_length=known_length)
        problems = problems + unreadable
        _log_audio_conversions(split, headers)
    if reading.num_texts_changed:
        changed = name_count(reading.num_texts_changed, "transcript")
        is_english = isinstance(normalise, Normaliser) and normalise.config.alphabet == "english"
        what = "punctuation or accents (text.alphabet=letters keeps accents)" if is_english else "punctuation"
        log.info("%s: %s removed from %s", split, what, changed)
    if reading.num_numbers:
        numbers = name_count(reading.num_numbers, "number")
        log.info("%s: %s written as words: years and ordinals may be read otherwise", split, numbers)
    _warn_of_shared_recordings(split, utterances)
    if problems:
        _report(split, problems, len(utterances), skip_bad)
    if left_out is not None:
        left_out += problems
    return utterances


def _warn_of_shared_recordings(split: str, utterances: Sequence[Utterance]) -> None:
    """Say where one file is the recording of several texts: at most one of them can be right."""
    counts = Counter(str(utterance.audio_path) for utterance in utterances if utterance.segment is None)
    shared = sorted(path for path, count in counts.items() if count > 1)
    if shared:
        count = name_count(len(shared), "recording")
        log.warning("%s: more than one text for %s: %s", split, count, name_first(shared))


def _report(split: str, problems: Sequence[Problem], num_left: int, skip_bad: bool) -> None:
    shown = name_first([f"{problem.name} ({problem.reason})" for problem in problems])
    if num_left == 0:
        raise CorpusError(f"nothing in split {split} can be used: {shown}", remedy="correct the corpus")
    if not skip_bad:
        raise CorpusError(
            f"{name_count(len(problems), 'problem')} in split {split}: {shown}",
            remedy="correct them, or leave these out with --skip-bad",
        )
    left = name_count(num_left, "utterance")
    log.warning("%s: %s; %s left", split, name_count(len(problems), "problem"), left)
    for problem in problems:
        log.warning("%s: left out %s: %s", split, problem.name, problem.reason)


def _log_audio_conversions(split: str, headers: Sequence[AudioHeader]) -> None:
    rates = Counter(header.sample_rate for header in headers if header.sample_rate != SAMPLE_RATE)
    if rates:
        seen = ", ".join(f"{rate} Hz" for rate in sorted(rates))
        count = name_count(rates.total(), "recording")
        log.info("%s: %s resampled to %d Hz (from %s)", split, count, SAMPLE_RATE, seen)
    num_mixed = sum(header.channels > 1 for header in headers)
    if num_mixed:
        log.info(
            "%s: several channels read as one in %s: their mean, or the loudest if they cancel",
            split,
            name_count(num_mixed, "recording"),
        )


def _probe(
    utterances: Sequence[Utterance], workers: int = 8, known_length: KnownLength | None = None
) -> tuple[list[Utterance], list[Problem], list[AudioHeader]]:
    def probe(utterance: Utterance) -> AudioHeader | int | str:
        if known_length is not None and (length := known_length(utterance)) is not None:
            return length
        try:
            header = read_header(utterance.audio_path, utterance.speed, utterance.segment)
        except VoxError as error:
            return str(error)
        if samples_to_frames(header.num_samples) == 0:
            return f"shorter than one frame: {header.num_samples} samples of {RECEPTIVE_FIELD_SAMPLES}"
        return header

    def probe_some(some: tuple[Utterance, ...]) -> list[AudioHeader | int | str]:
        return [probe(utterance) for utterance in some]

    probed, problems, headers = [], [], []
    with ThreadPoolExecutor(workers) as pool:
        # In portions, so that an interrupt does not have to wait for a whole corpus; and several files a
        # task, because a task costs more than a file about which all is known.
        remaining = iter(utterances)
        while portion := list(islice(remaining, 4096)):
            tasks = [tuple(portion[start : start + 32]) for start in range(0, len(portion), 32)]
            answers = chain.from_iterable(pool.map(probe_some, tasks))
            for utterance, found in zip(portion, answers, strict=True):
                if isinstance(found, str):
                    problems.append(Problem(utterance.id, found))
                elif isinstance(found, int):
                    probed.append(replace(utterance, num_samples=found))
                else:
                    is_one_channel = utterance.segment is not None and utterance.segment.channel is not None
                    headers.append(replace(found, channels=1) if is_one_channel else found)
                    probed.append(replace(utterance, num_samples=found.num_samples))
    return probed, problems, headers


def refuse_without_words(split: str, utterances: Sequence[Utterance]) -> None:
    """Raise CorpusError if nothing is spoken in a split: it has no error rate."""
    if not any(utterance.text for utterance in utterances):
        raise CorpusError(
            "nothing is spoken in this split, so it has no error rate",
            where=split,
            remedy="name a split of speech",
        )

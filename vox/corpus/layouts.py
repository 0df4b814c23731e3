"""A split as it lies on the disk: LibriSpeech's layout, or a JSON-lines manifest.

LibriSpeech's layout is ROOT/LibriSpeech/<split>/<speaker>/<chapter>/<id>.flac (or another format, or at
another depth) with the texts in the chapter's *.trans.txt, a line each: the id, a space, the text. A
manifest is ROOT/<split>.jsonl, a JSON object a line (vox/manifest.py). A split that has both is refused.
"""

import difflib
import os
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vox.corpus.utterance import Problem, Utterance
from vox.errors import CorpusError, VoxError, escape_surrogates, name_first
from vox.ffmpeg import FFMPEG_SUFFIXES
from vox.manifest import name_entries, parse_entry
from vox.segment import WHOLE, Segment, find_overlaps
from vox.text import ENGLISH, Normaliser

AUDIO_SUFFIXES = FFMPEG_SUFFIXES | frozenset(
    ".flac .wav .mp3 .ogg .opus .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist".split()  # noqa: SIM905
)
_TRANSCRIPT_SUFFIX = ".trans.txt"
LIBRISPEECH_SPLITS = frozenset(  # what `vox download` can fetch
    {
        "dev-clean",
        "dev-other",
        "test-clean",
        "test-other",
        "train-clean-100",
        "train-clean-360",
        "train-other-500",
    }
)


@dataclass
class Reading:
    """What reading a split has found so far."""

    utterances: list[Utterance] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    normalise: Callable[[str], str] = ENGLISH
    needs_audio: bool = True
    num_texts_changed: int = 0  # by more than case and spacing
    num_numbers: int = 0  # that were spelled

    def reject(self, name: object, reason: str) -> None:
        self.problems.append(Problem(escape_surrogates(str(name)), escape_surrogates(reason)))

    def add(
        self,
        name: str,
        audio_path: Path,
        text: str,
        speaker: str,
        segment: Segment | None = None,
        *,
        is_speech: bool = True,
    ) -> None:
        if _has_unwritable(name):
            return self.reject(ascii(name), "an id with control characters or half a surrogate pair")
        try:
            normalised = self.normalise(text) if is_speech else ""
        except VoxError as error:
            return self.reject(name, str(error))
        if is_speech and not normalised:
            return self.reject(name, "empty transcript")
        self.num_texts_changed += normalised.lower() != " ".join(text.lower().split())
        if isinstance(self.normalise, Normaliser):
            self.num_numbers += self.normalise.count_spelled(text)
        self.utterances.append(Utterance(name, audio_path, normalised, speaker, segment=segment))
        return None


def read_split(
    root: Path | str,
    split: str,
    normalise: Callable[[str], str] = ENGLISH,
    *,
    needs_audio: bool = True,
) -> tuple[list[Utterance], list[Problem]]:
    """List a split's utterances, sorted by id, and what is wrong with the others; open no audio.

    normalise: brings a text into the alphabet; raises TextError for one that cannot be used.
    needs_audio: a transcript without audio is a problem; without this it is kept, with the path that its
    recording would have.
    Problems: a transcript without audio, audio without a transcript, an empty transcript, characters
    outside the alphabet, an id that occurs more than once (none of its utterances is used), segments of one
    recording that overlap (none of them is used), a line that is malformed, an id that cannot be written
    down, a file that is not text. Raises CorpusError if the split is missing, is empty, or exists in both
    layouts.
    """
    reading = collect(Path(root), split, normalise, needs_audio=needs_audio)
    return reading.utterances, reading.problems


def find_split(root: Path | str, split: str) -> Path:
    """Return a split's folder or manifest; raise CorpusError if it is missing or exists in both layouts."""
    root = Path(root)
    split_dir, manifest_path = root / "LibriSpeech" / split, root / f"{split}.jsonl"
    if Path(split).name != split or split.startswith(".") or not split:
        name = Path(split).name.removesuffix(".jsonl") or "NAME"
        raise CorpusError(
            f"{split!r} is not the name of a split",
            remedy=f"give the name alone, --split {name}, and the folder above it with --root",
        )
    if split_dir.is_dir() and manifest_path.is_file():
        raise CorpusError(
            f"split {split} exists twice", where=f"{split_dir} and {manifest_path}", remedy="rename one"
        )
    if split_dir.is_dir():
        return split_dir
    if manifest_path.is_file():
        return manifest_path
    raise _no_split(root, split)


def _no_split(root: Path, split: str) -> CorpusError:
    there = sorted(
        {path.stem for path in root.glob("*.jsonl")} | {p.name for p in root.glob("LibriSpeech/*/")}
    )
    known = f" (splits there: {name_first(there, 8)})" if there else ""
    near = difflib.get_close_matches(split, there, n=1)
    if split in LIBRISPEECH_SPLITS:
        command = ["vox", "download", "--split", split]
        command += [] if root == Path("data") else ["--root", str(root)]
        remedy = f"put it there, or run `{shlex.join(command)}`"
    else:
        remedy = f"did you mean {near[0]}?" if near else "put it there, or make it with `vox corpus import`"
    return CorpusError(f"no split {split} in {root}{known}", remedy=remedy)


def collect(root: Path, split: str, normalise: Callable[[str], str], *, needs_audio: bool = True) -> Reading:
    """Read a split, as `read_split` does, and keep the counts of what was changed in its texts."""
    reading = Reading(normalise=normalise, needs_audio=needs_audio)
    source = find_split(root, split)
    if source.is_dir():
        _read_librispeech(source, reading)
    else:
        _read_manifest(source, reading)
    _reject_duplicates(reading)
    _reject_overlaps(reading)
    if not reading.utterances and not reading.problems:
        raise CorpusError(
            f"split {split} is empty", where=source, remedy="put recordings and transcripts there"
        )
    reading.utterances.sort(key=lambda utterance: utterance.id)
    return reading


def _reject_duplicates(reading: Reading) -> None:
    """Drop every utterance of an id that occurs more than once: which of them is right is not known."""
    counts = Counter(utterance.id for utterance in reading.utterances)
    if len(counts) == len(reading.utterances):
        return
    reading.utterances = [utterance for utterance in reading.utterances if counts[utterance.id] == 1]
    for name, count in counts.items():
        if count > 1:
            reading.reject(name, f"the id occurs {count} times")


def _reject_overlaps(reading: Reading) -> None:
    """Drop segments of one recording that overlap: each holds words of the other's text."""
    if all(utterance.segment is None for utterance in reading.utterances):
        return
    by_path: dict[Path, list[tuple[str, Segment]]] = {}
    for utterance in reading.utterances:
        by_path.setdefault(utterance.audio_path, []).append((utterance.id, utterance.segment or WHOLE))
    reasons: dict[str, str] = {}
    for segments in by_path.values():
        if any(segment != WHOLE for _, segment in segments):
            for first, second, seconds in find_overlaps(segments):
                shared = "all that follows" if seconds == float("inf") else f"{seconds:.2f} s"
                reasons.setdefault(first, f"overlaps {second} ({shared})")
                reasons.setdefault(second, f"overlaps {first} ({shared})")
    if reasons:
        reading.utterances = [utterance for utterance in reading.utterances if utterance.id not in reasons]
        for name, reason in reasons.items():
            reading.reject(name, reason)


def _read_librispeech(split_dir: Path, reading: Reading) -> None:
    """Read every folder that holds transcripts or recordings, at whatever depth."""
    for chapter_dir, speaker in walk_chapters(split_dir):
        _read_chapter(chapter_dir, speaker, reading)


def walk_chapters(split_dir: Path) -> Iterator[tuple[Path, str]]:
    """Yield every folder of LibriSpeech's layout, links followed once, with its speaker.

    The speaker is the first folder below the split, as in LibriSpeech; "" for the split's own folder.
    """
    seen = set()
    for folder, folders, _ in os.walk(split_dir, followlinks=True, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        chapter_dir = Path(folder)
        status = chapter_dir.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield chapter_dir, next(iter(chapter_dir.relative_to(split_dir).parts), "")


def _raise(error: OSError) -> None:
    raise error


def _read_chapter(chapter_dir: Path, speaker: str, reading: Reading) -> None:
    audio_names, transcript_names = list_chapter(chapter_dir)
    unused = set(audio_names)
    for transcript_name in transcript_names:
        for line in _read_lines(chapter_dir / transcript_name, reading):
            name, *texts = line.strip().split(maxsplit=1) or [""]
            files = audio_names.get(name, [])
            unused.discard(name)
            if not files and name and not reading.needs_audio:
                files = [f"{name}.flac"]
            if len(files) == 1:
                reading.add(name, chapter_dir / files[0], texts[0] if texts else "", speaker)
            elif name:
                what = f"two recordings ({' and '.join(files)})" if files else "transcript without audio"
                reading.reject(name, f"{what}: {chapter_dir}")
    for name in sorted(unused):
        reading.reject(name, f"audio without transcript: {chapter_dir / audio_names[name][0]}")


def list_chapter(chapter_dir: Path) -> tuple[dict[str, list[str]], list[str]]:
    """List a chapter's audio files by id, and its transcript files."""
    audio_names: dict[str, list[str]] = {}
    transcript_names = []
    # Names, not Paths: a Path for every file would double the time of a large corpus.
    for name in sorted(os.listdir(chapter_dir)):  # noqa: PTH208
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if name.startswith("."):  # macOS leaves ._x.flac beside x.flac
            continue
        if name.endswith(_TRANSCRIPT_SUFFIX):
            transcript_names.append(name)
        elif suffix.lower() in AUDIO_SUFFIXES:
            audio_names.setdefault(stem, []).append(name)
    return audio_names, transcript_names


def _read_manifest(manifest_path: Path, reading: Reading) -> None:
    entries = []
    for number, line in enumerate(_read_lines(manifest_path, reading), start=1):
        if not line.strip():
            continue
        try:
            entries.append(parse_entry(line))
        except ValueError as error:
            reading.reject(f"{manifest_path.name} line {number}", f"malformed line: {error}")
    for entry in name_entries(entries):
        audio_path = manifest_path.parent / entry.audio
        name = entry.id or ""
        is_there = not reading.needs_audio or os.path.isfile(audio_path)  # noqa: PTH113 - half the time
        if _has_unwritable(name) or is_there:
            reading.add(name, audio_path, entry.text, entry.speaker, entry.segment, is_speech=entry.is_speech)
        else:
            reading.reject(name, f"transcript without audio: {audio_path}")


def _has_unwritable(name: str) -> bool:
    """Say whether a name holds what a file or a line of a log cannot: it would fail after the work."""
    if name.isprintable():  # nearly every name, in a fraction of the time
        return False
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def _read_lines(path: Path, reading: Reading) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        reading.reject(path, f"not UTF-8 text (byte {error.start})")
        return []

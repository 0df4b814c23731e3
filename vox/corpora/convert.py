"""Convert other tools' corpora to Vox's manifest: detect the kind, select usable entries, write the file."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from vox.corpora.folder import find_texts, read_folder, read_without_speech
from vox.corpora.imported import Imported, read_objects
from vox.corpora.kaldi import read_kaldi
from vox.corpora.lhotse import read_cuts, read_recordings
from vox.corpora.librispeech import TRANSCRIPTS, read_librispeech
from vox.corpora.nemo import read_nemo
from vox.corpora.tables import read_audio_folder, read_common_voice
from vox.disk import check_writable, write_whole
from vox.errors import CorpusError, VoxError, name_count, name_first
from vox.manifest import Entry, join_lines
from vox.text import ENGLISH

KNOWN = (
    "a Kaldi data folder, a NeMo manifest, lhotse's cuts or recordings and supervisions, a CommonVoice TSV, "
    "a Hugging Face audio folder, LibriSpeech's layout, or recordings with .txt or .lab files beside them"
)


def recognise(source: Path) -> tuple[str, Callable[[], Imported]]:
    """Return the kind of a file or folder and its reader; raise CorpusError if the kind is unknown."""
    if source.is_dir():
        return _recognise_folder(source)
    if not source.is_file():
        raise CorpusError("no such file or folder", where=source, remedy="correct the path")
    name = source.name.removesuffix(".gz")
    if name.endswith(".tsv"):
        return "CommonVoice TSV", lambda: read_common_voice(source)
    if name == "metadata.jsonl" or name.endswith(".csv"):
        return "Hugging Face audio folder", lambda: read_audio_folder(source)
    if name.endswith((".jsonl", ".json")):
        _, first = next(read_objects(source, Imported(source.parent)), ("", {}))
        if "audio_filepath" in first:
            return "NeMo manifest", lambda: read_nemo(source)
        if {"supervisions", "recording"} & first.keys():
            return "lhotse cuts", lambda: read_cuts(source)
        if "file_name" in first:
            return "Hugging Face audio folder", lambda: read_audio_folder(source)
    raise CorpusError("not a corpus that Vox knows", where=source, remedy=f"give {KNOWN}")


def _recognise_folder(folder: Path) -> tuple[str, Callable[[], Imported]]:
    if (folder / "wav.scp").is_file():
        return "Kaldi data folder", lambda: read_kaldi(folder)
    lists = {kind: sorted(folder.glob(f"*{kind}*.jsonl*")) for kind in ("recordings", "supervisions", "cuts")}
    for kind, paths in lists.items():
        if len(paths) > 1:
            raise CorpusError(f"several {kind}", where=folder, remedy="put those of one split into a folder")
    if lists["recordings"] and lists["supervisions"]:
        recordings, supervisions = lists["recordings"][0], lists["supervisions"][0]
        return "lhotse recordings and supervisions", lambda: read_recordings(recordings, supervisions)
    if lists["cuts"]:
        return "lhotse cuts", lambda: read_cuts(lists["cuts"][0])
    metadata = [folder / name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).is_file()]
    if metadata:
        return "Hugging Face audio folder", lambda: read_audio_folder(metadata[0])
    if tables := sorted([*folder.glob("*.tsv"), *folder.glob("*.csv")]):
        raise CorpusError("a folder of tables", where=folder, remedy=f"give one of them, as {tables[0]}")
    if next(folder.rglob(TRANSCRIPTS), None) is not None:
        return "LibriSpeech layout", lambda: read_librispeech(folder)
    if find_texts(folder):
        return "folder of recordings and texts", lambda: read_folder(folder)
    raise CorpusError("not a corpus that Vox knows", where=folder, remedy=f"give {KNOWN}")


def _recognise_without_speech(folder: Path) -> tuple[str, Callable[[], Imported]]:
    if not folder.is_dir():
        raise CorpusError("not a folder", where=folder, remedy="give a folder of recordings")
    return "folder without speech", lambda: read_without_speech(folder)


def refuse_existing_split(root: Path, split: str) -> None:
    """Raise CorpusError unless a name can be that of a new split, in either layout."""
    if Path(split).name != split or split.startswith(".") or not split:
        raise CorpusError(f"{split!r} is not the name of a split", remedy="name it without folders")
    for path in (root / f"{split}.jsonl", root / "LibriSpeech" / split):
        if path.exists():
            raise CorpusError("the split exists", where=path, remedy="choose another name, or remove it")


def import_corpus(
    source: Path,
    root: Path,
    split: str,
    normalise: Callable[[str], str] = ENGLISH,
    *,
    is_speech: bool = True,
) -> Iterator[str]:
    """Write ROOT/SPLIT.jsonl from another tool's corpus; yield the lines of a report.

    is_speech: False for a folder of recordings in which nothing is spoken.
    The texts are written as they are; those that `normalise` refuses are left out. No recording is copied or
    opened. Excluded entries are listed with their reason in ROOT/SPLIT.left-out.txt. Raises CorpusError if
    the source's kind is unknown, nothing in it can be used, or the split exists, and VoxError for a root that
    cannot be written.
    """
    refuse_existing_split(root, split)
    check_writable(root, "--root")
    manifest_path = root / f"{split}.jsonl"
    kind, read = recognise(source) if is_speech else _recognise_without_speech(source)
    imported = read()
    usable = list(_find_usable(imported, normalise))
    if not usable:
        shown = name_first([f"{name} ({reason})" for name, reason in imported.left_out]) or "no recordings"
        raise CorpusError(f"nothing in this {kind} can be used: {shown}", where=source)
    root.mkdir(parents=True, exist_ok=True)
    write_whole(manifest_path, join_lines(usable).encode("utf-8", "surrogatepass"))
    yield f"{kind}: {name_count(len(usable), 'utterance')}: {manifest_path}"
    if imported.left_out:
        list_path = root / f"{split}.left-out.txt"
        lines = [f"{name}\t{' '.join(reason.split())}\n" for name, reason in imported.left_out]
        write_whole(list_path, "".join(lines).encode("utf-8", "backslashreplace"))
        yield f"left out: {len(lines)}: {list_path}"
        yield from (line.rstrip() for line in lines[:10])


def _find_usable(imported: Imported, normalise: Callable[[str], str]) -> Iterator[Entry]:
    """Yield the entries with an existing recording and a usable text, absolute paths, and different ids."""
    folder = os.path.abspath(imported.folder)  # noqa: PTH100 - keeps links
    audio_of: dict[str, str] = {}  # by id
    for entry in imported.entries:
        path = os.path.abspath(imported.folder / entry.audio)  # noqa: PTH100
        name = entry.id or entry.audio
        if not os.path.isfile(path):  # noqa: PTH113 - a Path for each would double the time
            imported.leave_out(name, f"no such recording: {path}")
            continue
        try:
            reason = "" if not entry.is_speech or normalise(entry.text) else "empty text"
        except VoxError as error:
            reason = str(error)
        if reason:
            imported.leave_out(name, reason)
        else:
            entry = replace(entry, audio=path)
            unique = _name_by_path(entry, folder) if entry.id is None else entry.id
            if unique in audio_of:  # talk.flac beside talk.wav, a/b-c.wav beside a-b/c.wav
                imported.leave_out(name, f"its id {unique} is also that of {audio_of[unique]}: rename one")
                continue
            audio_of[unique] = path
            yield replace(entry, id=unique)


def _name_by_path(entry: Entry, folder: str) -> str:
    """Return an id that depends on no other entry, so that it stays when a corpus grows.

    It is the recording's path from the source's folder without its suffix, and of a segment also its start
    and end in milliseconds: `anna-talk-001000-002500`.
    """
    path = PurePath(os.path.relpath(entry.audio, folder)).with_suffix("")
    parts = [part for part in path.parts if part != os.pardir]
    if entry.segment is not None:
        ends = (entry.segment.offset, entry.segment.end)
        parts += [f"{round(1000 * seconds):06d}" for seconds in ends if seconds < float("inf")]
    return "-".join(parts)

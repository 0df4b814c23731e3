"""Read a folder of recordings, each with a text file of the same name (X.wav and X.txt or X.lab), or none."""

from pathlib import Path

from vox.corpora.imported import Imported, read_lines
from vox.corpus import AUDIO_SUFFIXES
from vox.manifest import Entry

TEXT_SUFFIXES = (".txt", ".lab")


def find_texts(folder: Path) -> bool:
    """Return whether any recording has a text file beside it."""
    return any(_text_of(path) is not None for path in _find_recordings(folder))


def read_folder(folder: Path) -> Imported:
    """Read a folder at any depth; the speaker is the first folder below it."""
    imported = Imported(folder)
    used = set()
    for path in _find_recordings(folder):
        name = path.relative_to(folder)
        text_path = _text_of(path)
        if text_path is None:
            imported.leave_out(name, "a recording without a text")
            continue
        used.add(text_path)
        text = " ".join(" ".join(read_lines(text_path)).split())
        speaker = name.parts[0] if len(name.parts) > 1 else ""
        imported.entries.append(Entry(str(name), text, None, speaker))
    for suffix in TEXT_SUFFIXES:
        for path in sorted(set(folder.rglob(f"*{suffix}")) - used):
            imported.leave_out(path.relative_to(folder), "a text without a recording")
    return imported


def read_without_speech(folder: Path) -> Imported:
    """Read a folder of recordings in which nothing is spoken, at any depth.

    A recording with a text beside it is left out.
    """
    imported = Imported(folder)
    for path in _find_recordings(folder):
        if _text_of(path) is None:
            imported.entries.append(Entry(str(path.relative_to(folder)), "", is_speech=False))
        else:
            imported.leave_out(path.relative_to(folder), "it has a text, so something is spoken in it")
    return imported


def _find_recordings(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    return sorted(path for path in paths if not path.name.startswith("."))


def _text_of(path: Path) -> Path | None:
    return next((p for p in map(path.with_suffix, TEXT_SUFFIXES) if p.is_file()), None)

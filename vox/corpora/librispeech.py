"""Read LibriSpeech's layout, at any depth: recordings with `.trans.txt` files of lines `ID TEXT`."""

import os
from pathlib import Path

from vox.corpora.imported import Imported, read_lines
from vox.corpus import AUDIO_SUFFIXES
from vox.manifest import Entry

TRANSCRIPTS = "*.trans.txt"


def read_librispeech(folder: Path) -> Imported:
    """Read every folder below; the speaker is the first folder. Lists what has no partner, or two."""
    imported = Imported(folder)
    for path, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        _read_chapter(Path(path), imported)
    return imported


def _read_chapter(chapter_dir: Path, imported: Imported) -> None:
    chapter = chapter_dir.relative_to(imported.folder)
    speaker = chapter.parts[0] if chapter.parts else ""
    recordings = _list_recordings(chapter_dir)
    used = set()
    for transcripts in sorted(chapter_dir.glob(TRANSCRIPTS)):
        for line in read_lines(transcripts):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            files = recordings.get(name, [])
            used.add(name)
            if len(files) == 1:
                imported.entries.append(Entry(str(chapter / files[0]), text.strip(), name, speaker))
            else:
                what = (
                    f"two recordings ({' and '.join(files)})" if files else "a transcript without a recording"
                )
                imported.leave_out(name, f"{what}: {transcripts}")
    for name in sorted(recordings.keys() - used):
        imported.leave_out(name, f"a recording without a transcript: {chapter / recordings[name][0]}")


def _list_recordings(folder: Path) -> dict[str, list[str]]:
    """Return the recordings of a folder: name without suffix to file names."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path.name)
    return found

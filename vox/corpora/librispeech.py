"""Read LibriSpeech's layout, at any depth: recordings with a `.trans.txt` of lines `ID TEXT` beside them."""

from pathlib import Path

from vox.corpora.imported import Imported, read_lines
from vox.corpus import AUDIO_SUFFIXES
from vox.manifest import Entry

TRANSCRIPTS = "*.trans.txt"


def read_librispeech(folder: Path) -> Imported:
    """Read every transcript file below a folder; the speaker is the first folder below it."""
    imported = Imported(folder)
    for transcripts in sorted(folder.rglob(TRANSCRIPTS)):
        chapter = transcripts.parent.relative_to(folder)
        speaker = chapter.parts[0] if chapter.parts else ""
        recordings = _list_recordings(transcripts.parent)
        for line in read_lines(transcripts):
            name, _, text = line.strip().partition(" ")
            if name in recordings:
                entry = Entry(str(chapter / recordings.pop(name)), text.strip(), name, speaker)
                imported.entries.append(entry)
            elif name:
                imported.leave_out(name, f"a transcript without a recording: {transcripts}")
        for name, file_name in sorted(recordings.items()):
            imported.leave_out(name, f"a recording without a transcript: {chapter / file_name}")
    return imported


def _list_recordings(folder: Path) -> dict[str, str]:
    """Return the recordings of a folder: name without suffix to file name."""
    paths = (path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    return {path.stem: path.name for path in paths if not path.name.startswith(".")}

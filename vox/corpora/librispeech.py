"""Read LibriSpeech's layout, at any depth: recordings with `.trans.txt` files of lines `ID TEXT`."""

from pathlib import Path

from vox.corpora.imported import Imported, read_lines
from vox.corpus import list_chapter, walk_chapters
from vox.errors import CorpusError
from vox.manifest import Entry

TRANSCRIPTS = "*.trans.txt"


def read_librispeech(folder: Path) -> Imported:
    """Read every folder below; the speaker is the first folder. Lists what has no partner, or two."""
    imported = Imported(folder)
    for chapter_dir, speaker in walk_chapters(folder):
        _read_chapter(chapter_dir, speaker, imported)
    return imported


def _read_chapter(chapter_dir: Path, speaker: str, imported: Imported) -> None:
    chapter = chapter_dir.relative_to(imported.folder)
    recordings, transcript_names = list_chapter(chapter_dir)
    used = set()
    for transcripts in (chapter_dir / name for name in transcript_names):
        try:
            lines = list(read_lines(transcripts))
        except CorpusError as error:  # not UTF-8
            imported.leave_out(chapter / transcripts.name, str(error))
            continue
        for line in lines:
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            files = recordings.get(name, [])
            used.add(name)
            if len(files) == 1:
                imported.entries.append(Entry(str(chapter / files[0]), text.strip(), name, speaker))
            else:
                lacks = "a transcript without a recording"
                what = f"two recordings ({' and '.join(files)})" if files else lacks
                imported.leave_out(name, f"{what}: {transcripts}")
    for name in sorted(recordings.keys() - used):
        imported.leave_out(name, f"a recording without a transcript: {chapter / recordings[name][0]}")

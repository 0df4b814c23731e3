"""Read a folder of recordings, each with a text file of the same name (X.wav and X.txt or X.lab), or none."""

from pathlib import Path

from vox.corpora.imported import Imported, read_lines
from vox.corpus import AUDIO_SUFFIXES
from vox.errors import CorpusError
from vox.manifest import Entry

TEXT_SUFFIXES = (".txt", ".lab")  # in any case; of two texts of a recording the first counts


def find_texts(folder: Path) -> bool:
    """Return whether any recording has a text file beside it."""
    texts = _find_text_files(folder)
    return any(path.with_suffix("") in texts for path in _find_recordings(folder))


def read_folder(folder: Path) -> Imported:
    """Read a folder at any depth; the speaker is the first folder below it."""
    imported = Imported(folder)
    texts, used = _find_text_files(folder), set()
    for path in _find_recordings(folder):
        name = path.relative_to(folder)
        if path.with_suffix("") not in texts:
            imported.leave_out(name, "a recording without a text")
            continue
        used.add(path.with_suffix(""))
        try:
            text = " ".join(" ".join(read_lines(texts[path.with_suffix("")])).split())
        except CorpusError as error:  # not UTF-8
            imported.leave_out(name, str(error))
        else:
            imported.entries.append(Entry(str(name), text, None, _speaker_of(name)))
    for stem in sorted(texts.keys() - used):
        imported.leave_out(texts[stem].relative_to(folder), "a text without a recording")
    return imported


def read_without_speech(folder: Path) -> Imported:
    """Read a folder of recordings in which nothing is spoken, at any depth; other files are ignored."""
    names = [path.relative_to(folder) for path in _find_recordings(folder)]
    entries = [Entry(str(name), "", None, _speaker_of(name), is_speech=False) for name in names]
    return Imported(folder, entries)


def _speaker_of(name: Path) -> str:
    return name.parts[0] if len(name.parts) > 1 else ""


def _find_recordings(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    return sorted(path for path in paths if not path.name.startswith("."))


def _find_text_files(folder: Path) -> dict[Path, Path]:
    """Return the text files by their paths without suffix."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in TEXT_SUFFIXES and path.is_file()]
    paths.sort(key=lambda path: (TEXT_SUFFIXES.index(path.suffix.lower()), path), reverse=True)
    return {path.with_suffix(""): path for path in paths}

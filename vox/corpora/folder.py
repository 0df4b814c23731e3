"""Read a folder of recordings, each with a text file of the same name (X.wav and X.txt or X.lab), or none."""

from pathlib import Path

from vox.corpora.imported import Imported, read_lines
from vox.corpus import AUDIO_SUFFIXES
from vox.errors import CorpusError
from vox.manifest import Entry

TEXT_SUFFIXES = (".txt", ".lab")  # in any case; the first comes first


def find_texts(folder: Path) -> bool:
    """Return whether any recording has a text file beside it."""
    stems = {path.with_suffix("") for path in _find_text_files(folder)}
    return any(path.with_suffix("") in stems for path in _find_recordings(folder))


def read_folder(folder: Path) -> Imported:
    """Read a folder at any depth; the speaker is the first folder below it."""
    imported = Imported(folder)
    text_paths, used = _find_text_files(folder), set()
    texts = {path.with_suffix(""): path for path in reversed(text_paths)}  # of several the first
    for path in _find_recordings(folder):
        name, text_path = path.relative_to(folder), texts.get(path.with_suffix(""))
        if text_path is None:
            imported.leave_out(name, "a recording without a text")
            continue
        used.add(text_path)
        try:
            text = " ".join(" ".join(read_lines(text_path)).split())
        except CorpusError as error:  # not UTF-8
            imported.leave_out(name, str(error))
        else:
            speaker = name.parts[0] if len(name.parts) > 1 else ""
            imported.entries.append(Entry(str(name), text, None, speaker))
    for path in sorted(set(text_paths) - used):
        is_second = texts[path.with_suffix("")] in used
        reason = "a second text of its recording" if is_second else "a text without a recording"
        imported.leave_out(path.relative_to(folder), reason)
    return imported


def read_without_speech(folder: Path) -> Imported:
    """Read a folder of recordings in which nothing is spoken, at any depth.

    A recording with a text beside it is left out.
    """
    imported = Imported(folder)
    with_text = {path.with_suffix("") for path in _find_text_files(folder)}
    for path in _find_recordings(folder):
        if path.with_suffix("") not in with_text:
            imported.entries.append(Entry(str(path.relative_to(folder)), "", is_speech=False))
        else:
            imported.leave_out(
                path.relative_to(folder), "a text is beside it: remove the text if nothing is spoken"
            )
    return imported


def _find_recordings(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    return sorted(path for path in paths if not path.name.startswith("."))


def _find_text_files(folder: Path) -> list[Path]:
    """Return the text files, in the order of TEXT_SUFFIXES."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in TEXT_SUFFIXES and path.is_file()]
    return sorted(paths, key=lambda path: (TEXT_SUFFIXES.index(path.suffix.lower()), path))

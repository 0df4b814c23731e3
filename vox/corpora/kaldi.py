"""Read Kaldi data folders: wav.scp, text, and optionally segments and utt2spk."""

import math
from pathlib import Path

from vox.corpora.imported import Imported, read_lines
from vox.errors import CorpusError
from vox.manifest import Entry
from vox.segment import Segment


def read_kaldi(folder: Path) -> Imported:
    """Read a data folder. Recordings that wav.scp gives as a command (ending with |) are excluded."""
    imported = Imported(folder)
    recordings = _read_table(folder / "wav.scp")
    texts = _read_table(folder / "text")
    speakers = _read_table(folder / "utt2spk") if (folder / "utt2spk").exists() else {}
    has_segments = (folder / "segments").exists()
    segments = _read_table(folder / "segments") if has_segments else {name: name for name in recordings}
    for name, row in segments.items():
        try:
            recording, segment = _parse_segment(row) if has_segments else (row, None)
        except ValueError:
            imported.leave_out(name, f"a malformed line in segments: {row}")
            continue
        audio = recordings.get(recording)
        if audio is None:
            imported.leave_out(name, f"recording {recording} is not in wav.scp")
        elif audio.endswith("|"):
            imported.leave_out(name, "wav.scp has a command, not a file")
        elif name not in texts:
            imported.leave_out(name, "no text")
        else:
            audio = _locate(audio, folder)
            imported.entries.append(Entry(audio, texts[name], name, speakers.get(name, ""), segment))
    for name in texts.keys() - segments.keys():
        imported.leave_out(name, f"text without {'a segment' if has_segments else 'a recording'}")
    return imported


def _locate(audio: str, folder: Path) -> str:
    """Resolve a path of wav.scp: relative to the recipe's folder (two above data/train)."""
    from_recipe = folder.absolute().parent.parent / audio
    return str(from_recipe) if from_recipe.is_file() else audio


def _read_table(path: Path) -> dict[str, str]:
    """Read `key value` lines; raise CorpusError for a key that occurs twice."""
    if not path.exists():
        raise CorpusError("a file of Kaldi's data folder is missing", where=path, remedy="put it there")
    table: dict[str, str] = {}
    for line in read_lines(path):
        key, *values = line.split(maxsplit=1)[:2] or [""]
        if key in table:
            raise CorpusError(f"{key} occurs twice", where=path, remedy="run utils/fix_data_dir.sh")
        if key:
            table[key] = values[0].strip() if values else ""
    return table


def _parse_segment(row: str) -> tuple[str, Segment]:
    """Parse `recording start end`; an end below 0 means the recording's end."""
    recording, start_text, end_text = row.split()
    start, end = float(start_text), float(end_text)
    if not math.isfinite(start) or not math.isfinite(end) or start < 0 or 0 <= end <= start:
        raise ValueError(row)
    return recording, Segment(start, None if end < 0 else round(end - start, 6))

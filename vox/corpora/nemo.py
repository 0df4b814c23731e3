"""Read NeMo manifests: JSON lines of audio_filepath, text, duration and offset."""

from collections import Counter
from pathlib import Path
from typing import Any

from vox.corpora.imported import Imported, read_objects
from vox.manifest import Entry
from vox.segment import Segment


def read_nemo(path: Path) -> Imported:
    """Read a manifest. `duration` alone means the whole recording, unless other lines name that recording."""
    imported = Imported(path.parent)
    rows = list(read_objects(path, imported))
    counts = Counter(str(row.get("audio_filepath")) for _, row in rows)
    for where, row in rows:
        audio, text, duration = row.get("audio_filepath"), row.get("text"), row.get("duration")
        offset = row.get("offset") or 0
        if not isinstance(audio, str) or not audio:
            imported.leave_out(where, "no audio_filepath")
        elif not isinstance(text, str):
            imported.leave_out(where, "no text")
        elif not _is_time(offset) or not (duration is None or (_is_time(duration) and duration > 0)):
            imported.leave_out(where, "offset or duration is not a number of seconds")
        else:
            segment = None
            if offset or (counts[audio] > 1 and duration is not None):
                segment = Segment(float(offset), None if duration is None else float(duration))
            speaker = str(row.get("speaker") or "")
            imported.entries.append(Entry(audio, text, None, speaker, segment))
    return imported


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")

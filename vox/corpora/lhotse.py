"""Read lhotse's JSON lines: cuts, or recordings and supervisions."""

from pathlib import Path
from typing import Any

from vox.corpora.imported import Imported, read_objects
from vox.manifest import Entry
from vox.segment import Segment


class _NotTakenError(Exception):
    """Why a supervision cannot be an utterance of a manifest."""


def read_cuts(path: Path) -> Imported:
    """Read cuts: one utterance a supervision. A supervision's times are relative to its cut's start."""
    imported = Imported(path.parent)
    for where, cut in read_objects(path, imported):
        name = str(cut.get("id", where))
        if cut.get("type", "MonoCut") != "MonoCut":
            imported.leave_out(name, f"a {cut['type']}: it is no part of one recording")
        elif not isinstance(cut.get("recording"), dict):
            imported.leave_out(name, "a cut without a recording")
        elif not isinstance(cut.get("supervisions"), list) or not cut["supervisions"]:
            imported.leave_out(name, "a cut without a supervision")
        else:
            for supervision in cut["supervisions"]:
                _add(imported, supervision, cut["recording"], cut.get("start", 0.0))
    return imported


def read_recordings(recordings_path: Path, supervisions_path: Path) -> Imported:
    """Read recordings and supervisions: one utterance a supervision."""
    imported = Imported(recordings_path.parent)
    recordings = {row.get("id"): row for _, row in read_objects(recordings_path, imported)}
    for where, supervision in read_objects(supervisions_path, imported):
        recording = recordings.get(supervision.get("recording_id"))
        if recording is None:
            imported.leave_out(supervision.get("id", where), "its recording is not in the list of recordings")
        else:
            _add(imported, supervision, recording, 0.0)
    return imported


def _add(imported: Imported, supervision: dict[str, Any], recording: dict[str, Any], start: float) -> None:
    name = str(supervision.get("id")) if isinstance(supervision, dict) else "a supervision"
    try:
        if recording.get("transforms"):
            raise _NotTakenError("its recording is transformed (speed, volume, …)")
        text = supervision.get("text")
        if not isinstance(text, str):
            raise _NotTakenError("no text")
        audio, channel = _find_file(recording, supervision.get("channel", 0))
        # lhotse's own sums have rounding errors of a few 1e-9 s.
        offset = max(0.0, round(start + supervision["start"], 6))
        duration = round(float(supervision["duration"]), 6)
        if not (0 < duration < float("inf") and offset < float("inf")):
            raise ValueError
        is_whole = offset == 0 and abs(duration - recording.get("duration", 0)) < 1e-3
        segment = Segment(offset, None if is_whole else duration, channel)
        segment_or_none = None if segment == Segment() else segment
        speaker = str(supervision.get("speaker") or "")
        imported.entries.append(Entry(audio, text, name, speaker, segment_or_none))
    except _NotTakenError as reason:
        imported.leave_out(name, str(reason))
    except (AttributeError, KeyError, TypeError, ValueError):
        imported.leave_out(name, "a malformed supervision")


def _find_file(recording: dict[str, Any], channel: Any) -> tuple[str, int | None]:
    """Return the file with a channel, and the channel's index in it; None if it is the file's only one."""
    if type(channel) is not int:
        raise _NotTakenError("of several channels at once")
    for source in recording.get("sources", []):
        channels = source.get("channels", [])
        if channel in channels:
            if source.get("type") != "file":
                raise _NotTakenError(f"its recording is a {source.get('type')}, not a file")
            return source["source"], channels.index(channel) if len(channels) > 1 else None
    raise _NotTakenError(f"no channel {channel} in its recording")

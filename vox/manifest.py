"""Vox's own manifest, version 1: JSON lines (docs/corpora.md lists every key)."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from vox.segment import Segment

MANIFEST_VERSION = 1

# Keys that change which audio is meant and that Vox does not support. Ignoring them would give wrong texts.
_REFUSED_KEYS = frozenset(
    "start end begin stop start_time end_time channels channel_selector speed tempo gain volume".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a manifest.

    id: None if the line has none. is_speech: False if nothing is spoken in it; the text is empty then.
    """

    audio: str
    text: str
    id: str | None = None
    speaker: str = ""
    segment: Segment | None = None
    is_speech: bool = True

    def to_line(self) -> str:
        """Format the entry as a line, without absent keys."""
        fields: dict[str, Any] = {"audio": self.audio}
        fields |= {"text": self.text} if self.is_speech else {"speech": False}
        if self.id is not None:
            fields["id"] = self.id
        if self.speaker:
            fields["speaker"] = self.speaker
        if self.segment is not None:
            fields["offset"] = self.segment.offset
            if self.segment.duration is not None:
                fields["duration"] = self.segment.duration
            if self.segment.channel is not None:
                fields["channel"] = self.segment.channel
        return json.dumps(fields, ensure_ascii=False) + "\n"


def parse_entry(line: str) -> Entry:
    """Parse a line; raise ValueError with the reason if it is invalid."""
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if isinstance(entry, list):
        raise ValueError("a JSON array; write one object a line")
    if not isinstance(entry, dict):
        raise ValueError("not an object of keys and values")
    if "audio" not in entry and "audio_filepath" in entry:  # NeMo's name
        entry["audio"] = entry.pop("audio_filepath")
    if "audio" not in entry and {"recording", "supervisions", "recording_id"} & entry.keys():
        raise ValueError("a line of lhotse's; convert it with `vox corpus import`")
    unread = sorted(key for key in _REFUSED_KEYS & entry.keys() if entry[key] not in (None, 0))
    if unread:
        raise ValueError(f"`{unread[0]}` is not understood; a part of a recording is `offset` and `duration`")
    is_speech = _parse_speech(entry)
    for key, kinds in (("audio", (str,)), ("text", (str,)), ("id", (str, int)), ("speaker", (str, int))):
        value = entry.get(key)
        if value is None and key in ("id", "speaker"):
            entry.pop(key, None)
        elif type(value) not in kinds or (value == "" and key in ("audio", "id")):
            raise ValueError(f"no `{key}`" if value in (None, "") else f"`{key}` is not a string")
    if "://" in entry["audio"]:
        raise ValueError("`audio` is an address; fetch the file first and give its path")
    name = str(entry["id"]) if "id" in entry else None
    speaker, segment = str(entry.get("speaker", "")), _parse_segment(entry)
    return Entry(entry["audio"], entry["text"], name, speaker, segment, is_speech)


def _parse_speech(entry: dict[str, Any]) -> bool:
    """Return what `speech` says; give a line without speech its empty text."""
    value = entry.get("speech")
    if value is not None and not isinstance(value, bool):
        raise ValueError("`speech` is not true or false")
    if value is not False:
        return True
    if entry.get("text") not in (None, ""):
        raise ValueError("`speech` is false, and `text` is not empty")
    entry["text"] = ""
    return False


def _parse_segment(entry: dict[str, Any]) -> Segment | None:
    """Return the segment of a line; None for the whole recording."""
    if entry.keys().isdisjoint(("offset", "duration", "channel")):
        return None
    given = {key: entry[key] for key in ("offset", "duration", "channel") if entry.get(key) is not None}
    for key in given.keys() - {"channel"}:
        if type(given[key]) not in (int, float) or not math.isfinite(given[key]) or given[key] < 0:
            raise ValueError(f"`{key}` is not a number of seconds")
    if "channel" in given and (type(given["channel"]) is not int or given["channel"] < 0):
        raise ValueError("`channel` is not the number of a channel, counted from 0")
    if given.get("duration") == 0:
        raise ValueError("an empty segment (`duration` is 0)")
    if "duration" in given:
        given["duration"] = float(given["duration"])
    segment = Segment(**{**given, "offset": float(given.get("offset", 0))})
    return None if segment == Segment() else segment


def name_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Name entries without an id after their recording, with a number if it has several segments.

    Numbers count a recording's segments in the order of the lines, from 0: `talk-0000`, `talk-0001`.
    """
    unnamed = Counter(entry.audio for entry in entries if entry.id is None and entry.segment is not None)
    seen: Counter[str] = Counter()
    named = []
    for entry in entries:
        if entry.id is None:
            name = PurePath(entry.audio).stem
            if entry.segment is not None and unnamed[entry.audio] > 1:
                name = f"{name}-{seen[entry.audio]:04d}"
                seen[entry.audio] += 1
            entry = replace(entry, id=name)
        named.append(entry)
    return named


def join_lines(entries: Iterable[Entry]) -> str:
    """Write a manifest's text."""
    return "".join(entry.to_line() for entry in entries)

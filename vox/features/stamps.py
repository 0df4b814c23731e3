"""Stamps of the recordings behind a cache: has one changed since, by names, sizes and times alone.

`audio.jsonl` lies beside a cache's shards and never inside: times of files differ between two copies of
a corpus, and shards do not. A stamp is taken before its recording is decoded, so a false "changed" is
possible and a false "unchanged" is not; the sha256 in the shard then decides. A recording's length stands
beside the stamp that it was read under: in two files they could be of two different runs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vox.disk import add_checksum, strip_checksum, write_whole
from vox.errors import CacheError
from vox.features.plan import parse_lines
from vox.segment import Segment

STAMPS_NAME = "audio.jsonl"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the file system says of a recording."""

    path: str  # relative to the corpus's root, unless the recording lies elsewhere
    num_bytes: int
    mtime_ns: int
    segment: str = ""  # `Segment` written out; empty for the whole recording


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording as it was when its cache was begun."""

    stamp: Stamp
    num_samples: int  # at 16 kHz and the cache's speed


def take_stamp(path: Path, root: Path, segment: Segment | None = None) -> Stamp | None:
    """Look at a file; None where there is none to look at."""
    try:
        status = path.stat()
    except OSError:
        return None
    name = str(path).removeprefix(f"{root}/")
    return Stamp(name, status.st_size, status.st_mtime_ns, "" if segment is None else str(segment))


def write_stamps(folder: Path, recordings: Mapping[str, Recorded]) -> None:
    """Put the stamps and lengths of a cache's recordings, by utterance, into its folder."""
    lines = []
    for name, recorded in sorted(recordings.items()):
        stamp = recorded.stamp
        segment = [stamp.segment] if stamp.segment else []
        row = [name, stamp.path, stamp.num_bytes, stamp.mtime_ns, *segment, recorded.num_samples]
        lines.append(f"{json.dumps(row)}\n")
    write_whole(folder / STAMPS_NAME, add_checksum("".join(lines).encode()))


def read_stamps(folder: Path) -> dict[str, Recorded]:
    """Read the stamps of a cache's recordings; raise CacheError when they are missing or damaged."""
    path = folder / STAMPS_NAME
    remedy = "run vox precompute again: it compares the recordings with the shards, and repairs this file"
    try:
        content = strip_checksum(path.read_bytes())
    except FileNotFoundError:
        raise CacheError("the list of a cache's recordings is missing", where=path, remedy=remedy) from None
    if content is None:
        raise CacheError("the list of a cache's recordings is damaged", where=path, remedy=remedy)
    try:
        rows = parse_lines(content)
        return {name: Recorded(Stamp(*stamp), num_samples) for name, *stamp, num_samples in rows}
    except (TypeError, ValueError):  # another Vox's
        raise CacheError("the list of a cache's recordings is damaged", where=path, remedy=remedy) from None

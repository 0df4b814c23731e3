"""Stamps of the recordings behind a cache: has one changed since, told from sizes and times alone.

`audio.jsonl` lies beside a cache's shards and never inside: times of files differ between two copies of
a corpus, and shards do not. A stamp is taken before its recording is decoded, so that one which has
changed since can look changed without being so, and never the other way round; the sha256 in the shard
then decides.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vox.errors import CacheError
from vox.features.files import write_whole

STAMPS_NAME = "audio.jsonl"


@dataclass(frozen=True)
class Stamp:
    """What the file system says of a recording."""

    num_bytes: int
    mtime_ns: int


def take_stamp(path: Path) -> Stamp | None:
    """Look at a file; None where there is none to look at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def write_stamps(folder: Path, stamps: Mapping[str, Stamp]) -> None:
    """Put the stamps of a cache's recordings, by utterance, into its folder."""
    lines = [
        f"{json.dumps([name, stamp.num_bytes, stamp.mtime_ns])}\n" for name, stamp in sorted(stamps.items())
    ]
    content = "".join(lines).encode()
    write_whole(folder / STAMPS_NAME, _make_head(content) + content)


def read_stamps(folder: Path) -> dict[str, Stamp]:
    """Read the stamps of a cache's recordings; raise CacheError when they are missing or damaged."""
    path = folder / STAMPS_NAME
    remedy = "run vox precompute again: it compares the recordings with the shards, and mends this file"
    try:
        head, newline, content = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise CacheError("the list of a cache's recordings is missing", where=path, remedy=remedy) from None
    if head + newline != _make_head(content):
        raise CacheError("the list of a cache's recordings is damaged", where=path, remedy=remedy)
    rows = map(json.loads, content.decode().splitlines())
    return {name: Stamp(num_bytes, mtime_ns) for name, num_bytes, mtime_ns in rows}


def _make_head(content: bytes) -> bytes:
    return json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode() + b"\n"

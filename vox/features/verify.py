"""A cache read again whole: every fault in it, a line each, whatever else is wrong."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vox.audio import hash_recording
from vox.disk import is_abandoned, is_part
from vox.errors import CacheError, name_count, name_first
from vox.features.cache import open_planned
from vox.features.plan import (
    PLAN_NAME,
    UTTERANCES_NAME,
    CachePlan,
    ShardPlan,
    read_plan,
    read_utterances,
)
from vox.features.shard import Shard, check_bytes, damaged
from vox.features.stamps import STAMPS_NAME, read_stamps
from vox.segment import Segment

HASHING_THREADS = 4
MISSING = "missing"

Recording = tuple[Path, Segment | None]  # a file, and which part of it


def verify_cache(folder: Path) -> Iterator[str]:
    """Re-read a cache whole and say every fault in it, one line each."""
    try:
        plan = read_plan(folder)
    except CacheError as fault:
        yield str(fault)
        return
    except OSError as error:
        yield f"unreadable plan ({error.strerror}): {folder / PLAN_NAME}"
        return
    if plan is None:
        yield f"missing plan: {folder / PLAN_NAME}"
        return
    if plan.fingerprint.prefix != folder.name or plan.split != folder.parent.name:
        yield f"cache in another folder than its own ({plan.split}/{plan.fingerprint.prefix}): {folder}"
    lists: dict[str, Callable[[], object]] = {
        UTTERANCES_NAME: lambda: read_utterances(folder, plan),
        STAMPS_NAME: lambda: read_stamps(folder),
    }
    for name, read in lists.items():
        try:
            read()
        except CacheError as fault:
            yield str(fault)
        except OSError as error:
            yield f"unreadable list ({error.strerror}): {folder / name}"
    names = {shard.name for shard in plan.shards}
    for path in sorted(folder.iterdir()):
        if path.name not in names and path.name not in (PLAN_NAME, UTTERANCES_NAME, STAMPS_NAME):
            yield from _verify_other(path)
    for planned in plan.shards:
        yield from _verify_shard(folder, plan, planned)


def verify_audio(
    folder: Path, recordings: Mapping[str, Recording], hashes: dict[Recording, tuple[str, str]]
) -> Iterator[str]:
    """Hash a cache's recordings again; name each that has changed since its features were made.

    Those that are not there are one line: a disk that is not mounted would be thousands.

    recordings: the split's, by utterance. hashes: of those that were hashed before, and what to call each if
    another is expected; it is added to. A plan or a shard that is missing or damaged is `verify_cache`'s to
    report.
    """
    absent = []
    for shard in _open_readable(folder):
        rows = list(shard.live_rows())
        found = [recordings.get(name) for _, name in rows]
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            wanted = list({each for each in found if each is not None and each not in hashes})
            hashes.update(zip(wanted, pool.map(_hash_or_explain, wanted), strict=True))
        for (row, name), recording in zip(rows, found, strict=True):
            if recording is None or hashes[recording][1] == MISSING:
                absent.append(name)
            elif hashes[recording][0] != shard.audio_sha256(row):
                yield f"{hashes[recording][1]} recording: {name}: {recording[0]} ({shard.path})"
    if absent:
        names = f"{name_count(len(absent), 'utterance')} ({name_first(absent)})"
        yield f"no recording, or no longer in the split: {names}"


def _hash_or_explain(recording: Recording) -> tuple[str, str]:
    try:
        sha256 = hash_recording(*recording)
    except OSError as error:
        return "", f"unreadable ({error.strerror})"
    return sha256, "changed" if sha256 else MISSING


def _open_readable(folder: Path) -> Iterator[Shard]:
    """Open what can be opened of a cache's shards."""
    try:
        plan = read_plan(folder)
    except (CacheError, OSError):
        return
    if plan is not None:
        for planned in plan.shards:
            with contextlib.suppress(CacheError, OSError):
                yield open_planned(folder, plan, planned)


def _verify_other(path: Path) -> Iterator[str]:
    """Say what a file is that is not a cache's own: foreign, or unfinished and left alone."""
    try:
        if not is_part(path):
            yield f"foreign file: {path}"
        elif is_abandoned(path):
            yield f"left by a run that died, removed by the next vox precompute: {path}"
    except FileNotFoundError:  # finished, or removed, meanwhile
        return
    except OSError as error:
        yield f"unfinished, and it cannot be found out whether its run is dead ({error.strerror}): {path}"


def _verify_shard(folder: Path, plan: CachePlan, planned: ShardPlan) -> Iterator[str]:
    path = folder / planned.name
    try:
        yield from _find_faults(path, plan, planned)
    except OSError as error:
        yield f"unreadable shard ({error.strerror}): {path}"


def _find_faults(path: Path, plan: CachePlan, planned: ShardPlan) -> Iterator[str]:
    if not path.exists():
        yield f"missing shard: {path}"
        return
    # Bytes first: HDF5 is not asked to parse a file that is known to be damaged.
    if not check_bytes(path):
        yield str(damaged(path, "its bytes do not have their checksum"))
        return
    try:
        shard = open_planned(path.parent, plan, planned)
    except CacheError as fault:
        yield str(fault)
        return
    for row in range(len(shard)):
        if not shard.skipped[row]:
            try:
                shard.read(row)
            except CacheError as fault:
                yield str(fault)

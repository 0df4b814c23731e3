"""A split's recordings as they are now, against what its cache was made from."""

import contextlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from precompute.plan import CacheWork
from vox.audio import hash_recording
from vox.corpus import Utterance
from vox.errors import CacheError, name_first
from vox.features.plan import read_plan, read_utterances
from vox.features.shard import Shard
from vox.features.stamps import Stamp, read_stamps, take_stamp

log = logging.getLogger(__name__)

HASHING_THREADS = 4


class Recordings:
    """Stamps of a split's recordings, taken before any is read, and those that a cache has recorded."""

    def __init__(self, recorded: dict[str, Stamp], lengths: dict[str, int]) -> None:
        self.recorded = recorded  # by utterance
        self.stamps: dict[str, Stamp] = {}
        self._lengths = lengths  # samples, as cached

    @classmethod
    def recall(cls, folder: Path) -> "Recordings":
        """Read what a cache's folder has recorded: nothing where it is new or damaged."""
        lengths: dict[str, int] = {}
        with contextlib.suppress(CacheError):  # met again, and said, where the plan is compared
            plan = read_plan(folder)
            lengths = {} if plan is None else read_utterances(folder, plan)
        return cls(recall_stamps(folder), lengths)

    def known_length(self, utterance: Utterance) -> int | None:
        """Take an utterance's stamp; return its length if that is as recorded, so that no header is read."""
        stamp = take_stamp(utterance.audio_path)
        if stamp is None:
            return self._lengths.get(utterance.id) if self.recorded.get(utterance.id) == stamp else None
        self.stamps[utterance.id] = stamp
        return self._lengths.get(utterance.id) if self.recorded.get(utterance.id) == stamp else None


def recall_stamps(folder: Path) -> dict[str, Stamp]:
    """Read a cache's stamps; none where they are missing or damaged, so that all are made anew."""
    try:
        return read_stamps(folder)
    except CacheError:
        return {}


def refuse_changed(folder: Path, shards: Sequence[Shard], recordings: Recordings, work: CacheWork) -> None:
    """Raise CacheError if a recording behind one of these shards is another than when it was computed.

    A recording whose stamp is as recorded is not opened; of the others, the content decides.
    """
    expected = {
        name: shard.audio_sha256(row)
        for shard in shards
        for row, name in enumerate(shard.ids)
        if recordings.stamps.get(name) != recordings.recorded.get(name)
    }
    if not expected:
        return
    log.info("%s: comparing %d recordings with the cache", work.plan.title, len(expected))
    suspects = [u for shard in work.shards for u in shard.utterances if u.id in expected]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        found = pool.map(hash_recording, [utterance.audio_path for utterance in suspects])
        changed = [u.id for u, sha256 in zip(suspects, found, strict=True) if sha256 != expected[u.id]]
    if changed:
        raise CacheError(
            f"{len(changed)} recordings have changed since this cache was begun ({name_first(changed)})",
            where=folder,
            remedy="make it anew with --rebuild, or beside this one with another --features folder",
        )

"""A split's recordings as they are now, against what its cache was made from."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from precompute.plan import OVERFLOW, CacheWork
from vox.audio import hash_recording, read_audio
from vox.corpus import Utterance
from vox.errors import AudioError, CacheError, name_count, name_first
from vox.features.shard import Shard
from vox.features.stamps import STAMPS_NAME, Recorded, Stamp, read_stamps, take_stamp

log = logging.getLogger(__name__)

READING_THREADS = 4


class Recordings:
    """Stamps of a split's recordings, taken before any is read, and what a cache has recorded of them."""

    def __init__(self, recorded: dict[str, Recorded], root: Path, version: object = None) -> None:
        self.recorded = recorded  # by utterance
        self.stamps: dict[str, Stamp] = {}
        self._root = root
        self._version = version  # of the file that `recorded` was read from

    @classmethod
    def recall(cls, folder: Path, root: Path) -> "Recordings":
        """Read what a cache's folder has recorded of a corpus: nothing where it is new or damaged."""
        version = _find_version(folder)  # first: what is written later is another version
        return cls(recall_stamps(folder), root, version)

    def recall_again(self, folder: Path) -> dict[str, Recorded]:
        """Return what the folder has recorded by now; it is read again only if another rank wrote it."""
        return self.recorded if _find_version(folder) == self._version else recall_stamps(folder)

    def known_length(self, utterance: Utterance) -> int | None:
        """Take an utterance's stamp; return its length if that is as recorded, so that no header is read."""
        stamp = take_stamp(utterance.audio_path, self._root, utterance.segment)
        if stamp is not None:
            self.stamps[utterance.id] = stamp
        return self.recorded[utterance.id].num_samples if self.is_as_recorded(utterance.id) else None

    def is_as_recorded(self, name: str) -> bool:
        """Say whether an utterance's recording has the stamp that the cache has recorded."""
        recorded = self.recorded.get(name)
        return recorded is not None and recorded.stamp == self.stamps.get(name)


def recall_stamps(folder: Path) -> dict[str, Recorded]:
    """Read a cache's stamps; none where they are missing or damaged, so that all are made again."""
    try:
        return read_stamps(folder)
    except CacheError:
        return {}


def _find_version(folder: Path) -> tuple[int, int, int] | None:
    """Return what tells two versions of a cache's stamps apart: the file is replaced, never rewritten."""
    try:
        status = (folder / STAMPS_NAME).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def may_be_repaired(skipped: str) -> bool:
    """Say whether a shard's reason for an utterance without features lies in its recording."""
    return bool(skipped) and skipped != OVERFLOW


def find_readable(utterances: Sequence[Utterance]) -> list[str]:
    """Name the utterances whose recordings decode to their length; raise OSError if the disk fails."""

    def is_readable(utterance: Utterance) -> bool:
        try:
            waveform_S = read_audio(utterance.audio_path, utterance.speed, utterance.segment)
            return len(waveform_S) == utterance.num_samples
        except AudioError:
            return False

    with ThreadPoolExecutor(READING_THREADS) as pool:
        found = pool.map(is_readable, utterances)
        return [utterance.id for utterance, can in zip(utterances, found, strict=True) if can]


def refuse_changed(folder: Path, shards: Sequence[Shard], recordings: Recordings, work: CacheWork) -> None:
    """Raise CacheError if a recording behind one of these shards is another than when it was computed.

    A recording whose stamp is as recorded is not opened; of the others, the content decides. One that could
    not be decoded then may have been repaired.
    """
    expected = {
        name: (shard.audio_sha256(row), shard.path.name)
        for shard in shards
        for row, name in shard.live_rows()
        if not recordings.is_as_recorded(name) and not may_be_repaired(shard.skipped[row])
    }
    if not expected:
        return
    count = name_count(len(expected), "recording")
    log.info("%s: comparing %s with the cache", work.plan.title, count)
    suspects = [u for shard in work.shards for u in shard.utterances if u.id in expected]
    with ThreadPoolExecutor(READING_THREADS) as pool:
        found = pool.map(lambda u: hash_recording(u.audio_path, u.segment), suspects)
        changed = [u.id for u, sha256 in zip(suspects, found, strict=True) if sha256 != expected[u.id][0]]
    if changed:
        stale = sorted({expected[name][1] for name in changed})
        raise CacheError(
            f"{name_count(len(changed), 'recording')} changed since this cache was begun "
            f"({name_first(changed)})",
            where=folder,
            remedy=f"delete their shards ({name_first(stale)}) and run this again, compute all again with "
            "--rebuild, or beside this cache with another --features folder",
        )

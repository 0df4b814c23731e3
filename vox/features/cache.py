"""A split's cached features: finding the right cache, refusing a wrong one, reading from it.

Folder: <features>/<split>/<fingerprint prefix>/ with plan.json, utterances.jsonl, audio.jsonl,
shard-00000.h5, ...

C channels, T frames.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vox.audio import hash_recording
from vox.errors import CacheError, name_first
from vox.features.files import is_abandoned
from vox.features.fingerprint import Fingerprint, join_layers
from vox.features.plan import (
    PLAN_NAME,
    UTTERANCES_NAME,
    CachePlan,
    ShardPlan,
    hash_utterances,
    read_plan,
    read_utterances,
)
from vox.features.shard import Shard, check_bytes, damaged
from vox.features.stamps import STAMPS_NAME, read_stamps

DEFAULT_LAYERS = (9, 10, 11, 12)
HASHING_THREADS = 4


class FeatureCache:
    """All features of a split, whole and checked; safe across threads, fork and pickling."""

    def __init__(self, folder: Path, shards: list[Shard], prefixes: Sequence[str] | None = None) -> None:
        """Index the shards; with prefixes, one a shard, which go before the ids of its utterances."""
        self.folder = folder
        self.shards = shards
        self.feature_dim: int = shards[0].feature_dim
        self.ids: list[str] = []  # without the skipped ones, sorted
        self.num_samples: dict[str, int] = {}
        self.skipped: dict[str, str] = {}  # id to reason
        self._places: dict[str, tuple[int, int]] = {}  # id to (shard, row)
        for number, (shard, prefix) in enumerate(zip(shards, prefixes or [""] * len(shards), strict=True)):
            for row, name in enumerate(prefix + name for name in shard.ids):
                if shard.skipped[row]:
                    self.skipped[name] = shard.skipped[row]
                    continue
                self.ids.append(name)
                self.num_samples[name] = int(shard.num_samples[row])
                self._places[name] = (number, row)

    def num_frames(self, name: str) -> int:
        """Count an utterance's frames; raise CacheError for one that is not here."""
        shard, row = self._find(name)
        return int(shard.offsets[row + 1] - shard.offsets[row])

    def read(self, name: str) -> np.ndarray:
        """Return an utterance's features, [T, C] float16, checked against their crc32.

        Raises CacheError naming the shard and the utterance when they are damaged or gone, or when the
        cache does not hold the utterance.
        """
        shard, row = self._find(name)
        return shard.read(row)

    def _find(self, name: str) -> tuple[Shard, int]:
        try:
            number, row = self._places[name]
        except KeyError:
            reason = self.skipped.get(name)
            raise CacheError(
                f"utterance {name} was skipped ({reason})" if reason else f"utterance {name} is not cached",
                where=self.folder,
                remedy=_precompute_remedy(self.folder.parent.name, again=True),
            ) from None
        return self.shards[number], row


def merge_caches(caches: Mapping[str, FeatureCache]) -> FeatureCache:
    """Make one cache of several of the same width: an utterance's id is its cache's key and its own id."""
    assert len({cache.feature_dim for cache in caches.values()}) == 1
    shards = [(shard, key) for key, cache in caches.items() for shard in cache.shards]
    return FeatureCache(
        next(iter(caches.values())).folder, [shard for shard, _ in shards], [key for _, key in shards]
    )


def cache_dir(features_dir: Path, split: str, fingerprint: Fingerprint) -> Path:
    """Return the folder of the cache that a split and a fingerprint name."""
    return Path(features_dir) / split / fingerprint.prefix


def open_cache(features_dir: Path, split: str, fingerprint: Fingerprint) -> FeatureCache:
    """Open the cache of exactly these features.

    Raises CacheError when there is none, when there are others only (naming the parts that differ), when
    shards are missing, and when anything in it is damaged.
    """
    folder = cache_dir(features_dir, split, fingerprint)
    plan = read_plan(folder)
    if plan is None:
        raise _explain_absence(Path(features_dir), split, fingerprint)
    check_fingerprint(plan.fingerprint, fingerprint, folder)
    missing = missing_shards(folder, plan)
    if missing:
        raise CacheError(
            f"incomplete cache: {len(missing)} of {len(plan.shards)} shards missing ({name_first(missing)})",
            where=folder,
            remedy=_precompute_remedy(split, fingerprint, again=True),
        )
    return FeatureCache(folder, [open_planned(folder, plan, shard) for shard in plan.shards])


def open_planned(folder: Path, plan: CachePlan, planned: ShardPlan) -> Shard:
    """Open a shard and check that it holds what the plan says; raise CacheError if not."""
    shard = Shard(folder / planned.name)
    check_fingerprint(shard.fingerprint, plan.fingerprint, shard.path)
    if hash_utterances(shard.ids, shard.num_samples.tolist()) != planned.utterances_sha256:
        raise damaged(shard.path, "it holds other utterances than planned")
    if (shard.offsets[-1], shard.feature_dim) != (planned.num_frames, plan.feature_dim):
        raise damaged(shard.path, "its size is not as planned")
    return shard


def check_fingerprint(cached: Fingerprint, wanted: Fingerprint, where: Path) -> None:
    """Raise CacheError naming the parts in which two fingerprints differ."""
    differences = cached.differences(wanted)
    if differences:
        raise CacheError(
            f"the cached features are not this model's ({'; '.join(differences)})",
            where=where,
            remedy=_precompute_remedy(where.parent.name if where.is_dir() else None, wanted),
        )


def missing_shards(folder: Path, plan: CachePlan) -> list[str]:
    """Name the planned shards that are not there."""
    return [shard.name for shard in plan.shards if not (folder / shard.name).exists()]


@dataclass(frozen=True)
class CacheSummary:
    """One line of `vox cache list`."""

    folder: Path
    plan: CachePlan
    num_present: int  # shards
    num_bytes: int  # of the shards present
    num_skipped: int | None  # utterances; None when a shard cannot be read


def find_cache_dirs(features_dir: Path, split: str | None = None) -> list[Path]:
    """Return the folders of all caches (of a split), sorted; raise CacheError if there are none."""
    folders = list(_iterate_cache_dirs(Path(features_dir), split))
    if not folders:
        where = Path(features_dir) if split is None else Path(features_dir) / split
        raise CacheError("no cached features", where=where, remedy=_precompute_remedy(split or "SPLIT"))
    return folders


def summarise_cache(folder: Path) -> CacheSummary:
    """Read what there is of a cache, without its features; raise CacheError if its plan is damaged."""
    plan = read_plan(folder)
    assert plan is not None
    missing = set(missing_shards(folder, plan))
    paths = [folder / shard.name for shard in plan.shards if shard.name not in missing]
    try:
        num_skipped: int | None = sum(1 for path in paths for reason in Shard(path).skipped if reason)
    except CacheError:
        num_skipped = None
    num_bytes = sum(path.stat().st_size for path in paths)
    return CacheSummary(folder, plan, len(paths), num_bytes, num_skipped)


def verify_cache(folder: Path) -> Iterator[str]:
    """Re-read a cache whole and say every fault in it, one line each."""
    try:
        plan = read_plan(folder)
    except CacheError as fault:
        yield str(fault)
        return
    if plan is None:
        yield f"missing plan: {folder / PLAN_NAME}"
        return
    if plan.fingerprint.prefix != folder.name or plan.split != folder.parent.name:
        yield f"cache in another folder than its own ({plan.split}/{plan.fingerprint.prefix}): {folder}"
    for read in (lambda: read_utterances(folder, plan), lambda: read_stamps(folder)):
        try:
            read()
        except CacheError as fault:
            yield str(fault)
    names = {shard.name for shard in plan.shards}
    for path in sorted(folder.iterdir()):
        if path.name in names or path.name in (PLAN_NAME, UTTERANCES_NAME, STAMPS_NAME):
            continue
        if not path.name.endswith(".part"):
            yield f"foreign file: {path}"
        elif is_abandoned(path):
            yield f"left by a run that died, removed by the next vox precompute: {path}"
    for planned in plan.shards:
        yield from _verify_shard(folder, plan, planned)


def verify_audio(folder: Path, recordings: Mapping[str, Path], hashes: dict[Path, str]) -> Iterator[str]:
    """Hash a cache's recordings again and say every one that is not what its features were made from.

    recordings: the split's, by utterance. hashes: of files that were hashed before; it is added to. A plan
    or a shard that is missing or damaged is `verify_cache`'s to report.
    """
    for shard in _open_readable(folder):
        paths = [recordings.get(name) for name in shard.ids]
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            wanted = list({path for path in paths if path is not None and path not in hashes})
            hashes.update(zip(wanted, pool.map(hash_recording, wanted), strict=True))
        for row, (name, path) in enumerate(zip(shard.ids, paths, strict=True)):
            if path is None:
                yield f"missing recording: {name} is not in the split any more ({shard.path})"
            elif hashes[path] != shard.audio_sha256(row):
                how = "changed" if hashes[path] else "missing"
                yield f"{how} recording: {name}: {path} ({shard.path})"


def _open_readable(folder: Path) -> Iterator[Shard]:
    """Open what can be opened of a cache's shards."""
    try:
        plan = read_plan(folder)
    except CacheError:
        return
    if plan is not None:
        for planned in plan.shards:
            with contextlib.suppress(CacheError):
                yield open_planned(folder, plan, planned)


def _verify_shard(folder: Path, plan: CachePlan, planned: ShardPlan) -> Iterator[str]:
    path = folder / planned.name
    if not path.exists():
        yield f"missing shard: {path}"
        return
    # Bytes first: HDF5 is not asked to parse a file that is known to be damaged.
    if not check_bytes(path):
        yield str(damaged(path, "its bytes do not have their checksum"))
        return
    try:
        shard = open_planned(folder, plan, planned)
    except CacheError as fault:
        yield str(fault)
        return
    for row in range(len(shard)):
        if not shard.skipped[row]:
            try:
                shard.read(row)
            except CacheError as fault:
                yield str(fault)


def _iterate_cache_dirs(features_dir: Path, split: str | None) -> Iterator[Path]:
    if not features_dir.is_dir():
        return
    # A split may be called anything, so nothing is globbed that a name could spoil.
    split_dirs = [features_dir / split] if split is not None else sorted(features_dir.iterdir())
    for split_dir in split_dirs:
        if split_dir.is_dir():
            yield from (path for path in sorted(split_dir.iterdir()) if (path / PLAN_NAME).is_file())


def _explain_absence(features_dir: Path, split: str, fingerprint: Fingerprint) -> CacheError:
    """Say why there is no cache under a fingerprint: none at all, or which part differs."""
    remedy = _precompute_remedy(split, fingerprint)
    split_dir = features_dir / split
    candidates = []
    for folder in _iterate_cache_dirs(features_dir, split):
        try:
            plan = read_plan(folder)
        except CacheError as error:
            candidates.append((99, str(error).partition(";")[0]))
            continue
        differences = plan.fingerprint.differences(fingerprint) if plan is not None else []
        if differences:
            candidates.append((len(differences), f"{folder.name} differs in {'; '.join(differences)}"))
    if not candidates:
        return CacheError(f"no cached features for split {split}", where=split_dir, remedy=remedy)
    nearest = [text for _, text in sorted(candidates)]
    more = f" (and {len(nearest) - 1} more)" if len(nearest) > 1 else ""
    return CacheError(
        f"the cached features of split {split} are not this model's: {nearest[0]}{more}",
        where=split_dir,
        remedy=remedy,
    )


def precompute_command(split: str | None, fingerprint: Fingerprint | None = None) -> str:
    """Write the command that makes these features."""
    command = "vox precompute" if split is None else f"vox precompute --split {split}"
    if fingerprint is not None and fingerprint.layers != DEFAULT_LAYERS:
        command += f" --layers {join_layers(fingerprint.layers)}"
    if fingerprint is not None and fingerprint.speed != 1:
        command += f" --speeds {fingerprint.speed}"
    return command


def _precompute_remedy(
    split: str | None, fingerprint: Fingerprint | None = None, *, again: bool = False
) -> str:
    return f"run `{precompute_command(split, fingerprint)}`{' again' if again else ''}"

"""A split's cached features: finding the right cache, refusing a wrong one, reading from it.

Folder: <features>/<split>/<fingerprint prefix>/ with plan.json, utterances.jsonl, audio.jsonl,
shard-00000.h5, ...

C channels, T frames.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vox.defaults import DEFAULT_LAYERS, DEFAULT_WAVLM
from vox.errors import CacheError, name_first
from vox.features.fingerprint import Fingerprint, join_layers
from vox.features.plan import (
    PLAN_NAME,
    CachePlan,
    ShardPlan,
    hash_utterances,
    read_plan,
)
from vox.features.shard import Shard, damaged


class FeatureCache:
    """All features of a split, whole and checked; safe across threads, fork and pickling."""

    def __init__(self, folder: Path, shards: list[Shard], prefixes: Sequence[str] | None = None) -> None:
        """Index the shards; with prefixes, one a shard, which go before the ids of its utterances."""
        self.folder = folder
        self.shards = shards
        self.prefixes = list(prefixes or [""] * len(shards))
        self.feature_dim: int = shards[0].feature_dim
        self.ids: list[str] = []  # without the skipped ones
        self.num_samples: dict[str, int] = {}
        self.skipped: dict[str, str] = {}  # id to reason
        self._places: dict[str, tuple[int, int]] = {}  # id to (shard, row)
        for number, (shard, prefix) in enumerate(zip(shards, self.prefixes, strict=True)):
            for row, own_name in shard.live_rows():
                name = prefix + own_name
                if shard.skipped[row]:
                    self.skipped[name] = shard.skipped[row]
                    continue
                self.ids.append(name)
                self.num_samples[name] = int(shard.num_samples[row])
                self._places[name] = (number, row)

    def num_frames(self, name: str) -> int:
        """Count an utterance's frames; raise CacheError for one that is not here."""
        shard, row = self.locate(name)
        return shard.num_frames(row)

    def read(self, name: str) -> np.ndarray:
        """Return an utterance's features, [T, C] float16, checked against their crc32.

        Raises CacheError naming the shard and the utterance when they are damaged or missing, or when the
        cache does not hold the utterance.
        """
        shard, row = self.locate(name)
        return shard.read(row)

    def audio_sha256(self, name: str) -> str:
        """Return the sha256 of an utterance's recording, as hex; empty where it could not be read."""
        shard, row = self.locate(name)
        return shard.audio_sha256(row)

    def locate(self, name: str) -> tuple[Shard, int]:
        """Return an utterance's shard and its row in there; raise CacheError for one that is not here."""
        try:
            number, row = self._places[name]
        except KeyError:
            reason = self.skipped.get(name)
            raise CacheError(
                f"utterance {name} was skipped ({reason})" if reason else f"utterance {name} is not cached",
                where=self.folder,
                remedy=f"run `{precompute_command(self.folder.parent.name)}` again",
            ) from None
        return self.shards[number], row


def merge_caches(caches: Mapping[str, FeatureCache]) -> FeatureCache:
    """Make one cache of several of the same recordings, as `join_caches` does.

    Raises CacheError if they are of different recordings: one was changed after some of them were made.
    """
    _refuse_other_recordings(list(caches.values()))
    return join_caches(list(caches.items()))


def join_caches(caches: Sequence[tuple[str, FeatureCache]]) -> FeatureCache:
    """Make one cache of several of the same width, each with what goes before its utterances' ids.

    The ids must differ with that.
    """
    if len(caches) == 1 and not caches[0][0]:
        return caches[0][1]
    assert len({cache.feature_dim for _, cache in caches}) == 1
    shards = [shard for _, cache in caches for shard in cache.shards]
    prefixes = [first + prefix for first, cache in caches for prefix in cache.prefixes]
    return FeatureCache(caches[0][1].folder, shards, prefixes)


def _refuse_other_recordings(caches: Sequence[FeatureCache]) -> None:
    first, *others = caches
    if not others:
        return
    hashes = {name: shard.audio_sha256(row) for shard in first.shards for row, name in shard.live_rows()}
    for cache in others:
        different = [
            name
            for shard in cache.shards
            for row, name in shard.live_rows()
            if shard.audio_sha256(row) != hashes.get(name, shard.audio_sha256(row))
        ]
        if different:
            speeds = [each.shards[0].fingerprint.speed for each in (first, cache)]
            raise CacheError(
                f"the caches at speeds {speeds[0]} and {speeds[1]} are of different recordings "
                f"({len(different)}: {name_first(different)})",
                where=cache.folder,
                remedy="run vox precompute with both --speeds: it says which of them is stale",
            )


def cache_dir(features_dir: Path, split: str, fingerprint: Fingerprint) -> Path:
    """Return the folder of the cache that a split and a fingerprint name."""
    return Path(features_dir) / split / fingerprint.prefix


def open_cache(
    features_dir: Path, split: str, fingerprint: Fingerprint, command: str | None = None
) -> FeatureCache:
    """Open the cache of exactly these features.

    command: what makes it, for the errors' advice (`precompute_command`).

    Raises CacheError when there is none, when there are others only (naming the parts that differ), when
    shards are missing, and when anything in it is damaged.
    """
    folder = cache_dir(features_dir, split, fingerprint)
    command = command or precompute_command(split, fingerprint)
    plan = read_plan(folder)
    if plan is None:
        raise _explain_absence(Path(features_dir), split, fingerprint, command)
    check_fingerprint(plan.fingerprint, fingerprint, folder, command)
    missing = missing_shards(folder, plan)
    if missing:
        raise CacheError(
            f"incomplete cache: {len(missing)} of {len(plan.shards)} shards missing ({name_first(missing)})",
            where=folder,
            remedy=f"run `{command}` again",
        )
    return FeatureCache(folder, [open_planned(folder, plan, shard, command) for shard in plan.shards])


def open_planned(folder: Path, plan: CachePlan, planned: ShardPlan, command: str | None = None) -> Shard:
    """Open a shard and check that it holds what the plan says; raise CacheError if not.

    command: what makes the cache, for the error's advice.
    """
    shard = Shard(folder / planned.name)
    command = command or precompute_command(plan.split, plan.fingerprint, wavlm=plan.wavlm)
    check_fingerprint(shard.fingerprint, plan.fingerprint, shard.path, command)
    if hash_utterances(shard.ids, shard.num_samples.tolist()) != planned.utterances_sha256:
        raise damaged(shard.path, "it holds other utterances than planned")
    if (shard.offsets[-1], shard.feature_dim) != (planned.num_frames, plan.feature_dim):
        raise damaged(shard.path, "its size is not as planned")
    shard.retired = frozenset(planned.retired)
    return shard


def check_fingerprint(cached: Fingerprint, wanted: Fingerprint, where: Path, command: str) -> None:
    """Raise CacheError naming the parts in which two fingerprints differ, and the command to run."""
    differences = cached.differences(wanted)
    if differences:
        raise CacheError(
            f"the cached features are not this model's ({'; '.join(differences)})",
            where=where,
            remedy=f"run `{command}`",
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
        remedy = f"run `{precompute_command(split or 'SPLIT')}`"
        raise CacheError("no cached features", where=where, remedy=remedy)
    return folders


def summarise_cache(folder: Path) -> CacheSummary:
    """Read what there is of a cache, without its features; raise CacheError if its plan is damaged."""
    plan = read_plan(folder)
    assert plan is not None
    missing = set(missing_shards(folder, plan))
    present = [shard for shard in plan.shards if shard.name not in missing]
    paths = [folder / shard.name for shard in present]
    try:
        shards = [open_planned(folder, plan, shard) for shard in present]
        num_skipped: int | None = sum(
            bool(shard.skipped[row]) for shard in shards for row, _ in shard.live_rows()
        )
    except (CacheError, OSError):
        num_skipped = None
    num_bytes = sum(path.stat().st_size for path in paths)
    return CacheSummary(folder, plan, len(paths), num_bytes, num_skipped)


def _iterate_cache_dirs(features_dir: Path, split: str | None) -> Iterator[Path]:
    if not features_dir.is_dir():
        return
    # A split may be called anything, so nothing is globbed that a name could spoil.
    split_dirs = [features_dir / split] if split is not None else sorted(features_dir.iterdir())
    for split_dir in split_dirs:
        if split_dir.is_dir():
            yield from (path for path in sorted(split_dir.iterdir()) if (path / PLAN_NAME).is_file())


def _explain_absence(features_dir: Path, split: str, fingerprint: Fingerprint, command: str) -> CacheError:
    """Say why there is no cache under a fingerprint: none at all, or which part differs."""
    remedy = f"run `{command}`"
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


def precompute_command(
    split: str,
    fingerprint: Fingerprint | None = None,
    *,
    root: Path = Path("data"),
    wavlm: str = DEFAULT_WAVLM,
    features: Path | None = None,
) -> str:
    """Write the command that makes these features; what is the default anyway is left out.

    root: of the corpora; wavlm: a hub name or a folder; features: of the caches, None for ROOT/features.
    """
    words = ["vox", "precompute", "--split", split]
    if fingerprint is not None and fingerprint.layers != DEFAULT_LAYERS:
        words += ["--layers", join_layers(fingerprint.layers)]
    if fingerprint is not None and fingerprint.speed != 1:
        words += ["--speeds", str(fingerprint.speed)]
    if root != Path("data"):
        words += ["--root", str(root)]
    if wavlm != DEFAULT_WAVLM:
        words += ["--wavlm", wavlm]
    if features is not None and features != root / "features":
        words += ["--features", str(features)]
    return shlex.join(words)

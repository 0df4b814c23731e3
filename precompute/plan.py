"""Which utterances go into which shard, which shards are this rank's, and which batches are computed.

All of it follows from the manifest and the options alone, so that a restarted run, or another rank, comes
to the same shards, batches and bytes.
"""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vox.corpus import Utterance
from vox.disk import BYTES_PER_GB
from vox.features.fingerprint import Fingerprint
from vox.features.plan import CachePlan, ShardPlan, hash_utterances, utterances_to_jsonl
from vox.features.shard import FEATURE_BYTES
from vox.units import samples_to_frames

OVERFLOW = "features overflow float16"  # why an utterance is skipped whose recording is not at fault


@dataclass(frozen=True)
class ShardWork:
    """A shard's utterances, in the order in which the file holds them; without retired ones."""

    name: str
    utterances: tuple[Utterance, ...]

    @property
    def ids(self) -> list[str]:
        """Return the utterances' names."""
        return [utterance.id for utterance in self.utterances]

    @property
    def num_samples(self) -> list[int]:
        """Return the utterances' lengths at 16 kHz."""
        return [probed_samples(utterance) for utterance in self.utterances]

    @property
    def num_frames(self) -> list[int]:
        """Return the utterances' lengths in frames."""
        return [samples_to_frames(length) for length in self.num_samples]


@dataclass(frozen=True)
class CacheWork:
    """Everything that a cache is to hold: the plan that goes to disk, and the recordings behind it."""

    plan: CachePlan
    shards: tuple[ShardWork, ...]
    utterances_jsonl: str


def plan_cache(
    split: str,
    utterances: Sequence[Utterance],
    fingerprint: Fingerprint,
    *,
    wavlm: str,
    feature_dim: int,
    shard_gb: float,
) -> CacheWork:
    """Plan the cache of a split whose lengths are known."""
    empty = CachePlan(split, fingerprint, wavlm, feature_dim, num_samples=0, utterances_sha256="", shards=())
    shards = cut_shards(utterances, feature_dim, shard_gb)
    return assemble(empty, [(plan_shard(shard), shard) for shard in shards])


def plan_shard(shard: ShardWork) -> ShardPlan:
    """Return the plan of a shard that holds these utterances and no others."""
    return ShardPlan(
        name=shard.name,
        num_utterances=len(shard.utterances),
        num_frames=sum(shard.num_frames),
        utterances_sha256=hash_utterances(shard.ids, shard.num_samples),
    )


def assemble(plan: CachePlan, shards: Sequence[tuple[ShardPlan, ShardWork]]) -> CacheWork:
    """Return the work of these shards; what is of no shard is taken from the plan."""
    ids = [name for _, shard in shards for name in shard.ids]
    lengths = [length for _, shard in shards for length in shard.num_samples]
    listed = utterances_to_jsonl(ids, lengths)
    plan = replace(
        plan,
        num_samples=sum(lengths),
        utterances_sha256=hashlib.sha256(listed.encode()).hexdigest(),
        shards=tuple(planned for planned, _ in shards),
    )
    return CacheWork(plan, tuple(shard for _, shard in shards), listed)


def cut_shards(
    utterances: Sequence[Utterance], feature_dim: int, shard_gb: float, first: int = 0
) -> list[ShardWork]:
    """Cut the manifest, in its order, into shards of at most shard_gb of frames (or one utterance).

    first: the number of the first shard.
    """
    max_frames = int(shard_gb * BYTES_PER_GB) // (feature_dim * FEATURE_BYTES)
    groups: list[list[Utterance]] = []
    num_frames = 0
    for utterance in utterances:
        more = samples_to_frames(probed_samples(utterance))
        assert more > 0, f"{utterance.id} has no frame"
        if not groups or num_frames + more > max_frames:
            groups.append([])
            num_frames = 0
        groups[-1].append(utterance)
        num_frames += more
    return [ShardWork(f"shard-{number:05d}.h5", tuple(group)) for number, group in enumerate(groups, first)]


def share_shards(num_frames: Sequence[int], rank: int, world_size: int) -> list[int]:
    """Return the numbers of a rank's shards: the longest first, each to the rank with the least so far."""
    loads = [(0, number) for number in range(world_size)]
    mine = []
    for shard in sorted(range(len(num_frames)), key=lambda number: (-num_frames[number], number)):
        load, owner = heapq.heappop(loads)
        heapq.heappush(loads, (load + num_frames[shard], owner))
        if owner == rank:
            mine.append(shard)
    return sorted(mine)


def is_as_planned(old: CachePlan | None, plan: CachePlan) -> bool:
    """Return whether two plans are of the same files, wherever the weights came from."""
    return old is not None and replace(old, wavlm=plan.wavlm) == plan


def probed_samples(utterance: Utterance) -> int:
    """Return an utterance's length, which the corpus has read from its header."""
    assert utterance.num_samples is not None
    return utterance.num_samples

"""Before the work: what is there, whether it still fits the corpus, whether the rest fits the disk."""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from precompute.audio_changes import Recordings, refuse_changed
from precompute.plan import CacheWork, is_as_planned, share_shards
from vox.corpus import Problem
from vox.disk import check_space, check_writable, format_gb, free_bytes, remove_leftovers
from vox.errors import CacheError, name_count
from vox.features.cache import missing_shards, open_planned
from vox.features.plan import CachePlan, read_plan, read_utterances, write_plan
from vox.features.shard import FEATURE_BYTES, Shard
from vox.features.stamps import Recorded, write_stamps
from vox.units import samples_to_seconds

log = logging.getLogger(__name__)

BYTES_PER_BLOCK = 512  # the unit of st_blocks, whatever the file system


@dataclass(frozen=True)
class CacheState:
    """A cache's folder against its plan, as one rank sees it."""

    folder: Path
    work: CacheWork
    mine: list[int]  # this rank's shards, by number
    to_compute: list[int]  # those of them that are not there
    missing: frozenset[str]  # shards that are not there, over all ranks
    num_bytes_missing: int  # of frames, over all ranks
    num_bytes_reclaimed: int  # of the disk: what stands there in place of the missing shards
    skipped: list[Problem]  # in this rank's shards that are there
    recordings: Recordings

    @property
    def num_utterances(self) -> int:
        """Count the utterances of all ranks' shards."""
        return sum(shard.num_live for shard in self.work.plan.shards)

    @property
    def num_mine(self) -> int:
        """Count the utterances of this rank's shards."""
        return sum(len(self.work.shards[number].utterances) for number in self.mine)

    @property
    def num_bytes_to_compute(self) -> int:
        """Size of the frames of this rank's shards that are not there."""
        num_frames = sum(self.work.plan.shards[number].num_frames for number in self.to_compute)
        return num_frames * self.work.plan.feature_dim * FEATURE_BYTES

    @property
    def seconds_to_compute(self) -> float:
        """Audio of this rank's shards that are not there."""
        return samples_to_seconds(
            sum(sum(self.work.shards[number].num_samples) for number in self.to_compute)
        )


def inspect_cache(
    folder: Path,
    work: CacheWork,
    recordings: Recordings,
    *,
    rank: int,
    world_size: int,
    rebuild: bool = False,
    opened: Mapping[str, Shard] | None = None,
) -> CacheState:
    """Compare what is on disk with the plan, changing nothing.

    opened: shards that `keep_shards` has opened and that need not be opened again.
    Raises CacheError when a recording has changed since the cache was begun (unless it is to be rebuilt), or
    when a shard of this rank is damaged.
    """
    plan = work.plan
    mine = share_shards([shard.num_frames for shard in plan.shards], rank, world_size)
    missing = set(missing_shards(folder, plan))
    if rebuild:
        missing |= {plan.shards[number].name for number in mine}
    elif (old := read_plan(folder)) is not None:  # a file that it does not name was about to be removed
        missing |= {shard.name for shard in plan.shards} - {shard.name for shard in old.shards}
    present = [plan.shards[number] for number in mine if plan.shards[number].name not in missing]
    shards = []
    for planned in present:
        if (shard := (opened or {}).get(planned.name)) is None:
            shard = open_planned(folder, plan, planned)
        shard.retired = frozenset(planned.retired)  # more of them than when it was opened
        shards.append(shard)
    refuse_changed(folder, shards, recordings, work)
    skipped = [
        Problem(name, why)
        for shard in shards
        for row, name in shard.live_rows()
        if (why := shard.skipped[row])
    ]
    return CacheState(
        folder=folder,
        work=work,
        mine=mine,
        to_compute=[number for number in mine if plan.shards[number].name in missing],
        missing=frozenset(missing),
        num_bytes_missing=sum(
            shard.num_frames * plan.feature_dim * FEATURE_BYTES
            for shard in plan.shards
            if shard.name in missing
        ),
        num_bytes_reclaimed=_count_reclaimed(folder, missing),
        skipped=skipped,
        recordings=recordings,
    )


def prepare_folder(state: CacheState, *, rank: int, rebuild: bool = False) -> None:
    """Make the folder ready for this rank's shards: plan written, leftovers of dead runs removed.

    A shard that is computed again is kept until it is replaced, unless it is stale (not as planned, or of
    other recordings): after a kill a stale shard would look finished. A
    rank removes its own shards only, and the first one also those that are no longer planned: the others may
    be at work already.
    """
    folder, plan = state.folder, state.work.plan
    folder.mkdir(parents=True, exist_ok=True)
    for name in remove_leftovers(folder):
        log.info("removed %s, left by a run that died", folder / name)
    if rebuild:
        stale = [number for number in state.to_compute if _is_stale(state, number)]
        doomed = {folder / plan.shards[number].name for number in stale}
        if rank == 0:
            doomed |= _find_unplanned(folder, plan)
        for path in sorted(doomed):
            path.unlink(missing_ok=True)
    # Once more, since another rank may have begun meanwhile.
    recorded = state.recordings.recall_again(folder)
    stamps = _choose_stamps(state, recorded)
    if stamps != recorded:
        write_stamps(folder, stamps)
    if not _is_written(folder, plan):
        write_plan(folder, plan, state.work.utterances_jsonl)
    if rank == 0:  # after the plan: shards of which no utterance is left
        for path in _find_unplanned(folder, plan):
            path.unlink(missing_ok=True)


def describe_state(state: CacheState) -> str:
    """Say in one line how large a cache is and how much of it is still to be computed."""
    plan = state.work.plan
    hours = samples_to_seconds(plan.num_samples) / 3600
    num_frames = sum(sum(shard.num_frames) for shard in state.work.shards)  # without retired ones
    size, retired_size = (
        format_gb(count * plan.feature_dim * FEATURE_BYTES)
        for count in (num_frames, plan.num_frames - num_frames)
    )
    num_retired = sum(len(shard.retired) for shard in plan.shards)
    beside = f" beside {name_count(num_retired, 'retired row')} ({retired_size})" if num_retired else ""
    return (
        f"{plan.title}: {name_count(state.num_utterances, 'utterance')}, {hours:,.3f} hours, "
        f"{num_frames:,} frames, {size} in {name_count(len(plan.shards), 'shard')}{beside}; "
        f"to compute here: {len(state.to_compute)} of {len(state.mine)}; into {state.folder} "
        f"({format_gb(free_bytes(state.folder))} free)"
    )


def check_free_space(states: list[CacheState]) -> None:
    """Raise CacheError when what is missing does not fit on the disk, VoxError when it cannot be written."""
    needed = sum(max(0, state.num_bytes_missing - state.num_bytes_reclaimed) for state in states)
    for state in states:
        if state.num_bytes_missing:
            check_writable(state.folder, "--features")
    check_space(
        states[0].folder,
        needed,
        CacheError,
        what="the features",
        remedy="free some space, or choose another disk with --features DIR",
    )


def _find_unplanned(folder: Path, plan: CachePlan) -> set[Path]:
    """Return the shards in a folder that its plan does not have."""
    planned = {shard.name for shard in plan.shards}
    return {path for path in folder.glob("shard-*.h5") if path.name not in planned}


def _is_stale(state: CacheState, number: int) -> bool:
    """Say whether a shard that is to be replaced is not as planned, or of recordings that have changed."""
    plan = state.work.plan
    try:
        shard = open_planned(state.folder, plan, plan.shards[number])
    except (CacheError, OSError):
        return True
    return not all(map(state.recordings.is_as_recorded, shard.ids))


def _choose_stamps(state: CacheState, recorded: Mapping[str, Recorded]) -> dict[str, Recorded]:
    """Return what to record: this rank's recordings as they are now, others' as they are recorded.

    Prefer another rank's stamp for its recordings: it was taken before that rank read the file. Where
    there is none, ours was taken first.
    """
    chosen: dict[str, Recorded] = {}
    mine = set(state.mine)
    for number, shard in enumerate(state.work.shards):
        for name, num_samples in zip(shard.ids, shard.num_samples, strict=True):
            entry = recorded.get(name)
            if number in mine or (entry is None and shard.name in state.missing):
                stamp = state.recordings.stamps.get(name)
                entry = None if stamp is None else Recorded(stamp, num_samples)
            if entry is not None:
                chosen[name] = entry
    return chosen


def _count_reclaimed(folder: Path, missing: set[str]) -> int:
    """Count the bytes on disk of shards that any rank has begun (allocated in full) or that are redone."""
    num_bytes = 0
    for path in [*folder.glob(".shard-*.part"), *(folder / name for name in missing)]:
        with contextlib.suppress(OSError):  # not there, or renamed meanwhile by the rank that wrote it
            num_bytes += path.stat().st_blocks * BYTES_PER_BLOCK
    return num_bytes


def _is_written(folder: Path, plan: CachePlan) -> bool:
    """Say whether a folder holds a plan and its own list of utterances.

    They are two files: a run that was killed between them leaves one without the other.
    """
    try:
        if not is_as_planned(read_plan(folder), plan):
            return False
        read_utterances(folder, plan)
    except CacheError:
        return False
    return True

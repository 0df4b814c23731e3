"""Before the work: what is there, whether it still fits the corpus, whether the rest fits the disk."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from precompute.plan import BYTES_PER_GB, CacheWork, share_shards
from vox.corpus import Problem
from vox.errors import CacheError
from vox.features.cache import missing_shards, open_planned
from vox.features.files import remove_leftovers
from vox.features.plan import CachePlan, read_plan, read_utterances, write_plan
from vox.features.shard import FEATURE_BYTES
from vox.units import SAMPLE_RATE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheState:
    """A cache's folder against its plan, as one rank sees it."""

    folder: Path
    work: CacheWork
    to_compute: list[int]  # this rank's shards that are not there
    num_mine: int
    num_bytes_missing: int  # of frames, over all ranks
    skipped: list[Problem]  # in this rank's shards that are there


def inspect_cache(
    folder: Path, work: CacheWork, *, rank: int, world_size: int, rebuild: bool = False
) -> CacheState:
    """Compare what is on disk with the plan, changing nothing.

    Raises CacheError when the corpus or the cut into shards has changed since the cache was begun
    (unless it is to be rebuilt), or when a shard of this rank is damaged.
    """
    plan = work.plan
    mine = share_shards([shard.num_frames for shard in plan.shards], rank, world_size)
    missing = set(missing_shards(folder, plan))
    if rebuild:
        missing |= {plan.shards[number].name for number in mine}
    else:
        _check_plan(folder, work)
    present = [plan.shards[number] for number in mine if plan.shards[number].name not in missing]
    skipped = []
    for planned in present:
        shard = open_planned(folder, plan, planned)
        skipped += [Problem(name, why) for name, why in zip(shard.ids, shard.skipped, strict=True) if why]
    return CacheState(
        folder=folder,
        work=work,
        to_compute=[number for number in mine if plan.shards[number].name in missing],
        num_mine=len(mine),
        num_bytes_missing=sum(
            shard.num_frames * plan.feature_dim * FEATURE_BYTES
            for shard in plan.shards
            if shard.name in missing
        ),
        skipped=skipped,
    )


def prepare_folder(state: CacheState, *, rank: int, rebuild: bool = False) -> None:
    """Make the folder ready for this rank's shards: plan written, leftovers of dead runs removed.

    To rebuild, a rank removes its own shards only, and the first one also those that are no longer
    planned: the others may be at work already.
    """
    folder, plan = state.folder, state.work.plan
    folder.mkdir(parents=True, exist_ok=True)
    for name in remove_leftovers(folder):
        log.info("removed %s, left by a run that died", folder / name)
    if rebuild:
        planned = {shard.name for shard in plan.shards}
        doomed = {folder / plan.shards[number].name for number in state.to_compute}
        if rank == 0:
            doomed |= {path for path in folder.glob("shard-*.h5") if path.name not in planned}
        for path in sorted(doomed):
            path.unlink(missing_ok=True)
    if not _is_as_planned(_read_plan_or_none(folder), plan):
        write_plan(folder, plan, state.work.utterances_jsonl)


def describe_state(state: CacheState) -> str:
    """Say in one line how large a cache is and how much of it is still to be computed."""
    plan = state.work.plan
    hours = plan.num_samples / SAMPLE_RATE / 3600
    num_bytes = plan.num_frames * plan.feature_dim * FEATURE_BYTES
    num_utterances = sum(shard.num_utterances for shard in plan.shards)
    return (
        f"{plan.split}: {num_utterances:,} utterances, {hours:,.3f} hours, {plan.num_frames:,} frames, "
        f"{format_gb(num_bytes)} in {len(plan.shards)} shard{'s' * (len(plan.shards) != 1)}; "
        f"to compute here: {len(state.to_compute)} of {state.num_mine}; into {state.folder} "
        f"({format_gb(free_bytes(state.folder))} free)"
    )


def check_free_space(states: list[CacheState]) -> None:
    """Raise CacheError when what is missing does not fit on the disk."""
    needed = sum(state.num_bytes_missing for state in states)
    free = free_bytes(states[0].folder)
    if needed > free:
        raise CacheError(
            f"the features need {format_gb(needed)} and {format_gb(free)} are free",
            where=states[0].folder,
            remedy="free some space, or choose another disk with --features DIR",
        )


def free_bytes(folder: Path) -> int:
    """Return what is free on the disk that a folder is on, or will be on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def format_gb(num_bytes: int) -> str:
    """Write a size in GB, 10^9 bytes."""
    return f"{num_bytes / BYTES_PER_GB:.{2 if num_bytes >= BYTES_PER_GB else 4}f} GB"


def _check_plan(folder: Path, work: CacheWork) -> None:
    old = read_plan(folder)
    if old is None or _is_as_planned(old, work.plan):
        return
    if len(missing_shards(folder, old)) == len(old.shards):
        return  # a plan without a shard binds nobody
    if old.utterances_sha256 != work.plan.utterances_sha256:
        what = f"the corpus has changed since this cache was begun ({_describe_changes(folder, old, work)})"
    else:
        what = f"this cache was cut into {len(old.shards)} shards, and would now be {len(work.plan.shards)}"
    raise CacheError(
        what,
        where=folder,
        remedy="make it anew with --rebuild, or beside this one with another --features folder",
    )


def _describe_changes(folder: Path, old: CachePlan, work: CacheWork) -> str:
    before = read_utterances(folder, old)
    now = {utterance.id: utterance.num_samples for shard in work.shards for utterance in shard.utterances}
    came, went = len(now.keys() - before.keys()), len(before.keys() - now.keys())
    changed = sum(before[name] != now[name] for name in before.keys() & now.keys())
    return f"{came} utterances came, {went} went, {changed} changed length"


def _is_as_planned(old: CachePlan | None, plan: CachePlan) -> bool:
    # Where the weights came from may be written in several ways; their hash is in the fingerprint.
    return old is not None and replace(old, wavlm=plan.wavlm) == plan


def _read_plan_or_none(folder: Path) -> CachePlan | None:
    try:
        return read_plan(folder)
    except CacheError:  # met before, unless the cache is being rebuilt
        return None

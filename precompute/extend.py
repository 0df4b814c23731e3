"""A cache whose split has changed: what is still right is kept, the rest is planned into new shards.

A shard is never written a second time. An utterance that left the split, that has another length now, or
that could not be read then and can be now, is retired: its row stays in the file, and the plan says that it
no longer counts. Added and changed utterances are put into new shards after the old ones. Features do not
depend on texts, so an utterance whose text is refused now keeps its row.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from precompute.audio_changes import find_readable, may_be_repaired
from precompute.plan import CacheWork, ShardWork, assemble, cut_shards, is_as_planned, plan_shard
from vox.corpus import KnownLength, Problem, Utterance, probe_audio, read_split
from vox.errors import CacheError, name_count, name_first
from vox.features.cache import missing_shards, open_planned
from vox.features.plan import CachePlan, ShardPlan, read_plan, read_utterances
from vox.features.shard import Shard
from vox.text import accept_any_text

log = logging.getLogger(__name__)

MAX_LOST_SHARE = 0.5  # of a cache's utterances: beyond that the split is likely another one by mistake

Lengths = dict[str, int]  # samples by id
Opened = dict[str, Shard]  # shards by name


def find_refused(
    root: Path, split: str, problems: Sequence[Problem], speed: float, known_length: KnownLength
) -> list[Utterance]:
    """Return the utterances of a split with a usable recording and a text that was refused, probed.

    problems: of reading the split. Raises CorpusError as `read_split` does.
    """
    names = {problem.name for problem in problems}
    utterances, _ = read_split(root, split, accept_any_text)
    suspects = [replace(utterance, speed=speed) for utterance in utterances if utterance.id in names]
    probed, _ = probe_audio(suspects, known_length=known_length)
    return probed


def keep_shards(
    folder: Path,
    fresh: CacheWork,
    shard_gb: float,
    problems: Sequence[Problem],
    refused: Sequence[Utterance],
    opened: Opened,
) -> CacheWork:
    """Return the work with the shards of the folder kept as far as they are still right.

    fresh: the work if nothing were there. problems: with utterances of the split that are not in it. refused:
    those of them that are left out because of their texts; what the cache has of them is kept. opened: is
    filled with the shards that were opened. Every rank finds the same, as long as the split stays as it is.
    Raises CacheError if the plan or a shard is damaged, or if most of the cache's utterances are gone.
    """
    old = read_plan(folder)
    if old is None or len(missing := missing_shards(folder, old)) == len(old.shards):
        return fresh  # a plan without a shard can be replaced
    wanted = {utterance.id: utterance for shard in fresh.shards for utterance in shard.utterances}
    try:
        listed = _list_utterances(folder, old, fresh)
    except CacheError:
        if read_plan(folder) != old:  # another rank has written its own between our two reads
            return keep_shards(folder, fresh, shard_gb, problems, refused, opened)
        listed = [{} if each.name in missing else _read_lengths(folder, old, each) for each in old.shards]
    in_use = [
        planned
        for planned, lengths in zip(old.shards, listed, strict=True)
        if planned.name not in missing and not wanted.keys().isdisjoint(lengths)
    ]
    repaired = _find_repaired(folder, old, in_use, wanted, opened)
    before = {name: length for lengths in listed for name, length in lengths.items()}
    held_back = {each.id: each for each in refused if before.get(each.id) == each.num_samples}
    wanted |= held_back
    kept = []
    for planned, lengths in zip(old.shards, listed, strict=True):
        live = [wanted[name] for name in lengths if _is_right(name, lengths, wanted, repaired)]
        if (planned.name not in missing and live) or len(live) == planned.num_utterances:
            gone = lengths.keys() - {utterance.id for utterance in live}
            retired = tuple(sorted({*planned.retired, *gone}))
            kept.append((replace(planned, retired=retired), ShardWork(planned.name, tuple(live))))
    held = {utterance.id for _, shard in kept for utterance in shard.utterances}
    _check_share(folder, before, wanted)
    rest = [utterance for name, utterance in wanted.items() if name not in held]
    first = 1 + max(_number(planned.name) for planned in old.shards)  # no name is used twice
    new = cut_shards(rest, old.feature_dim, shard_gb, first)
    kept += [(plan_shard(shard), shard) for shard in new]
    work = assemble(fresh.plan, kept)
    if before != {name: utterance.num_samples for name, utterance in wanted.items()}:
        log.info("%s: %s", fresh.plan.title, describe_changes(before, wanted))
    if lost := sorted({problem.name for problem in problems} & before.keys() - wanted.keys()):
        log.warning(
            "%s: the features of %s are given up, because their recordings cannot be read now: %s; they are "
            "computed again when these are back",
            fresh.plan.title,
            name_count(len(lost), "utterance"),
            name_first(lost),
        )
    if held_back:
        count, names = name_count(len(held_back), "utterance"), name_first(sorted(held_back))
        log.warning(
            "%s: the features of %s stay, although the text is refused: %s", fresh.plan.title, count, names
        )
    if repaired:
        count, names = name_count(len(repaired), "recording"), name_first(sorted(repaired))
        log.info("%s: %s skipped before can be read now: %s", fresh.plan.title, count, names)
    return work


def describe_changes(before: Lengths, wanted: dict[str, Utterance]) -> str:
    """Describe how a split differs from what its cache was made of."""
    came, went = len(wanted.keys() - before.keys()), len(before.keys() - wanted.keys())
    changed = sorted(n for n in before.keys() & wanted.keys() if before[n] != wanted[n].num_samples)
    names = f": {name_first(changed)}" if changed else ""
    return (
        "the split has changed since this cache was made "
        f"(utterances: {came} added, {went} removed, {len(changed)} changed length{names})"
    )


def _is_right(name: str, lengths: Lengths, wanted: dict[str, Utterance], repaired: frozenset[str]) -> bool:
    return name in wanted and wanted[name].num_samples == lengths[name] and name not in repaired


def _list_utterances(folder: Path, plan: CachePlan, fresh: CacheWork) -> list[Lengths]:
    """Return the live utterances of each planned shard, in order; raise CacheError if the list is damaged."""
    if is_as_planned(plan, fresh.plan):
        return [dict(zip(shard.ids, shard.num_samples, strict=True)) for shard in fresh.shards]
    listed = iter(read_utterances(folder, plan).items())
    return [dict(islice(listed, planned.num_live)) for planned in plan.shards]


def _read_lengths(folder: Path, plan: CachePlan, planned: ShardPlan) -> Lengths:
    shard = open_planned(folder, plan, planned)
    return {name: int(shard.num_samples[row]) for row, name in shard.live_rows()}


def _find_repaired(
    folder: Path,
    plan: CachePlan,
    shards: Sequence[ShardPlan],
    wanted: dict[str, Utterance],
    opened: Opened,
) -> frozenset[str]:
    """Return the utterances of shards that were skipped because they could not be read, and can be now."""
    suspects = []
    for planned in shards:
        shard = opened[planned.name] = open_planned(folder, plan, planned)
        skipped = {name for row, name in shard.live_rows() if may_be_repaired(shard.skipped[row])}
        suspects += [wanted[name] for name in sorted(skipped & wanted.keys())]
    return frozenset(find_readable(suspects))


def _check_share(folder: Path, before: Lengths, wanted: dict[str, Utterance]) -> None:
    num_same = sum(name in wanted and wanted[name].num_samples == length for name, length in before.items())
    if num_same < (1 - MAX_LOST_SHARE) * len(before):
        raise CacheError(
            f"{describe_changes(before, wanted)}: most of it would be of no use any more",
            where=folder,
            remedy="if that is meant, compute it again with --rebuild, or beside this one with another "
            "--features folder",
        )


def _number(name: str) -> int:
    return int(name.removeprefix("shard-").removesuffix(".h5"))

"""Which utterances go into which batch: pure functions of lengths, seed, epoch and world size.

All lengths are known before training, so a run's whole future is computed, not remembered: resuming is
a position in the plan. Nothing is dropped, nothing comes twice, every rank gets as many micro-batches.
"""

from collections.abc import Iterator, Sequence

import numpy as np

POOL_UPDATES = 50  # updates' worth of utterances sorted by length together: less padding, still random

MicroBatch = tuple[int, ...]  # positions in the list of utterances
Update = tuple[tuple[MicroBatch, ...], ...]  # [rank][micro-batch]: equal counts on all ranks


def plan_epoch(
    lengths: Sequence[int],
    *,
    seed: int,
    epoch: int,
    utterances_per_update: int,
    micro_batch_utterances: int,
    micro_batch_length: int | None = None,
    world_size: int = 1,
) -> list[Update]:
    """Plan one epoch's updates.

    lengths: of each utterance, in any one unit (frames or samples).
    utterances_per_update: over all ranks; update sizes differ by one at most, so that none is a remnant.
    micro_batch_utterances: the most utterances on one device at once.
    micro_batch_length: the most padded length on one device at once, in the unit of `lengths`; when
        given, it replaces the count.
    Returns updates in order; every position 0..len(lengths)-1 occurs once.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    sizes = _split_evenly(len(lengths), num_updates(len(lengths), utterances_per_update))
    updates: list[list[int]] = []
    start = 0
    for first in range(0, len(sizes), POOL_UPDATES):
        pool_sizes = sizes[first : first + POOL_UPDATES]
        pool = order[start : start + sum(pool_sizes)].tolist()
        start += len(pool)
        pool.sort(key=lambda position: lengths[position])
        cut = 0
        for size in generator.permutation(pool_sizes).tolist():
            updates.append(pool[cut : cut + size])
            cut += size
    shuffled = generator.permutation(len(updates))
    limits = (micro_batch_utterances, micro_batch_length)
    return [share_update(updates[index], lengths, world_size, *limits) for index in shuffled]


def plan_mixed_epoch(
    target_lengths: Sequence[int],
    source_lengths: Sequence[int],
    *,
    ratio: float,
    seed: int,
    epoch: int,
    utterances_per_update: int,
    micro_batch_utterances: int,
    micro_batch_length: int | None = None,
    world_size: int = 1,
) -> list[Update]:
    """Plan one epoch over a target, with utterances of a source beside it.

    ratio: source length per target length. It holds at the end of every update over the epoch so far, to
        within half of the source's longest utterance.
    utterances_per_update: of the target; the source's come on top.
    Other arguments as in `plan_epoch`. Positions of the source follow those of the target. Every target
    position occurs once. Source positions are drawn without replacement, and again when all were drawn.
    """
    planned = plan_epoch(
        target_lengths,
        seed=seed,
        epoch=epoch,
        utterances_per_update=utterances_per_update,
        micro_batch_utterances=utterances_per_update,
    )
    lengths = [*target_lengths, *source_lengths]
    drawn = _draw_endlessly(len(target_lengths), len(source_lengths), seed, epoch)
    following = next(drawn)
    updates: list[Update] = []
    missing = 0.0  # source length that is due and not yet planned
    for positions in map(positions_of, planned):
        missing += ratio * sum(lengths[position] for position in positions)
        while missing >= lengths[following] / 2:
            positions.append(following)
            missing -= lengths[following]
            following = next(drawn)
        positions.sort(key=lambda position: lengths[position])
        updates.append(
            share_update(positions, lengths, world_size, micro_batch_utterances, micro_batch_length)
        )
    return updates


def _draw_endlessly(first: int, count: int, seed: int, epoch: int) -> Iterator[int]:
    """Yield `count` positions from `first` on in random order, again and again."""
    generator = np.random.default_rng([seed, epoch, 1])  # 1: not the generator of the target's order
    while True:
        yield from (first + generator.permutation(count)).tolist()


def num_updates(num_utterances: int, utterances_per_update: int) -> int:
    """Count the updates of one epoch."""
    return -(-num_utterances // utterances_per_update)


def plan_by_length(lengths: Sequence[int], max_length: int) -> list[MicroBatch]:
    """Sort by length, longest first, and fill batches up to a padded length; for decoding.

    An utterance longer than max_length is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    batches: list[list[int]] = []
    for position in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_length:
            batches[-1].append(position)
        else:
            batches.append([position])
    return [tuple(batch) for batch in batches]


def share_update(
    positions: list[int],
    lengths: Sequence[int],
    world_size: int,
    max_utterances: int,
    max_length: int | None,
    counts: Sequence[int] | None = None,
) -> Update:
    """Share an update among ranks, and each share among equally many micro-batches within the limits.

    positions: sorted by length. max_length: padded; when given, it replaces max_utterances. counts: how many
    utterances stand at each position; None: one.
    """
    by_rank = [positions[rank::world_size] for rank in range(world_size)]  # sorted: ranks get like lengths
    num_micro = 1
    while not all(_fits(share, num_micro, lengths, max_utterances, max_length, counts) for share in by_rank):
        num_micro += 1
    return tuple(tuple(tuple(group) for group in _cut(share, num_micro)) for share in by_rank)


def _fits(
    share: list[int],
    num_micro: int,
    lengths: Sequence[int],
    max_utterances: int,
    max_length: int | None,
    counts: Sequence[int] | None,
) -> bool:
    for group in _cut(share, num_micro):
        if len(group) <= 1:
            continue
        if max_length is not None:
            is_within = len(group) * max(lengths[position] for position in group) <= max_length
        else:
            num_utterances = len(group) if counts is None else sum(counts[position] for position in group)
            is_within = num_utterances <= max_utterances
        if not is_within:
            return False
    return True


def _cut(share: list[int], num_micro: int) -> list[list[int]]:
    """Cut a share into groups whose sizes differ by one at most; longest utterances in smaller groups."""
    groups, start = [], 0
    for size in _split_evenly(len(share), num_micro):
        groups.append(share[start : start + size])
        start += size
    return groups


def _split_evenly(total: int, parts: int) -> list[int]:
    """Split a count into parts that differ by one at most, larger parts first."""
    return [total // parts + (index < total % parts) for index in range(parts)]


def positions_of(update: Update) -> list[int]:
    """Return the utterances of an update, over all ranks and micro-batches."""
    return [position for share in update for micro in share for position in micro]

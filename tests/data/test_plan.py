"""Batch plans: nothing dropped, nothing twice, equal counts on all ranks, a pure function."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vox.data.plan import num_updates, plan_by_length, plan_epoch, plan_mixed_epoch, positions_of

lengths_of_splits = st.lists(st.integers(1, 500), min_size=1, max_size=300)


@settings(deadline=None, max_examples=60)
@given(
    lengths_of_splits,
    st.integers(1, 40),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(1, 2000)),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_plan_covers_every_utterance_once_in_equal_shares(
    lengths, per_update, micro, limit, world_size, epoch
):
    arguments = {
        "seed": 1,
        "epoch": epoch,
        "utterances_per_update": per_update,
        "micro_batch_utterances": micro,
        "micro_batch_length": limit,
        "world_size": world_size,
    }
    plan = plan_epoch(lengths, **arguments)
    assert plan == plan_epoch(lengths, **arguments)
    assert len(plan) == num_updates(len(lengths), per_update)
    placed = sorted(position for update in plan for rank in update for group in rank for position in group)
    assert placed == list(range(len(lengths)))
    sizes = [sum(len(group) for rank in update for group in rank) for update in plan]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= per_update
    for update in plan:
        assert len(update) == world_size
        assert len({len(rank) for rank in update}) == 1  # equally many micro-batches
        for group in (group for rank in update for group in rank if len(group) > 1):
            padded_length = len(group) * max(lengths[position] for position in group)
            assert padded_length <= limit if limit is not None else len(group) <= micro


def test_epochs_and_seeds_differ():
    def plan(seed: int, epoch: int) -> list:
        return plan_epoch(
            range(1, 101), seed=seed, epoch=epoch, utterances_per_update=10, micro_batch_utterances=5
        )

    assert plan(0, 0) != plan(0, 1)
    assert plan(0, 0) != plan(1, 0)


def test_pools_keep_padding_low():
    lengths = [(37 * index) % 1000 + 100 for index in range(1600)]
    plan = plan_epoch(lengths, seed=0, epoch=0, utterances_per_update=32, micro_batch_utterances=8)
    groups = [group for update in plan for group in update[0]]
    padded = sum(len(group) * max(lengths[i] for i in group) for group in groups)
    assert padded < 1.03 * sum(lengths)


@settings(deadline=None, max_examples=60)
@given(lengths_of_splits, st.integers(1, 2000))
def test_batches_for_decoding_hold_everything_within_the_limit(lengths, limit):
    batches = plan_by_length(lengths, limit)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= limit
    in_order = [lengths[position] for batch in batches for position in batch]
    assert in_order == sorted(in_order, reverse=True)


@pytest.mark.parametrize(("ratio", "world_size"), [(1.0, 1), (1.0, 2), (3.0, 3), (0.25, 1)])
def test_a_mixed_epoch_holds_its_ratio_after_every_update(ratio: float, world_size: int) -> None:
    generator = np.random.default_rng(0)
    target, source = generator.integers(20, 100, 50).tolist(), generator.integers(20, 300, 30).tolist()
    plan = partial(
        plan_mixed_epoch, target, source, ratio=ratio, seed=3, utterances_per_update=8,
        micro_batch_utterances=3, world_size=world_size,
    )  # fmt: skip
    updates = plan(epoch=1)
    lengths = [*target, *source]
    heard = {"target": 0, "source": 0}
    for update in updates:
        shares = [[position for micro in share for position in micro] for share in update]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert len({len(share) for share in update}) == 1  # as many micro-batches on every rank
        assert all(len(micro) <= 3 for share in update for micro in share)
        for position in positions_of(update):
            heard["target" if position < 50 else "source"] += lengths[position]
        assert abs(heard["source"] - ratio * heard["target"]) <= max(source) / 2
    order = [position for update in updates for position in positions_of(update)]
    assert sorted(position for position in order if position < 50) == list(range(50))
    counts = np.bincount([position - 50 for position in order if position >= 50], minlength=30)
    assert counts.max() - counts.min() <= 1  # none twice before all were drawn
    assert updates == plan(epoch=1) != plan(epoch=2)
    drawn = [sorted(p for u in plan(epoch=e) for p in positions_of(u) if p >= 50) for e in (1, 2)]
    assert ratio > 0.25 or drawn[0] != drawn[1]  # another part of a large source in every epoch

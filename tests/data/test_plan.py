"""Batch plans: nothing dropped, nothing twice, equal counts on all ranks, a pure function."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vox.data.plan import num_updates, plan_by_length, plan_epoch

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

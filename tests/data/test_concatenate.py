"""Concatenated utterances: all of a plan, each once, in rows that depend on nothing but lengths and epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vox.data.batch import AudioBatch, FeatureBatch, make_audio_batch, make_feature_batch
from vox.data.concatenate import (
    MOST_IN_A_ROW,
    concatenate,
    concatenate_batch,
    count_in_rows,
    group_rows,
    keep_apart,
    longest_row,
)
from vox.data.plan import plan_epoch, positions_of

MAX_LENGTH = 900


def plan(lengths: list[int], share: float, world_size: int, micro: int, limit: int | None, epoch: int = 3):
    order = {"seed": 1, "epoch": epoch}
    limits = {"micro_batch_utterances": micro, "micro_batch_length": limit, "world_size": world_size}
    apart = plan_epoch(lengths, utterances_per_update=12, **order, **limits)
    return apart, concatenate(apart, lengths, share=share, max_length=MAX_LENGTH, **order, **limits)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=200),
    st.integers(1, 3),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(1, 2000)),
)
def test_rows_hold_each_update_and_do_not_depend_on_ranks_or_micro_batches(
    lengths: list[int], world_size: int, micro: int, limit: int | None
) -> None:
    apart, rows = plan(lengths, 0.7, world_size, micro, limit)
    _, alone = plan(lengths, 0.7, 1, 12, None)
    for before, update, same in zip(apart, rows, alone, strict=True):
        positions, num_rows = count_in_rows(update)
        assert sorted(positions) == sorted(positions_of(before))
        all_rows = sorted(row for share in update for group in share for row in group)
        assert all_rows == sorted(row for group in same[0] for row in group) and len(all_rows) == num_rows
        sizes = [len(row) for row in all_rows]
        several = [size for size in sizes if size > 1]
        assert max(sizes) <= MOST_IN_A_ROW and max(several, default=0) - min(several, default=0) <= 1
        row_lengths = {row: sum(lengths[position] for position in row) for row in all_rows}
        assert all(length <= MAX_LENGTH or len(row) == 1 for row, length in row_lengths.items())
        assert max(row_lengths.values()) <= longest_row(lengths, MAX_LENGTH)
        assert len({len(share) for share in update}) == 1  # equally many micro-batches on all ranks
        for group in (group for share in update for group in share if len(group) > 1):
            if limit is None:
                assert sum(map(len, group)) <= micro
            else:
                assert len(group) * max(row_lengths[row] for row in group) <= limit


def test_the_share_of_updates_and_the_lengths_of_rows_are_drawn_for_each_epoch() -> None:
    lengths = [100 + index % 50 for index in range(6000)]
    apart, rows = plan(lengths, 0.4, 1, 12, None)
    later = plan(lengths, 0.4, 1, 12, None, epoch=4)[1]
    most, most_later = (
        [max(len(row) for group in update[0] for row in group) for update in updates]
        for updates in (rows, later)
    )
    assert most != most_later
    assert sum(size > 1 for size in most) / len(most) == pytest.approx(0.4, abs=0.05)
    assert set(most) == {1, 2, 3, 4}
    assert rows == plan(lengths, 0.4, 1, 12, None)[1] != later
    assert sum(count_in_rows(update)[1] for update in keep_apart(apart)) == len(lengths)


def test_a_long_utterance_stands_alone_and_the_others_do_not() -> None:
    assert group_rows([0, 1, 2, 3, 4], [4, 4, 4, 5, 28], 2, 30) == [(0, 2), (1, 3), (4,)]
    assert group_rows([0, 1], [20, 28], 2, 30) == [(0,), (1,)]
    assert longest_row([4, 5, 28], 30) == 28 and longest_row([4, 5, 18], 30) == 20


def test_what_was_read_is_concatenated_and_what_was_not_is_missing() -> None:
    generator = np.random.default_rng(0)
    audio = {
        name: generator.normal(size=size).astype("float32")
        for name, size in zip("abcd", (5, 3, 4, 2), strict=True)
    }
    batch, rows = concatenate_batch(
        make_audio_batch(list(audio), list(audio.values())), [["a", "c"], ["lost", "b"], ["gone"], ["d"]]
    )
    assert isinstance(batch, AudioBatch)
    assert rows == [["a", "c"], ["b"], ["d"]] and batch.ids == ["a", "b", "d"]
    assert batch.num_samples_B.tolist() == [9, 3, 2]
    wanted = np.zeros((3, 9), "float32")
    wanted[0], wanted[1, :3], wanted[2, :2] = np.concatenate([audio["a"], audio["c"]]), audio["b"], audio["d"]
    assert np.array_equal(batch.waveforms_BS.numpy(), wanted)

    features = [generator.normal(size=(length, 2)).astype("float16") for length in (3, 1)]
    cached, _ = concatenate_batch(make_feature_batch(["x", "y"], features), [["y", "x"]])
    assert isinstance(cached, FeatureBatch)
    assert cached.features_BTC.dtype == torch.float16 and cached.num_frames_B.tolist() == [4]
    assert np.array_equal(cached.features_BTC[0].numpy(), np.concatenate(features[::-1]))

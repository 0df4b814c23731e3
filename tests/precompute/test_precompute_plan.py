"""The division of a corpus into shards and of shards among ranks, and the settings for a device."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precompute.pace import Pace, choose_pace
from precompute.plan import cut_shards, share_shards
from vox.corpus import Utterance

LENGTHS = st.lists(st.integers(400, 60_000), min_size=1, max_size=40)


@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS, max_frames=st.integers(1, 300), world_size=st.integers(1, 5))
def test_shards_hold_everything_once_in_order(lengths: list[int], max_frames: int, world_size: int) -> None:
    utterances = [Utterance(f"{n:03d}", Path(), "", "", length) for n, length in enumerate(lengths)]
    shards = cut_shards(utterances, feature_dim=500, shard_gb=max_frames * 1000 / 1e9 + 1e-12)
    assert [utterance for shard in shards for utterance in shard.utterances] == utterances
    frames = [sum(shard.num_frames) for shard in shards]
    assert all(
        count <= max_frames or len(shard.ids) == 1 for count, shard in zip(frames, shards, strict=True)
    )
    assert all(
        first + second_shard.num_frames[0] > max_frames
        for first, second_shard in zip(frames, shards[1:], strict=False)
    )
    shares = [share_shards(frames, rank, world_size) for rank in range(world_size)]
    assert sorted(number for share in shares for number in share) == list(range(len(shards)))
    loads = [sum(frames[number] for number in share) for share in shares]
    assert max(loads) - min(loads) <= max(frames)


@pytest.mark.parametrize(
    ("device", "num_cores", "workers"), [("cuda", 16, 8), ("cpu", 16, 4), ("cuda", 4, 3)]
)
def test_a_gpu_gets_more_decoders_and_larger_batches(
    monkeypatch: pytest.MonkeyPatch, device: str, num_cores: int, workers: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(num_cores)))
    assert choose_pace(None, None, device) == Pace(320.0 if device == "cuda" else 30.0, workers)
    assert choose_pace(7.0, 0, device) == Pace(7.0, 0)

"""Batches read from a cache by threads equal those of a plain loop, and any damage to a shard is detected.

B batch, T frames, C channels.
"""

import multiprocessing
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.support.caches import flip_byte
from vox.data.batch import FeatureBatch
from vox.data.read_ahead import map_ahead
from vox.data.sources import CachedSource
from vox.errors import CacheError
from vox.features.cache import FeatureCache
from vox.features.fingerprint import Fingerprint
from vox.features.shard import Shard
from vox.features.writer import ShardWriter

NUM_SHARDS, PER_SHARD, CHANNELS = 3, 20, 8
FINGERPRINT = Fingerprint("ab" * 32, (3, 4), {"sample_rate": "16000"})


def features_of(number: int) -> np.ndarray:
    generator = np.random.default_rng(number)
    return generator.standard_normal((int(generator.integers(1, 40)), CHANNELS)).astype("<f2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(NUM_SHARDS):
        numbers = range(index * PER_SHARD, (index + 1) * PER_SHARD)
        num_frames = [len(features_of(number)) for number in numbers]
        writer = ShardWriter(
            tmp_path / f"shard-{index:05d}.h5",
            ids=[f"utt-{number}" for number in numbers],
            num_samples=[400 + 320 * (count - 1) for count in num_frames],
            num_frames=num_frames,
            feature_dim=CHANNELS,
            fingerprint=FINGERPRINT,
            notes={},
        )
        for row, number in enumerate(numbers):
            writer.write(row, features_of(number))
        writer.finish()
    return tmp_path


@pytest.fixture
def cache(folder: Path) -> FeatureCache:
    return FeatureCache(folder, [Shard(path) for path in sorted(folder.iterdir())])


def make_plan(seed: int = 0) -> list[list[str]]:
    order = np.random.default_rng(seed).permutation(NUM_SHARDS * PER_SHARD).tolist()
    plan = [[f"utt-{number}" for number in order[first : first + 8]] for first in range(0, len(order), 8)]
    return [*plan, []]  # nothing is yielded for an empty list


def assert_read(batches: list[FeatureBatch], plan: list[list[str]]) -> None:
    """Compare with batches padded one value at a time, padding included."""
    assert [batch.ids for batch in batches] == plan[:-1]
    for batch in batches:
        expected = [features_of(int(name.removeprefix("utt-"))) for name in batch.ids]
        assert batch.num_frames_B.tolist() == [len(features_TC) for features_TC in expected]
        padded_BTC = torch.zeros(len(expected), max(map(len, expected)), CHANNELS, dtype=torch.float16)
        for row, features_TC in enumerate(expected):
            padded_BTC[row, : len(features_TC)] = torch.from_numpy(features_TC)
        assert torch.equal(batch.features_BTC, padded_BTC)


def read_all(source: CachedSource, seed: int = 0) -> list[FeatureBatch]:
    return list(source.read(make_plan(seed)))


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_are_a_plain_loops(cache: FeatureCache, threads: int) -> None:
    source = CachedSource(cache, threads=threads)
    torch.full((64, 40, CHANNELS), float("nan"), dtype=torch.float16)  # what freed memory may hold
    for seed in (0, 1):  # the second time without checksums
        assert_read(read_all(source, seed), make_plan(seed))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_source_works_in_other_processes(cache: FeatureCache, method: str) -> None:
    source = CachedSource(cache, threads=2)
    assert_read(read_all(source), make_plan())  # files are open now
    with multiprocessing.get_context(method).Pool(1) as pool:
        batches = [
            FeatureBatch(ids, torch.from_numpy(features_BTC), torch.from_numpy(num_frames_B))
            for ids, features_BTC, num_frames_B in pool.apply(_read_as_arrays, (source,))
        ]
    assert_read(batches, make_plan())
    assert_read(read_all(source), make_plan())


def _read_as_arrays(source: CachedSource) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    return [(b.ids, b.features_BTC.numpy(), b.num_frames_B.numpy()) for b in read_all(source)]


def frames_at(path: Path) -> int:
    with h5py.File(path) as file:
        return file["frames"].id.get_offset()


@pytest.mark.parametrize("when", ["before the first read", "after it"])
def test_a_damaged_row_never_reaches_a_batch(cache: FeatureCache, when: str) -> None:
    shard = cache.shards[1]
    source = CachedSource(cache)
    position = frames_at(shard.path) + int(shard.offsets[3]) * CHANNELS * 2
    if when == "after it":
        read_all(source)
    status = shard.path.stat()
    flip_byte(shard.path, position)
    os.utime(shard.path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**7))  # clocks are coarse
    for _ in range(2):
        with pytest.raises(CacheError, match=r"features of utt-23 do not have.*shard-00001\.h5"):
            read_all(source)


def spoil(path: Path, how: str) -> None:
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        with path.open("r+b") as file:
            file.truncate(frames_at(path) + 100)
    else:
        content = path.read_bytes()
        path.rename(path.with_suffix(".old"))  # keeps its inode from being given to the new one
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "message"), [("deleted", "missing shard"), ("truncated", "truncated"), ("replaced", "replaced")]
)
def test_a_shard_spoilt_while_it_is_read_is_one_error(cache: FeatureCache, how: str, message: str) -> None:
    source = CachedSource(cache)
    read_all(source)
    spoil(cache.shards[2].path, how)
    with pytest.raises(CacheError, match=rf"{message}.*shard-00002\.h5.*; ") as caught:
        read_all(source)
    assert "\n" not in str(caught.value)


def test_a_file_that_ends_between_the_look_and_the_read_is_no_signal(folder: Path) -> None:
    shard = Shard(folder / "shard-00000.h5")
    opened = shard._look()
    spoil(shard.path, "truncated")
    out_TC = np.empty((int(shard.offsets[20] - shard.offsets[19]), CHANNELS), "<f2")
    with pytest.raises(CacheError, match="truncated"):
        shard._copy(opened, 19, out_TC)


def test_changed_shards_do_not_use_up_descriptors(cache: FeatureCache) -> None:
    source = CachedSource(cache, threads=4)
    read_all(source)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for step in range(20):
        for shard in cache.shards:
            os.utime(shard.path, ns=(step, step))
        read_all(source)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_memory_is_flat(cache: FeatureCache) -> None:
    source = CachedSource(cache, threads=2)
    for seed in range(10):
        read_all(source, seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(100):
        for _ in source.read(make_plan(seed)):
            pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5_000  # kB


def test_threads_keep_the_order_and_read_only_so_far_ahead() -> None:
    started: list[int] = []
    is_free = threading.Event()

    def make(number: int) -> int:
        started.append(number)
        if number == 0:
            is_free.wait(10)  # the others overtake it
        return number

    made = map_ahead(make, iter(range(1000)), threads=2)
    threading.Timer(0.05, is_free.set).start()
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    assert len(started) <= 10
    before = threading.active_count()
    made.close()  # type: ignore[attr-defined]
    assert threading.active_count() < before and len(started) <= 10


def test_an_error_comes_in_its_turn() -> None:
    def make(number: int) -> float:
        return 1 / (3 - number)

    def consume(made: Iterator[float]) -> Iterator[float]:
        with pytest.raises(ZeroDivisionError):
            yield from made

    assert list(consume(map_ahead(make, range(6), threads=3))) == [1 / 3, 1 / 2, 1.0]

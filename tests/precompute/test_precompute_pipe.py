"""The pipeline of phase 1: its threads wait for each other only as needed, and lose no error."""

import errno
import logging
import pkgutil
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from precompute.extract import compute_at_once, compute_shards
from precompute.plan import CacheWork, plan_cache
from tests.support.precomputing import cores
from vox.corpus import Utterance
from vox.errors import DeviceError
from vox.features.fingerprint import Fingerprint
from vox.features.shard import Shard, hash_after_user_block
from vox.units import samples_to_frames

NUM_UTTERANCES = 8


class LoudnessFeatures(nn.Module):
    """Features are an utterance's peak."""

    def forward(
        self, waveforms_BS: torch.Tensor, num_samples_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return [B, T, 2] and the frames of each utterance."""
        num_frames_B = samples_to_frames(num_samples_B)
        peaks_B = waveforms_BS.abs().amax(dim=1)
        return peaks_B[:, None, None].expand(-1, int(num_frames_B.max()), 2), num_frames_B


@pytest.fixture
def work(tmp_path: Path) -> CacheWork:
    """Plan shards of two recordings each, of 8 frames and 2 channels."""
    utterances = []
    for number in range(NUM_UTTERANCES):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.full(3_000, number / 10, np.float32), 16_000)
        utterances.append(Utterance(str(number), path, "go", "", 3_000))
    fingerprint = Fingerprint("ab" * 32, (1,), {})
    return plan_cache("loud", utterances, fingerprint, wavlm="", feature_dim=2, shard_gb=2 * 9 * 2 * 2 / 1e9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def compute(work: CacheWork, folder: Path) -> None:
    """Compute all shards, one recording a batch."""
    numbers, device = range(len(work.shards)), torch.device("cpu")
    compute_shards(work, numbers, folder, LoudnessFeatures(), device, batch_seconds=0.1, workers=0)  # type: ignore[arg-type]


def test_several_shards_are_finished_at_once(
    work: CacheWork, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to three shards wait for the disk while others are computed, and each keeps its own frames."""
    assert len(work.shards) == 4
    all_there = threading.Barrier(3, timeout=10)
    num_calls = iter(range(len(work.shards)))

    def sync(parent: Path) -> None:
        if next(num_calls) < 3:
            all_there.wait()

    monkeypatch.setattr("vox.features.writer.sync", sync)
    compute(work, folder)
    read = [float(Shard(path).read(row)[0, 0]) for path in sorted(folder.iterdir()) for row in range(2)]
    np.testing.assert_allclose(read, np.arange(NUM_UTTERANCES) / 10, atol=1e-3)


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_an_error_in_finishing_is_raised_and_leaves_whole_shards_only(
    work: CacheWork, folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Also an error of the last shard, after which nothing is submitted. Shards completed before are kept."""

    def fill_disk(fd: int) -> str:
        if f"shard-{failing:05d}" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise OSError(errno.ENOSPC, "no space left", "shard")
        time.sleep(0.05)  # the others come after it
        return hash_after_user_block(fd)

    monkeypatch.setattr("vox.features.writer.hash_after_user_block", fill_disk)
    with pytest.raises(OSError, match="no space left"):
        compute(work, folder)
    paths = sorted(folder.iterdir())
    names = [path.name for path in paths]
    assert names[:failing] == [f"shard-{number:05d}.h5" for number in range(failing)]
    assert f"shard-{failing:05d}.h5" not in names
    assert all(Shard(path).read(0).shape == (9, 2) for path in paths)


def slowly(call: Callable) -> Callable:
    """Make a function take 20 ms longer."""

    def slow(*arguments: object, **keywords: object) -> object:
        time.sleep(0.02)
        return call(*arguments, **keywords)

    return slow


@pytest.mark.parametrize(
    ("target", "is_slow"),
    [
        ("vox.data.workers.read_audio", (True, False)),
        ("vox.features.writer.ShardWriter.write", (False, True)),
        ("tests.precompute.test_precompute_pipe.LoudnessFeatures.forward", (False, False)),
    ],
    ids=["decoding", "writing", "computing"],
)
def test_what_was_waited_for_is_told(
    work: CacheWork,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    target: str,
    is_slow: tuple[bool, bool],
) -> None:
    monkeypatch.setattr("precompute.write.QUEUED_BATCHES", 1)
    owner, _, name = target.rpartition(".")
    monkeypatch.setattr(target, slowly(getattr(pkgutil.resolve_name(owner), name)))
    with caplog.at_level(logging.INFO, "precompute.extract"):
        compute(work, folder)
    told = re.search(
        r"loud: waited ([\d.]+) % of the time for decoding, ([\d.]+) % for the disk", caplog.text
    )
    assert told is not None
    assert tuple(float(share) > 40 for share in told.groups()) == is_slow


@pytest.mark.parametrize(
    ("num_cores", "at_once", "share"), [(1, 1, 1), (3, 3, 1), (6, 3, 2), (7, 1, 7), (8, 4, 2)]
)
def test_a_cpu_computes_a_few_batches_at_once(num_cores: int, at_once: int, share: int) -> None:
    meeting = threading.Barrier(at_once, timeout=10)  # broken unless so many come together

    def compute(number: int) -> tuple[int, int]:
        meeting.wait()
        return number, torch.get_num_threads()

    numbers = range(2 * at_once)
    with cores(num_cores):
        made = list(compute_at_once(compute, numbers, torch.device("cpu")))
        with ThreadPoolExecutor(1) as later:  # a thread begins with what was set last, by whichever thread
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == num_cores
    assert made == [(number, share) for number in numbers]


def test_a_large_batch_is_computed_alone_with_all_cores() -> None:
    """In the main thread, which receives interrupts; many long recordings among short ones."""
    lock, company, num_threads = threading.Lock(), 0, {}

    def compute(number: int) -> bool:
        nonlocal company
        with lock:
            company += 1
            is_alone = company == 1
        num_threads[number] = torch.get_num_threads()
        time.sleep(0.005)
        with lock:
            is_alone = is_alone and company == 1
            company -= 1
        return is_alone and threading.current_thread() is threading.main_thread()

    def is_large(number: int) -> bool:
        return number % 3 > 0

    with cores(4):
        alone = list(compute_at_once(compute, range(30), torch.device("cpu"), is_large))
    assert all(alone[number] for number in range(30) if is_large(number))
    assert num_threads == {number: 4 if is_large(number) else 1 for number in range(30)}


@pytest.mark.parametrize("batch_seconds", [0.1, 0.2])
def test_a_recording_longer_than_the_budget_is_a_large_batch(
    work: CacheWork, folder: Path, monkeypatch: pytest.MonkeyPatch, batch_seconds: float
) -> None:
    """Recordings of 0.19 s."""
    threads, forward = [], LoudnessFeatures.forward

    def watch(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        threads.append(threading.current_thread())
        return forward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LoudnessFeatures, "forward", watch)
    numbers, device = range(len(work.shards)), torch.device("cpu")
    with cores(2):
        compute_shards(
            work,
            numbers,
            folder,
            LoudnessFeatures(),
            device,
            batch_seconds=batch_seconds,
            workers=0,  # type: ignore[arg-type]
        )
    assert len(threads) == NUM_UTTERANCES
    assert (threading.main_thread() in threads) == (batch_seconds == 0.1)


def test_a_gpu_computes_one_batch_after_the_other_in_this_thread() -> None:
    threads = compute_at_once(lambda _: threading.get_ident(), range(5), torch.device("cuda"))
    assert list(threads) == [threading.get_ident()] * 5


class ShortOfMemory(nn.Module):
    """Raise torch's error for insufficient memory."""

    def __init__(self, error: RuntimeError) -> None:
        super().__init__()
        self.error = error

    def forward(self, waveforms_BS: torch.Tensor, num_samples_B: torch.Tensor) -> None:
        """Raise the error."""
        raise self.error


@pytest.mark.parametrize(
    ("batch_seconds", "message"),
    [
        (0.1, r"too little memory for this recording: 0, 0 s; cut it into shorter ones"),
        (9, r"too little memory for a batch whose longest .*: 0, 0 s; lower --batch-seconds"),
    ],
)
@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA")]
)
def test_a_batch_too_large_for_memory_is_named(
    work: CacheWork, folder: Path, error: RuntimeError, batch_seconds: float, message: str
) -> None:
    short, device = ShortOfMemory(error), torch.device("cpu")
    with pytest.raises(DeviceError, match=message):
        compute_shards(work, [0], folder, short, device, batch_seconds=batch_seconds, workers=0)  # type: ignore[arg-type]
    assert not list(folder.iterdir())

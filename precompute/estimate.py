"""How long a cache will take: a few batches and a write timed before the work, leaving nothing."""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from precompute.extract import (
    compute_at_once,
    compute_batch,
    computing_precision,
    count_at_once,
    is_large_batch,
)
from precompute.pace import Pace
from precompute.plan import probed_samples
from precompute.prepare import CacheState
from vox.corpus import Utterance
from vox.data.batch import AudioBatch
from vox.data.plan import plan_by_length
from vox.data.workers import decode_and_hash_batches
from vox.device import autocast, synchronize
from vox.disk import free_bytes, nearest_folder
from vox.progress import format_duration
from vox.units import samples_to_seconds, seconds_to_samples
from vox.wavlm.extractor import FeatureExtractor

TIMED_BATCHES = 4  # after one to warm up
MAX_TIMED_SECONDS = 4.0
WRITTEN_BYTES = 64_000_000
CPU_BATCH_SECONDS = 10.0  # of audio: a CPU's speed hardly depends on it, and an estimate must be quick


def estimate_time(
    states: Sequence[CacheState], extractor: FeatureExtractor, device: torch.device, pace: Pace
) -> str:
    """Say how long this rank's missing shards will take: what is slower of computing and the disk.

    From a few batches that are decoded and computed, and a file that is written and removed.
    """
    total_seconds = sum(state.seconds_to_compute for state in states)
    if total_seconds == 0:
        return "nothing to compute here"
    batches = choose_batches(states, pace.batch_seconds, device)
    elapsed, audio_seconds, num_timed = _time_batches(batches, extractor, device, pace)
    if num_timed == 0:
        return "no estimate of the time: none of the recordings tried can be decoded"
    needed = total_seconds * elapsed / audio_seconds
    bytes_per_second = measure_disk(states[0].folder)
    writing = sum(state.num_bytes_to_compute for state in states) / bytes_per_second
    limit = f"; the disk takes {bytes_per_second / 1e6:.0f} MB/s" if writing > needed else ""
    needed = max(needed, writing)
    return (
        f"about {format_duration(needed)} here ({total_seconds / needed:.1f} times real time, "
        f"from {num_timed} timed batch{'es' * (num_timed != 1)}{limit})"
    )


def measure_disk(folder: Path) -> float:
    """Return how many bytes a second reach the disk that a folder is or will be on; leave nothing there."""
    block = os.urandom(1 << 20)  # some disks compress
    num_bytes = max(len(block), min(WRITTEN_BYTES, free_bytes(folder) // 2))
    start = time.perf_counter()
    with tempfile.TemporaryFile(dir=nearest_folder(folder)) as file:
        for _ in range(0, num_bytes, len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return file.tell() / (time.perf_counter() - start)


def choose_batches(
    states: Sequence[CacheState], batch_seconds: float, device: torch.device
) -> list[list[Utterance]]:
    """Choose batches evenly from the longest to the shortest of the missing shards, after one to warm up.

    The first one is a part of the second, where it can be, so that every timed batch has a new shape: nearly
    all batches of the work have, and a GPU looks for memory and kernels for each.
    """
    if device.type == "cpu":
        batch_seconds = min(batch_seconds, CPU_BATCH_SECONDS)
    utterances = [
        utterance
        for state in states
        for number in state.to_compute
        for utterance in state.work.shards[number].utterances
    ]
    lengths = [probed_samples(utterance) for utterance in utterances]
    planned = plan_by_length(lengths, seconds_to_samples(batch_seconds))
    count = min(TIMED_BATCHES, len(planned))
    chosen = [planned[(2 * part + 1) * len(planned) // (2 * count)] for part in range(count)]
    # From the middle outwards, in case that the time is up after one: it should be a typical one.
    chosen.sort(key=lambda batch: abs(planned.index(batch) - len(planned) // 2))
    warm_up = chosen[0][1:] or chosen[0]
    return [[utterances[position] for position in batch] for batch in (warm_up, *chosen)]


def _time_batches(
    batches: Sequence[Sequence[Utterance]], extractor: FeatureExtractor, device: torch.device, pace: Pace
) -> tuple[float, float, int]:
    """Return the seconds that the timed batches took, their seconds of audio, and their number."""
    extractor = extractor.to(device).eval()
    decoding, computing, audio_seconds, num_timed = 0.0, 0.0, 0.0, 0
    decoded = decode_and_hash_batches(batches, pin=device.type == "cuda")
    for index in range(len(batches)):
        start = time.perf_counter()
        batch, _, _ = next(decoded)
        decoding_seconds = time.perf_counter() - start
        if not batch.ids:
            continue
        is_large = is_large_batch(batch, pace.batch_seconds)
        copies = 1 if is_large else count_at_once(device)  # as the work will compute it
        start = time.perf_counter()
        _compute(extractor, batch, device, copies)
        if index == 0 and time.perf_counter() - start < MAX_TIMED_SECONDS:
            continue
        decoding += decoding_seconds * copies
        computing += time.perf_counter() - start
        audio_seconds += samples_to_seconds(int(batch.num_samples_B.sum())) * copies
        num_timed += 1
        if decoding + computing > MAX_TIMED_SECONDS:
            break
    # Workers decode beside the computation; without any, one comes after the other.
    elapsed = max(decoding / pace.workers, computing) if pace.workers else decoding + computing
    return elapsed, audio_seconds, num_timed


def _compute(extractor: FeatureExtractor, batch: AudioBatch, device: torch.device, copies: int) -> None:
    """Compute a batch so many times at once; what is computed once has all cores."""
    keys = [(0, row) for row in range(len(batch.ids))]

    def compute(batch: AudioBatch) -> None:
        with torch.inference_mode(), autocast(device, computing_precision(device)):
            compute_batch(extractor, batch, keys, [], {}, device)

    for _ in compute_at_once(compute, [batch] * copies, device, lambda _: copies == 1):
        pass
    synchronize(device)

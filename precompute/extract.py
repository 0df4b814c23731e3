"""Decode, compute, write: three steps that run beside each other.

Worker processes decode the planned batches, this process runs WavLM, a thread writes. What is computed
together depends on the shard and the budget of a batch, never on where a run was restarted.

A GPU computes one batch after the other. On a CPU a few threads compute a batch each: cores that share one
wait for each other after every operation.

B batch, S samples, T frames, C channels.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import torch

from precompute.plan import CacheWork, probed_samples
from precompute.write import ComputedBatch, Key, WriterThread
from vox.corpus import Problem
from vox.data.batch import AudioBatch, AudioFailure
from vox.data.plan import plan_by_length
from vox.data.read_ahead import map_ahead
from vox.data.workers import decode_and_hash_batches
from vox.device import autocast
from vox.errors import DeviceError
from vox.progress import ProgressBar
from vox.units import samples_to_seconds, seconds_to_samples
from vox.wavlm.extractor import FeatureExtractor

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Made = TypeVar("Made")

# A batch as it comes from decoding: with its failures, and the sha256 of each recording.
Decoded = tuple[AudioBatch, list[AudioFailure], dict[str, str]]

MAX_CPU_THREADS = 4  # that compute a batch each; they share the cores, and each has activations of its own
COMPUTED_AHEAD = 3  # batches issued to the device and not yet handed over


def compute_shards(
    work: CacheWork,
    numbers: Sequence[int],
    folder: Path,
    extractor: FeatureExtractor,
    device: torch.device,
    *,
    batch_seconds: float,
    workers: int,
) -> list[Problem]:
    """Compute the shards of these numbers and put each in place as it is done.

    Returns the utterances that were skipped, with reasons. Raises OSError when a shard cannot be
    written; nothing unfinished is left behind then.
    """
    batches = [
        [work.shards[number].utterances[row] for row in rows]
        for number in numbers
        for rows in plan_by_length(work.shards[number].num_samples, seconds_to_samples(batch_seconds))
    ]
    keys = {
        utterance.id: (number, row)
        for number in numbers
        for row, utterance in enumerate(work.shards[number].utterances)
    }
    seconds = {
        (number, row): samples_to_seconds(probed_samples(utterance))
        for number in numbers
        for row, utterance in enumerate(work.shards[number].utterances)
    }
    precision = computing_precision(device)
    extractor = extractor.to(device).eval()
    notes = describe_computation(device, precision, batch_seconds)
    with (
        ProgressBar(sum(seconds.values()), work.plan.title) as progress,
        WriterThread(work, folder, notes) as writer,
    ):
        pipe = _Pipe(writer)

        def compute(decoded: Decoded) -> ComputedBatch:
            batch, failures, sha256 = decoded
            failed = [(keys[failure.id], failure.reason) for failure in failures]
            hashes = {keys[name]: value for name, value in sha256.items()}
            with pipe.computing(), torch.inference_mode(), autocast(device, precision):
                return compute_batch(
                    extractor, batch, [keys[name] for name in batch.ids], failed, hashes, device
                )

        decoded = decode_and_hash_batches(batches, workers=workers, pin=device.type == "cuda")

        def is_large(decoded: Decoded) -> bool:
            return is_large_batch(decoded[0], batch_seconds)

        with closing(compute_at_once(compute, pipe.receive(decoded), device, is_large)) as batches_done:
            for computed in batches_done:
                pipe.send(computed)
                done = [*computed.keys, *(key for key, _ in computed.failures)]
                progress.add(sum(seconds[key] for key in done))
        pipe.drain()
    log.info("%s: %s", work.plan.title, pipe.describe_waits())
    return writer.skipped


def is_large_batch(batch: AudioBatch, batch_seconds: float) -> bool:
    """Say whether a batch is one recording longer than the budget of a batch."""
    return batch.waveforms_BS.numel() > seconds_to_samples(batch_seconds)


def count_at_once(device: torch.device) -> int:
    """Say how many batches are computed at once: on a CPU the most that leave no core idle."""
    if device.type != "cpu":
        return 1
    num_cores = torch.get_num_threads()
    return max(range(1, MAX_CPU_THREADS + 1), key=lambda count: (num_cores // count * count, count))


def compute_at_once(
    compute: Callable[[Item], Made],
    items: Iterable[Item],
    device: torch.device,
    is_large: Callable[[Item], bool] = lambda _: False,
) -> Generator[Made, None, None]:
    """Yield compute(item) for each item, in order: one after the other, or on a CPU a few at once.

    On a CPU `compute` runs in threads of its own, where neither inference mode nor autocast is on. A large
    item has memory and cores to itself, and this thread, which an interrupt reaches at once. How many cores
    an item gets depends on itself alone, so that its result is the same to the bit whatever is computed
    beside it.
    """
    if device.type != "cpu":
        yield from map(compute, items)
        return
    num_cores, at_once = torch.get_num_threads(), count_at_once(device)

    def compute_with_its_share(item: Item) -> Made:
        torch.set_num_threads(num_cores // at_once)
        return compute(item)

    try:
        for are_large, group in groupby(items, is_large):
            torch.set_num_threads(num_cores)
            if are_large:
                yield from map(compute, group)
            else:
                yield from map_ahead(compute_with_its_share, group, at_once)
    finally:
        torch.set_num_threads(num_cores)


class _Pipe:
    """The computation's two ends, with a clock on each: what it waited for, and how long.

    Batches stay here until the device is done with them, so that a wait for the writer is one for the
    disk and never one for the GPU.
    """

    def __init__(self, writer: WriterThread) -> None:
        self._writer = writer
        self._computing: deque[ComputedBatch] = deque()
        self._threads: set[int] = set()  # that are computing a batch
        self._start = time.perf_counter()
        self._decoding_seconds = 0.0
        self._disk_seconds = 0.0

    def receive(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield decoded batches; count the waits that left the device idle."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            item = next(iterator, None)
            if not self._threads and all(
                batch.copied is None or batch.copied.query() for batch in self._computing
            ):
                self._decoding_seconds += time.perf_counter() - start
            if item is None:
                return
            yield item

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Note that the thread at hand is computing."""
        thread = threading.get_ident()
        self._threads.add(thread)
        try:
            yield
        finally:
            self._threads.discard(thread)

    def send(self, batch: ComputedBatch) -> None:
        """Take a batch that is being computed; hand over the oldest of three when it is done."""
        self._computing.append(batch)
        if len(self._computing) >= COMPUTED_AHEAD or batch.copied is None:
            self._hand_over()

    def drain(self) -> None:
        """Hand over what is left."""
        while self._computing:
            self._hand_over()

    def describe_waits(self) -> str:
        """Say which shares of the time so far were spent waiting."""
        share = 100 / (time.perf_counter() - self._start)
        return (
            f"waited {self._decoding_seconds * share:.1f} % of the time for decoding, "
            f"{self._disk_seconds * share:.1f} % for the disk"
        )

    def _hand_over(self) -> None:
        batch = self._computing.popleft()
        if batch.copied is not None:
            batch.copied.synchronize()
        start = time.perf_counter()
        self._writer.put(batch)
        if not self._threads:
            self._disk_seconds += time.perf_counter() - start


def compute_batch(
    extractor: FeatureExtractor,
    batch: AudioBatch,
    keys: list[Key],
    failures: list[tuple[Key, str]],
    audio_sha256: dict[Key, str],
    device: torch.device,
) -> ComputedBatch:
    """Run WavLM on a batch, round to float16 on the device, and start the copy to the host.

    Raises DeviceError when memory is too small for it.
    """
    if not keys:
        nothing = torch.zeros(0)
        return ComputedBatch([], nothing, nothing, nothing, failures, audio_sha256, None)
    batch = batch.to(device)
    with _explain_shortage(batch):
        features_BTC, num_frames_B = extractor(batch.waveforms_BS, batch.num_samples_B)
    rounded_BTC = features_BTC.to(torch.float16)
    is_finite_B = rounded_BTC.isfinite().flatten(1).all(dim=1)
    copies = [_copy_to_host(tensor) for tensor in (rounded_BTC, num_frames_B, is_finite_B)]
    copied = None
    if device.type == "cuda":
        copied = torch.cuda.Event()
        # The stream that this device copies on: without a name it is the current device's, which may be
        # another GPU's, idle, and so done before the copy.
        copied.record(torch.cuda.current_stream(device))
    return ComputedBatch(keys, copies[0], copies[1], copies[2], failures, audio_sha256, copied)


@contextmanager
def _explain_shortage(batch: AudioBatch) -> Iterator[None]:
    """Name the longest recording of a batch that memory is too small for, and what helps."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
    else:
        return
    longest = int(batch.num_samples_B.argmax())
    seconds = samples_to_seconds(int(batch.num_samples_B[longest]))
    alone = len(batch.ids) == 1
    raise DeviceError(
        f"too little memory for {'this recording' if alone else 'a batch whose longest recording is this'}",
        where=f"{batch.ids[longest]}, {seconds:.0f} s",
        remedy="cut it into shorter ones, or leave it out" if alone else "lower --batch-seconds",
    )


def computing_precision(device: torch.device) -> torch.dtype:
    """Return what features are computed in: half precision where it is fast."""
    return torch.float16 if device.type == "cuda" else torch.float32


def describe_computation(
    device: torch.device, precision: torch.dtype, batch_seconds: float
) -> dict[str, str]:
    """Say how features were computed: kept with each shard, compared with nothing."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "precision": str(precision).removeprefix("torch."),
        "device": name,
        "batch_seconds": f"{batch_seconds:g}",
    }


def _copy_to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)

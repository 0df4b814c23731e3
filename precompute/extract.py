"""Decode, compute, write: three steps that run beside each other.

Worker processes decode the planned batches, this process runs WavLM, a thread writes. What is computed
together depends on the shard alone, never on where a run was restarted.

B batch, S samples, T frames, C channels.
"""

import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from precompute.plan import CacheWork, probed_samples
from vox.corpus import Problem
from vox.data.batch import AudioBatch
from vox.data.plan import plan_by_length
from vox.data.sources import decode_batches
from vox.device import autocast
from vox.features.shard import ShardWriter
from vox.progress import AudioProgress
from vox.units import samples_to_seconds, seconds_to_samples
from vox.wavlm.extractor import FeatureExtractor

log = logging.getLogger(__name__)

QUEUED_BATCHES = 4  # computed and not yet written

Key = tuple[int, int]  # a shard's number, and an utterance's row in it


@dataclass(frozen=True)
class ComputedBatch:
    """Features on their way to the host: to be read once `copied`, if there is one, has happened."""

    keys: list[Key]  # [B]
    features_BTC: torch.Tensor  # float16
    num_frames_B: torch.Tensor  # int64
    is_finite_B: torch.Tensor
    failures: list[tuple[Key, str]]
    copied: torch.cuda.Event | None


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
        utterance.id: samples_to_seconds(probed_samples(utterance))
        for number in numbers
        for utterance in work.shards[number].utterances
    }
    precision = torch.float16 if device.type == "cuda" else torch.float32
    extractor = extractor.to(device).eval()
    notes = describe_computation(device, precision, batch_seconds)
    decoded = decode_batches(batches, workers=workers, pin=device.type == "cuda")
    with (
        AudioProgress(sum(seconds.values()), work.plan.split) as progress,
        WriterThread(work, folder, notes) as writer,
        torch.inference_mode(),
        autocast(device, precision),
    ):
        for batch, failures in decoded:
            failed = [(keys[failure.id], failure.reason) for failure in failures]
            writer.put(compute_batch(extractor, batch, [keys[name] for name in batch.ids], failed, device))
            progress.add(sum(seconds[name] for name in [*batch.ids, *(failure.id for failure in failures)]))
    return writer.skipped


def compute_batch(
    extractor: FeatureExtractor,
    batch: AudioBatch,
    keys: list[Key],
    failures: list[tuple[Key, str]],
    device: torch.device,
) -> ComputedBatch:
    """Run WavLM on a batch, round to float16 on the device, and start the copy to the host."""
    if not keys:
        nothing = torch.zeros(0)
        return ComputedBatch([], nothing, nothing, nothing, failures, None)
    batch = batch.to(device)
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
    return ComputedBatch(keys, copies[0], copies[1], copies[2], failures, copied)


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


class WriterThread:
    """Writes computed batches in the background, one shard after the other.

    An error in the thread is raised to whoever puts the next batch or leaves the context. Leaving it
    with an error removes the shard that is not finished.
    """

    def __init__(self, work: CacheWork, folder: Path, notes: dict[str, str]) -> None:
        self.skipped: list[Problem] = []
        self._work = work
        self._folder = folder
        self._notes = notes
        self._queue: queue.Queue[ComputedBatch | None] = queue.Queue(QUEUED_BATCHES)
        self._error: BaseException | None = None
        self._is_cancelled = False
        self._writers: dict[int, ShardWriter] = {}
        self._thread = threading.Thread(target=self._run, name="shard writer", daemon=True)

    def __enter__(self) -> "WriterThread":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_cancelled = kind is not None
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, batch: ComputedBatch) -> None:
        """Hand over a batch; waits while the disk is behind."""
        if self._error is not None:
            raise self._error
        self._queue.put(batch)

    def _run(self) -> None:
        # After an error the queue is still emptied, so that nobody waits to put something into it.
        try:
            while (batch := self._queue.get()) is not None:
                if self._error is None and not self._is_cancelled:
                    self._write_or_keep_error(batch)
        finally:
            for writer in self._writers.values():
                writer.abort()

    def _write_or_keep_error(self, batch: ComputedBatch) -> None:
        try:
            self._write(batch)
        except BaseException as error:  # raised again by the thread that waits for this one
            self._error = error

    def _write(self, batch: ComputedBatch) -> None:
        if batch.copied is not None:
            batch.copied.synchronize()
        for index, key in enumerate(batch.keys):
            if batch.is_finite_B[index]:
                features_TC = batch.features_BTC[index, : int(batch.num_frames_B[index])]
                self._writer_of(key).write(key[1], features_TC.numpy())
            else:
                self._skip(key, "features overflow float16")
        for key, reason in batch.failures:
            self._skip(key, reason)
        for number, writer in list(self._writers.items()):
            if writer.is_complete:
                del self._writers[number]
                writer.finish()

    def _skip(self, key: Key, reason: str) -> None:
        self._writer_of(key).skip(key[1], reason)
        self.skipped.append(Problem(self._work.shards[key[0]].utterances[key[1]].id, reason))

    def _writer_of(self, key: Key) -> ShardWriter:
        if key[0] not in self._writers:
            shard = self._work.shards[key[0]]
            self._writers[key[0]] = ShardWriter(
                self._folder / shard.name,
                ids=shard.ids,
                num_samples=shard.num_samples,
                num_frames=shard.num_frames,
                feature_dim=self._work.plan.feature_dim,
                fingerprint=self._work.plan.fingerprint,
                notes=self._notes,
            )
        return self._writers[key[0]]


def _copy_to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)

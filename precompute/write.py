"""Computed features on their way to disk: one thread writes them, others finish whole shards.

Finishing a shard reads it back to hash it and waits for the disk: 1.5 to 2 s a gigabyte, in which the next
shard's batches are written already. A GPU can compute a gigabyte in that time.

B batch, T frames, C channels.
"""

import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from precompute.plan import OVERFLOW, CacheWork
from vox.corpus import Problem
from vox.features.writer import ShardWriter

QUEUED_BATCHES = 4  # computed and not yet written
FINISHING_THREADS = 3
FINISHING_SHARDS = FINISHING_THREADS + 1  # at once: one waits for a thread

Key = tuple[int, int]  # a shard's number, and an utterance's row in it


@dataclass(frozen=True)
class ComputedBatch:
    """Features on their way to the host: to be read once `copied`, if there is one, has happened."""

    keys: list[Key]  # [B]
    features_BTC: torch.Tensor  # float16
    num_frames_B: torch.Tensor  # int64
    is_finite_B: torch.Tensor
    failures: list[tuple[Key, str]]
    audio_sha256: dict[Key, str]  # of keys and failures
    copied: torch.cuda.Event | None


class WriterThread:
    """Writes computed batches in the background, one shard after the other.

    An error in a thread is raised when the next batch is put, or on leaving the context. Leaving it with an
    error removes the shard that is not finished.
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
        self._finisher = ThreadPoolExecutor(FINISHING_THREADS, "shard finisher")
        self._finishing: list[Future[None]] = []

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
        # After an error the queue is still emptied, so that no caller waits to put something into it.
        try:
            while (batch := self._queue.get()) is not None:
                if self._error is None and not self._is_cancelled:
                    self._write_or_keep_error(batch)
        finally:
            for writer in self._writers.values():
                writer.abort()
            self._finisher.shutdown()  # a shard that is complete is put in place, whatever came after it

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
                writer = self._writer_of(key)
                writer.write(key[1], features_TC.numpy(), audio_sha256=batch.audio_sha256[key])
            else:
                self._skip(batch, key, OVERFLOW)
        for key, reason in batch.failures:
            self._skip(batch, key, reason)
        for number, writer in list(self._writers.items()):
            if writer.is_complete:
                self._start_to_finish(number)

    def _start_to_finish(self, number: int) -> None:
        while len(self._finishing) >= FINISHING_SHARDS:
            self._finishing.pop(0).result()
        writer = self._writers.pop(number)
        self._finishing.append(self._finisher.submit(self._finish_or_keep_error, writer))

    def _finish_or_keep_error(self, writer: ShardWriter) -> None:
        try:
            writer.finish()
        except BaseException as error:
            self._error = error

    def _skip(self, batch: ComputedBatch, key: Key, reason: str) -> None:
        self._writer_of(key).skip(key[1], reason, audio_sha256=batch.audio_sha256[key])
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

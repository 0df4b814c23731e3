"""Recordings decoded batch by batch in worker processes.

Nothing here touches torch's global random state, so that a resumed run draws the same masks as one that was
not interrupted.
"""

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vox.audio import hash_recording, read_audio
from vox.audio.channels import warn_once
from vox.corpus import Utterance
from vox.data.batch import AudioBatch, AudioFailure, make_audio_batch
from vox.errors import WORKER_DEATH, AudioError, VoxError, is_worker_death

PREFETCHED_BATCHES = 2  # by each worker

SHARED_MEMORY = "/dev/shm"  # where torch passes tensors between processes
MIN_SHARED_BYTES = 256_000_000
SAMPLE_BYTES = 4

# What torchrun, SLURM, systemd or a terminal send to all processes of a run at once.
GROUP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Item = TypeVar("Item")


def decode_batches(
    batches: Sequence[Sequence[Utterance]], *, workers: int = 0, pin: bool = False
) -> Iterator[tuple[AudioBatch, list[AudioFailure]]]:
    """Decode recordings batch by batch, in order, in `workers` processes (0: in this one).

    Yields each batch (without the recordings that failed; it may be empty) and its failures. Raises
    VoxError when a worker dies (the system ends one when memory is short).
    """
    for batch, failures, _ in _load_batches(batches, workers, pin, is_hashed=False):
        yield batch, failures


def decode_and_hash_batches(
    batches: Sequence[Sequence[Utterance]], *, workers: int = 0, pin: bool = False
) -> Iterator[tuple[AudioBatch, list[AudioFailure], dict[str, str]]]:
    """Decode as `decode_batches` does; yield the sha256 of each recording's file as well, by utterance.

    It is empty where the file cannot be read.
    """
    yield from _load_batches(batches, workers, pin, is_hashed=True)


def _load_batches(
    batches: Sequence[Sequence[Utterance]], workers: int, pin: bool, *, is_hashed: bool
) -> Iterator[tuple[AudioBatch, list[AudioFailure], dict[str, str]]]:
    loader: DataLoader[_DecodedBatch | VoxError | OSError] = DataLoader(
        _BatchDataset(batches, not _has_shared_memory(batches, workers), is_hashed),
        batch_size=None,
        collate_fn=_keep,
        num_workers=min(workers, len(batches)),
        prefetch_factor=PREFETCHED_BATCHES if workers and batches else None,
        pin_memory=pin and torch.cuda.is_available(),  # in a thread of its own, if there are workers
        worker_init_fn=_ignore_all_but_the_parent,
        generator=torch.Generator(),  # its own: the loader would draw from the global one
    )
    for decoded in _explain_dead_workers(loader):
        if isinstance(decoded, Exception):
            raise decoded
        for warning in decoded.warnings:  # here, because an epoch's workers do not know of those before
            warn_once(warning)
        yield decoded.to_audio_batch(), decoded.failures, decoded.audio_sha256


def _has_shared_memory(batches: Sequence[Sequence[Utterance]], workers: int) -> bool:
    """Say whether /dev/shm holds what the workers may have ready at once, twice over.

    A container's is often 64 MB (Docker's default), and a worker that finds it full dies of a bus error.
    """
    lengths = [len(batch) * max((u.num_samples or 0 for u in batch), default=0) for batch in batches]
    num_bytes = max(lengths, default=0) * SAMPLE_BYTES * (workers * PREFETCHED_BATCHES + 1)
    try:
        return shutil.disk_usage(SHARED_MEMORY).free >= max(2 * num_bytes, MIN_SHARED_BYTES)
    except OSError:
        return False


def _explain_dead_workers(loader: DataLoader[Item]) -> Iterator[Item]:
    try:
        yield from _start_workers(loader)
    except RuntimeError as error:
        if is_worker_death(error):
            raise VoxError(WORKER_DEATH) from error
        raise


def _start_workers(loader: DataLoader[Item]) -> Iterator[Item]:
    """Start the processes with GROUP_SIGNALS blocked: they inherit what this thread blocks."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _ignore_all_but_the_parent(_: int) -> None:
    """Ignore signals that do not come from the parent process, such as those sent to the process group.

    On SIGTERM the parent finishes the update and saves, and needs its workers for that: a dead worker is an
    error. It terminates hung workers itself, and all of them when it exits.
    """
    if not hasattr(signal, "sigwaitinfo"):  # not Linux: the sender is unknown
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    threading.Thread(target=_wait_for_the_parent, daemon=True).start()


def _wait_for_the_parent() -> None:
    while signal.sigwaitinfo(GROUP_SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


def _keep(item: Item) -> Item:
    """Hand a finished batch on as it is."""
    return item


@dataclass(frozen=True)
class _DecodedBatch:
    """A batch on its way from a worker: tensors travel through shared memory, arrays through a pipe."""

    ids: list[str]
    waveforms_BS: torch.Tensor | np.ndarray
    num_samples_B: torch.Tensor | np.ndarray
    failures: list[AudioFailure]
    audio_sha256: dict[str, str]  # by utterance; of none unless asked for
    warnings: list[str]

    def to_audio_batch(self) -> AudioBatch:
        waveforms_BS, num_samples_B = map(torch.as_tensor, (self.waveforms_BS, self.num_samples_B))
        return AudioBatch(self.ids, waveforms_BS, num_samples_B)

    def pin_memory(self) -> "_DecodedBatch":
        """Copy to pinned memory: the loader calls it."""
        batch = self.to_audio_batch().pin()
        return replace(self, waveforms_BS=batch.waveforms_BS, num_samples_B=batch.num_samples_B)


class _BatchDataset(Dataset[_DecodedBatch | VoxError | OSError]):
    """One item is one planned batch, decoded, or the error that ends the work.

    The loader would raise an error again with the worker's traceback for a message.
    """

    def __init__(
        self, batches: Sequence[Sequence[Utterance]], is_through_pipe: bool, is_hashed: bool
    ) -> None:
        self.batches = batches
        self.is_through_pipe = is_through_pipe  # three times as slow, and wherever there is little memory
        self.is_hashed = is_hashed

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> _DecodedBatch | VoxError | OSError:
        try:
            return self._decode(index)
        except (VoxError, OSError) as error:
            return error

    def _decode(self, index: int) -> _DecodedBatch:
        ids, waveforms, failures, audio_sha256 = [], [], [], {}
        warnings: list[str] = []
        for utterance in self.batches[index]:
            if self.is_hashed:
                # Before decoding: a recording replaced in between is found changed, never taken for the same.
                audio_sha256[utterance.id] = hash_recording(utterance.audio_path, utterance.segment)
            try:
                waveform = read_audio(
                    utterance.audio_path, utterance.speed, utterance.segment, warnings.append
                )
                if utterance.num_samples is not None and len(waveform) != utterance.num_samples:
                    raise AudioError(f"decoded {len(waveform)} samples, header says {utterance.num_samples}")
            except AudioError as error:
                failures.append(AudioFailure(utterance.id, str(error)))
            else:
                ids.append(utterance.id)
                waveforms.append(waveform)
        batch = make_audio_batch(ids, waveforms)
        waveforms_BS: torch.Tensor | np.ndarray = batch.waveforms_BS
        num_samples_B: torch.Tensor | np.ndarray = batch.num_samples_B
        if self.is_through_pipe:
            waveforms_BS, num_samples_B = batch.waveforms_BS.numpy(), batch.num_samples_B.numpy()
        return _DecodedBatch(ids, waveforms_BS, num_samples_B, failures, audio_sha256, warnings)

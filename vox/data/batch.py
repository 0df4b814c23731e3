"""Batches: what they hold, and how lists become padded tensors.

Shape letters: B batch, S samples, T frames, C channels, U labels.
"""

import math
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vox.text import BOS_ID, EOS_ID, PAD_ID

CACHE_LINE_BYTES = 64
IGNORED = -100  # target of a padded position: cross_entropy's own default


@dataclass(frozen=True)
class AudioFailure:
    """A recording that could not be read when its batch was made."""

    id: str
    reason: str


@dataclass(frozen=True)
class AudioBatch:
    """Waveforms at 16 kHz, zero-padded on the right.

    waveforms_BS: float32; num_samples_B: int64.
    """

    ids: list[str]
    waveforms_BS: torch.Tensor
    num_samples_B: torch.Tensor

    def pin(self) -> "AudioBatch":
        """Copy to pinned memory what is not there yet; only for a GPU, and where there is one."""
        return AudioBatch(self.ids, self.waveforms_BS.pin_memory(), self.num_samples_B.pin_memory())

    def to(self, device: torch.device) -> "AudioBatch":
        """Copy to a device, asynchronously from pinned memory."""
        return AudioBatch(
            self.ids,
            self.waveforms_BS.to(device, non_blocking=True),
            self.num_samples_B.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class FeatureBatch:
    """WavLM features, zero-padded on the right.

    features_BTC: float16 from a cache; num_frames_B: int64.
    """

    ids: list[str]
    features_BTC: torch.Tensor
    num_frames_B: torch.Tensor

    def pin(self) -> "FeatureBatch":
        """Copy to pinned memory what is not there yet; only for a GPU, and where there is one."""
        return FeatureBatch(self.ids, self.features_BTC.pin_memory(), self.num_frames_B.pin_memory())

    def to(self, device: torch.device) -> "FeatureBatch":
        """Copy to a device, asynchronously from pinned memory."""
        return FeatureBatch(
            self.ids,
            self.features_BTC.to(device, non_blocking=True),
            self.num_frames_B.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class LabelBatch:
    """Token ids of one batch, for both losses.

    labels_BU: int64, padded with PAD_ID, for CTC; num_labels_B: int64, on the host, where CTC wants it.
    inputs_BU: bos + labels, what the decoder reads; targets_BU: labels + eos, IGNORED where padded.
    """

    labels_BU: torch.Tensor
    num_labels_B: torch.Tensor
    inputs_BU: torch.Tensor
    targets_BU: torch.Tensor

    def pin(self) -> "LabelBatch":
        """Copy to pinned memory what is not there yet; only for a GPU, and where there is one."""
        tensors = (self.labels_BU, self.num_labels_B, self.inputs_BU, self.targets_BU)
        return LabelBatch(*(tensor.pin_memory() for tensor in tensors))

    def to(self, device: torch.device) -> "LabelBatch":
        """Copy to a device, all but the lengths."""
        return LabelBatch(
            self.labels_BU.to(device, non_blocking=True),
            self.num_labels_B,
            self.inputs_BU.to(device, non_blocking=True),
            self.targets_BU.to(device, non_blocking=True),
        )


def make_audio_batch(ids: list[str], waveforms: Sequence[np.ndarray]) -> AudioBatch:
    """Pad float32 waveforms [S] into one batch."""
    num_samples = [len(waveform) for waveform in waveforms]
    waveforms_BS = torch.zeros(len(waveforms), max(num_samples, default=0))
    for row, waveform in enumerate(waveforms):
        waveforms_BS[row, : len(waveform)] = torch.from_numpy(waveform)
    return AudioBatch(ids, waveforms_BS, torch.tensor(num_samples, dtype=torch.int64))


class RecycledMemory:
    """Memory for batches that is used again once nothing refers to a batch in it any more.

    New memory costs the system more, page by page, than copying features into it. Pinned memory is recycled
    by torch itself. Safe to take from several threads; holds as many blocks as were in use at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[np.ndarray] = []  # anybody appends at any time, only the lock's holder takes away

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor that may hold anything."""
        num_bytes = math.prod(shape) * dtype.itemsize
        block = self._take_block(max(1, num_bytes))
        lease = block.data  # the tensor holds on to it, and so do all views of the tensor
        weakref.finalize(lease, self._free.append, block).atexit = False
        return torch.frombuffer(lease, dtype=torch.uint8)[:num_bytes].view(dtype).view(shape)

    def _take_block(self, num_bytes: int) -> np.ndarray:
        with self._lock:
            sizes = [block.nbytes for block in self._free]
            fitting = [index for index, size in enumerate(sizes) if size >= num_bytes]
            if fitting:
                return self._free.pop(min(fitting, key=sizes.__getitem__))
            if sizes:  # in place of the largest, which is too small
                del self._free[sizes.index(max(sizes))]
        return _empty_aligned(num_bytes)


def _empty_aligned(num_bytes: int) -> np.ndarray:
    """Return bytes that begin a cache line: numpy's own begin 16 bytes after one, and fill 25 % slower."""
    block = np.empty(num_bytes + CACHE_LINE_BYTES, np.uint8)
    start = -block.ctypes.data % CACHE_LINE_BYTES
    return block[start : start + num_bytes]


def empty_feature_batch(
    ids: list[str],
    num_frames: Sequence[int],
    channels: int,
    pin: bool = False,
    memory: RecycledMemory | None = None,
) -> FeatureBatch:
    """Make a float16 batch of which everything is still to be written, padding too.

    In pinned memory when asked, else in recycled memory when given.
    """
    shape = (len(num_frames), max(num_frames), channels)
    if pin or memory is None:
        features_BTC = torch.empty(shape, dtype=torch.float16, pin_memory=pin)
    else:
        features_BTC = memory.take(shape, torch.float16)
    return FeatureBatch(ids, features_BTC, torch.tensor(num_frames, dtype=torch.int64))


def make_feature_batch(ids: list[str], features: Sequence[np.ndarray], pin: bool = False) -> FeatureBatch:
    """Pad float16 features [T, C] into one batch, in pinned memory when asked."""
    num_frames = [len(features_TC) for features_TC in features]
    batch = empty_feature_batch(ids, num_frames, features[0].shape[1], pin)
    for padded_TC, features_TC in zip(batch.features_BTC.numpy(), features, strict=True):
        padded_TC[: len(features_TC)] = features_TC
        padded_TC[len(features_TC) :] = 0
    return batch


def make_label_batch(labels: Sequence[Sequence[int]]) -> LabelBatch:
    """Pad label sequences, and derive what the decoder reads and what it must say."""
    return LabelBatch(
        labels_BU=_pad(labels, PAD_ID),
        num_labels_B=torch.tensor([len(row) for row in labels], dtype=torch.int64),
        inputs_BU=_pad([[BOS_ID, *row] for row in labels], PAD_ID),
        targets_BU=_pad([[*row, EOS_ID] for row in labels], IGNORED),
    )


def _pad(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    padded_BU = torch.full((len(rows), max((len(row) for row in rows), default=0)), fill, dtype=torch.int64)
    for index, row in enumerate(rows):
        padded_BU[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded_BU

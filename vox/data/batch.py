"""Batches: what they hold, and how lists become padded tensors.

Shape letters: B batch, S samples, T frames, C channels, U labels.
"""

import math
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from vox.text import BOS_ID, EOS_ID, PAD_ID
from vox.units import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, samples_to_frames

CACHE_LINE_BYTES = 64
IGNORED = -100  # target of a padded position: cross_entropy's own default

SHAPES_AN_OCTAVE = 32  # lengths between one and twice as much; the padding to them is 1.1 % on average


def round_up_length(length: int) -> int:
    """Round up to one of few lengths: at most 1/32 more, and every length below 64 is one of them."""
    step = max(1, (1 << length.bit_length() >> 1) // SHAPES_AN_OCTAVE)
    return -(-length // step) * step


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
        """Copy tensors to pinned memory if they are not in it; needs a GPU."""
        return AudioBatch(self.ids, self.waveforms_BS.pin_memory(), self.num_samples_B.pin_memory())

    def to(self, device: torch.device) -> "AudioBatch":
        """Copy to a device, asynchronously from pinned memory."""
        return AudioBatch(
            self.ids,
            self.waveforms_BS.to(device, non_blocking=True),
            self.num_samples_B.to(device, non_blocking=True),
        )

    def pad_to_few_shapes(self) -> "AudioBatch":
        """Pad to one of few numbers of frames."""
        num_samples = self.waveforms_BS.shape[1]
        num_frames = round_up_length(samples_to_frames(num_samples))
        most_samples = RECEPTIVE_FIELD_SAMPLES - 1 + num_frames * HOP_SAMPLES  # that give so many frames
        return replace(self, waveforms_BS=F.pad(self.waveforms_BS, (0, most_samples - num_samples)))


@dataclass(frozen=True)
class FeatureBatch:
    """WavLM features, zero-padded on the right.

    features_BTC: float16 from a cache; num_frames_B: int64.
    """

    ids: list[str]
    features_BTC: torch.Tensor
    num_frames_B: torch.Tensor

    def pin(self) -> "FeatureBatch":
        """Copy tensors to pinned memory if they are not in it; needs a GPU."""
        return FeatureBatch(self.ids, self.features_BTC.pin_memory(), self.num_frames_B.pin_memory())

    def to(self, device: torch.device) -> "FeatureBatch":
        """Copy to a device, asynchronously from pinned memory."""
        return FeatureBatch(
            self.ids,
            self.features_BTC.to(device, non_blocking=True),
            self.num_frames_B.to(device, non_blocking=True),
        )

    def pad_to_few_shapes(self) -> "FeatureBatch":
        """Pad to one of few numbers of frames."""
        num_frames = self.features_BTC.shape[1]
        padding = round_up_length(num_frames) - num_frames
        return replace(self, features_BTC=F.pad(self.features_BTC, (0, 0, 0, padding)))


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
        """Copy tensors to pinned memory if they are not in it; needs a GPU."""
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

    def pad_to_few_shapes(self) -> "LabelBatch":
        """Pad so that the decoder reads one of few numbers of labels."""
        num_inputs = self.inputs_BU.shape[1]
        padding = (0, round_up_length(num_inputs) - num_inputs)
        return LabelBatch(
            F.pad(self.labels_BU, padding, value=PAD_ID),
            self.num_labels_B,
            F.pad(self.inputs_BU, padding, value=PAD_ID),
            F.pad(self.targets_BU, padding, value=IGNORED),
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

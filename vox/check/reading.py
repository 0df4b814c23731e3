"""Reading features from a disk: shards are written, put out of memory, and read as training reads them.

T frames, C channels.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from vox.check.rates import time_work
from vox.check.results import Rate
from vox.check.subject import CheckSubject
from vox.data.sources import CachedSource
from vox.defaults import DEFAULT_LAYERS
from vox.disk import free_bytes, nearest_folder
from vox.features.cache import FeatureCache
from vox.features.fingerprint import Fingerprint
from vox.features.shard import FEATURE_BYTES, FEATURE_DTYPE, Shard
from vox.features.writer import ShardWriter
from vox.units import FRAME_RATE, HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES

SECONDS = (2, 16)  # an utterance's length, uniformly: LibriSpeech's, about
BATCH_UTTERANCES = 8

Features = Sequence[np.ndarray]  # of each utterance: [T, C] float16


def make_features(num_bytes: float, channels: int, seed: int = 0) -> Features:
    """Make utterances of random features: windows on one block of noise, so that they take no memory."""
    generator = np.random.default_rng(seed)
    longest = SECONDS[1] * FRAME_RATE
    block_TC = generator.standard_normal((4 * longest, channels), dtype=np.float32).astype(FEATURE_DTYPE)
    features: list[np.ndarray] = []
    made = 0
    while made < num_bytes:
        length = int(generator.integers(SECONDS[0] * FRAME_RATE, longest))
        start = int(generator.integers(len(block_TC) - length))
        features.append(block_TC[start : start + length])
        made += features[-1].nbytes
    return features


def write_shard(path: Path, features: Features, first: int = 0, num_samples: Sequence[int] = ()) -> Shard:
    """Write one shard of utterances called by their numbers from `first` on, and open it.

    num_samples: their lengths; by default the least that make so many frames.
    """
    num_frames = [len(features_TC) for features_TC in features]
    writer = ShardWriter(
        path,
        ids=[str(first + row) for row in range(len(features))],
        num_samples=num_samples
        or [(count - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES for count in num_frames],
        num_frames=num_frames,
        feature_dim=features[0].shape[1],
        fingerprint=Fingerprint("00" * 32, DEFAULT_LAYERS, {}),
        notes={},
    )
    for row, features_TC in enumerate(features):
        writer.write(row, features_TC)
    writer.finish()
    return Shard(path)


def check_reading(subject: CheckSubject) -> Iterator[Rate]:
    """Time one epoch of a cache under the data root, in random order, with nothing of it in memory."""
    channels = subject.config.model.feature_dim
    place = nearest_folder(subject.root)
    num_bytes = min(subject.amounts.cache_mb * 1e6, free_bytes(place) / 4)
    features = make_features(num_bytes, channels)
    num_frames = sum(map(len, features))
    order = np.random.default_rng(1).permutation(len(features)).tolist()
    batches = [
        [str(number) for number in order[at : at + BATCH_UTTERANCES]] for at in range(0, len(order), 8)
    ]
    with TemporaryDirectory(dir=place, prefix=".vox-check-") as folder:
        cache = FeatureCache(Path(folder), [write_shard(Path(folder) / "shard-00000.h5", features)])
        source = CachedSource(cache, pin=subject.device.type == "cuda")
        forget_file(cache.shards[0].path)
        from_disk = time_work(lambda: _read_all(source, batches), torch.device("cpu"), warm_up=0)
        from_memory = time_work(lambda: _read_all(source, batches), torch.device("cpu"), warm_up=0)
    gigabytes = num_frames * channels * FEATURE_BYTES / 1e9
    seconds = num_frames / FRAME_RATE
    yield Rate(
        "read_disk",
        "reading features from the disk",
        seconds / from_disk,
        "x real time",
        note=f"{gigabytes / from_disk:.2f} GB/s, with checksums",
    )
    yield Rate(
        "read_memory",
        "reading features from memory",
        seconds / from_memory,
        "x real time",
        note=f"{gigabytes / from_memory:.2f} GB/s",
    )


def forget_file(path: Path) -> None:
    """Put a file's pages out of the system's memory, where it lets us."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_all(source: CachedSource, batches: list[list[str]]) -> None:
    for _ in source.read(batches):
        pass

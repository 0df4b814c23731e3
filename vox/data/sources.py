"""Where batches come from: the cache, or live audio decoded in worker processes.

Both take a list of batches (lists of ids, in the order of the plan) and yield one batch for each, in
that order, reading ahead. Neither touches torch's global random state, so that a resumed run draws the
same masks as an uninterrupted one.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

from vox.corpus import Utterance
from vox.data.batch import AudioBatch, AudioFailure, FeatureBatch, RecycledMemory, empty_feature_batch
from vox.data.plan import plan_by_length
from vox.data.read_ahead import map_ahead
from vox.data.workers import decode_batches
from vox.features.cache import FeatureCache
from vox.units import seconds_to_samples

log = logging.getLogger(__name__)

READING_THREADS = min(4, os.cpu_count() or 1)


class Source(Protocol):
    """Anything that turns a plan of ids into batches."""

    def lengths_samples(self, ids: Sequence[str]) -> list[int]:
        """Return each utterance's length at 16 kHz."""
        ...

    def read(self, batches: Sequence[Sequence[str]]) -> Iterator[AudioBatch | FeatureBatch]:
        """Yield one batch for each list of ids, in order; empty lists yield nothing."""
        ...


class CachedSource:
    """Batches of cached features, read ahead by threads that share one index and one set of open files."""

    def __init__(self, cache: FeatureCache, *, pin: bool = False, threads: int = READING_THREADS) -> None:
        self.cache = cache
        self.pin = pin
        self.threads = threads

    def lengths_samples(self, ids: Sequence[str]) -> list[int]:
        """Return each utterance's length in samples at 16 kHz, as the shards recorded it."""
        return [self.cache.num_samples[name] for name in ids]

    def read(self, batches: Sequence[Sequence[str]]) -> Iterator[FeatureBatch]:
        """Yield feature batches in order.

        An utterance is checked when this process reads it for the first time, and again after its shard
        changed. Raises CacheError for a wrong checksum, and for a shard that is lost, cut or replaced.
        """
        make = partial(self._make, RecycledMemory())
        return map_ahead(make, (list(ids) for ids in batches if ids), self.threads)

    def _make(self, memory: RecycledMemory, ids: list[str]) -> FeatureBatch:
        places = [self.cache.locate(name) for name in ids]
        num_frames = [shard.num_frames(row) for shard, row in places]
        batch = empty_feature_batch(ids, num_frames, self.cache.feature_dim, self.pin, memory)
        padded_BTC = batch.features_BTC.numpy()
        for (shard, row), count, padded_TC in zip(places, num_frames, padded_BTC, strict=True):
            shard.read_into(row, padded_TC[:count])
            padded_TC[count:] = 0
        return batch.pin() if self.pin else batch


class LiveSource:
    """Batches of waveforms, decoded in worker processes.

    A recording that cannot be read is left out of its batch and kept in `failures`: why, by its id, of all
    that this object has read. Ranks read different recordings and only rank 0 logs
    warnings, so gather `failures` from all ranks before reporting.
    """

    def __init__(self, utterances: Iterable[Utterance], *, workers: int = 0, pin: bool = False) -> None:
        self.utterances = {utterance.id: utterance for utterance in utterances}
        self.workers = workers
        self.pin = pin
        self.failures: dict[str, str] = {}

    def lengths_samples(self, ids: Sequence[str]) -> list[int]:
        """Return each utterance's length in samples at 16 kHz, as its header says."""
        return [self.utterances[name].num_samples or 0 for name in ids]

    def read(self, batches: Sequence[Sequence[str]]) -> Iterator[AudioBatch]:
        """Yield audio batches in order."""
        planned = [[self.utterances[name] for name in ids] for ids in batches if ids]
        for batch, failures in decode_batches(planned, workers=self.workers, pin=self.pin):
            for failure in failures:
                if failure.id not in self.failures:
                    log.warning("skipped %s: %s", failure.id, failure.reason)
                self.failures[failure.id] = failure.reason
            yield batch


def iterate_by_length(
    utterances: Sequence[Utterance], batch_seconds: float, workers: int = 0
) -> Iterator[AudioBatch | AudioFailure]:
    """Yield whole splits for decoding: batches sorted by length, longest first, and any failures."""
    lengths = [utterance.num_samples or 0 for utterance in utterances]
    planned = plan_by_length(lengths, seconds_to_samples(batch_seconds))
    batches = [[utterances[position] for position in positions] for positions in planned]
    for batch, failures in decode_batches(batches, workers=workers):
        yield from failures
        if batch.ids:
            yield batch

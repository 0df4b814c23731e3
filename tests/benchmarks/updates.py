"""Updates to train on in a benchmark: planned, read and labelled as the training loop does it."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

from train.check.made import FIRST_PIECE, LABELS_PER_SECOND
from train.memory import CPU_MICRO_BATCH
from train.update.step import LabelTotals
from vox.config import Config
from vox.data.batch import LabelBatch, make_label_batch
from vox.data.plan import Update, plan_epoch
from vox.data.sources import Source
from vox.hear import Batch
from vox.units import SAMPLE_RATE

SPARE_UPDATES = 4  # planned beyond the last, so that reading ahead goes on to the end

Share = Iterator[tuple[Batch, LabelBatch]]  # an update's micro-batches


@dataclass(frozen=True)
class Work:
    """Planned updates, and the lengths and labels of their utterances, whose ids are their positions."""

    plan: list[Update]
    num_samples: list[int]
    labels: list[list[int]]

    def seconds(self, updates: list[Update], *, padded: bool = False) -> float:
        """Return how much audio some updates hold."""
        lengths = [[self.num_samples[i] for i in micro] for update in updates for micro in update[0]]
        return sum(len(row) * max(row) if padded else sum(row) for row in lengths) / SAMPLE_RATE

    def take(self, start: int, count: int) -> list[Update]:
        """Return updates of a run that goes through the plan again and again."""
        return list(itertools.islice(itertools.cycle(self.plan), start, start + count))


def plan_work(num_samples: list[int], config: Config) -> Work:
    """Plan one epoch over utterances of these lengths, with made labels."""
    data, num_pieces = config.data, config.model.num_pieces - FIRST_PIECE
    plan = plan_epoch(
        num_samples,
        seed=0,
        epoch=0,
        utterances_per_update=data.utterances_per_update,
        micro_batch_utterances=CPU_MICRO_BATCH,
    )
    counts = [length * LABELS_PER_SECOND // SAMPLE_RATE for length in num_samples]
    return Work(plan, num_samples, [[FIRST_PIECE + i % num_pieces for i in range(count)] for count in counts])


def read_updates(source: Source, work: Work, count: int) -> Iterator[tuple[LabelTotals, Share]]:
    """Yield `count` updates and some more: their totals and their micro-batches, read ahead."""
    planned = work.take(0, count + SPARE_UPDATES)
    stream = source.read(_name_batches(planned))
    for update in planned:
        positions = [i for micro in update[0] for i in micro]
        num_labels = sum(len(work.labels[i]) for i in positions)
        yield LabelTotals(num_labels, num_labels + len(positions)), _label(stream, work, len(update[0]))


def time_reading(source: Source, work: Work) -> float:
    """Return the seconds that reading the whole plan takes when nothing else is done."""
    start = time.perf_counter()
    for _ in source.read(_name_batches(work.plan)):
        pass
    return time.perf_counter() - start


def _name_batches(plan: list[Update]) -> list[list[str]]:
    return [[str(i) for i in micro] for update in plan for micro in update[0]]


def _label(stream: Iterator[Batch], work: Work, count: int) -> Share:
    for batch in itertools.islice(stream, count):
        yield batch, make_label_batch([work.labels[int(name)] for name in batch.ids])

"""Utterances concatenated into one row of a batch: a model of short ones then learns to read long ones.

Random utterance concatenation: Lin et al. 2023, "Random Utterance Concatenation Based Data Augmentation
for Improving Short-video Speech Recognition" (Interspeech). What is concatenated is planned, as
everything that a batch holds (vox/data/plan.py): a pure function of lengths, seed and epoch, and the same
for any number of ranks and any size of micro-batches.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from vox.data.batch import AudioBatch, FeatureBatch
from vox.data.plan import Update, positions_of, share_update

MOST_IN_A_ROW = 4

Row = tuple[int, ...]  # positions in the list of utterances
RowUpdate = tuple[tuple[tuple[Row, ...], ...], ...]  # [rank][micro-batch]


def keep_apart(plan: Sequence[Update]) -> list[RowUpdate]:
    """Return the same plan, with each utterance in a row of its own."""
    return [
        tuple(tuple(tuple((position,) for position in micro) for micro in share) for share in update)
        for update in plan
    ]


def concatenate(
    plan: Sequence[Update],
    lengths: Sequence[int],
    *,
    share: float,
    max_length: int,
    seed: int,
    epoch: int,
    world_size: int,
    micro_batch_utterances: int,
    micro_batch_length: int | None,
) -> list[RowUpdate]:
    """Concatenate the utterances of some updates.

    share: of the updates, from 0 to 1. In each of them 2 to MOST_IN_A_ROW utterances of like length stand
        in a row, as many in all rows, give or take one.
    max_length: of a row of several utterances, in the unit of `lengths`; an utterance of which so many would
        be longer stands alone.
    Other arguments as in `plan_epoch`; a micro-batch's utterances are counted, not its rows.
    """
    planned = []
    generator = np.random.default_rng([seed, epoch, 2])  # 2: not the generator of the order, nor of replay
    for update in plan:
        most = int(generator.integers(2, MOST_IN_A_ROW + 1)) if generator.random() < share else 1
        positions = sorted(positions_of(update), key=lambda position: (lengths[position], position))
        rows = group_rows(positions, lengths, most, max_length)
        row_lengths = [sum(lengths[position] for position in row) for row in rows]
        order = sorted(range(len(rows)), key=row_lengths.__getitem__)
        sizes = [len(row) for row in rows]
        shared = share_update(
            order, row_lengths, world_size, micro_batch_utterances, micro_batch_length, sizes
        )
        planned.append(
            tuple(tuple(tuple(rows[index] for index in micro) for micro in rank) for rank in shared)
        )
    return planned


def group_rows(positions: Sequence[int], lengths: Sequence[int], most: int, max_length: int) -> list[Row]:
    """Group an update's utterances into rows of at most `most`; long ones stand alone.

    positions: sorted by length.
    """
    short = [position for position in positions if most * lengths[position] <= max_length]
    num_rows = -(-len(short) // most)
    rows = [tuple(short[first::num_rows]) for first in range(num_rows)]
    return rows + [(position,) for position in positions[len(short) :]]


def longest_row(lengths: Sequence[int], max_length: int) -> int:
    """Return a length that no row of any epoch exceeds, and that rows of equal utterances reach."""
    fitting = (most * length for length in set(lengths) for most in range(2, MOST_IN_A_ROW + 1))
    return max(*lengths, *(length for length in fitting if length <= max_length), 0)


def count_in_rows(update: RowUpdate) -> tuple[list[int], int]:
    """Return an update's utterances, over all ranks and micro-batches, and the number of its rows."""
    rows = [row for share in update for micro in share for row in micro]
    return [position for row in rows for position in row], len(rows)


def concatenate_batch(
    batch: AudioBatch | FeatureBatch, rows: Sequence[Sequence[str]]
) -> tuple[AudioBatch | FeatureBatch, list[list[str]]]:
    """Concatenate what a batch holds of each row's utterances; a batch lacks what could not be read.

    rows: ids. Returns the batch, whose ids are those of the rows' first utterances, and the ids of each row.
    """
    index_of = dict(zip(batch.ids, count(), strict=False))
    there = [[name for name in row if name in index_of] for row in rows]
    there = [row for row in there if row]
    if all(len(row) == 1 for row in there):
        return batch, there
    indices = [[index_of[name] for name in row] for row in there]
    ids = [row[0] for row in there]
    if isinstance(batch, AudioBatch):
        waveforms_BS, num_samples_B = _concatenate(batch.waveforms_BS, batch.num_samples_B, indices)
        return replace(batch, ids=ids, waveforms_BS=waveforms_BS, num_samples_B=num_samples_B), there
    features_BTC, num_frames_B = _concatenate(batch.features_BTC, batch.num_frames_B, indices)
    return replace(batch, ids=ids, features_BTC=features_BTC, num_frames_B=num_frames_B), there


def _concatenate(
    padded_BT: torch.Tensor, lengths_B: torch.Tensor, rows: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = lengths_B.tolist()
    joined = [torch.cat([padded_BT[index, : lengths[index]] for index in row]) for row in rows]
    lengths_R = torch.tensor([len(each) for each in joined], dtype=torch.int64)
    return pad_sequence(joined, batch_first=True), lengths_R

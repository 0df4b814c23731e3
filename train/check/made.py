"""Updates of made data, cached or live: as large as a real run's, of lengths that are given.

B batch, S samples, T frames, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from train.update.step import LabelTotals
from vox.config import ModelConfig
from vox.data.batch import AudioBatch, FeatureBatch, LabelBatch, make_label_batch
from vox.hear import Batch
from vox.units import samples_to_frames, seconds_to_samples

LABELS_PER_SECOND = 4  # BPE pieces of 2000, about
FIRST_PIECE = 4  # after pad, bos, eos and unk
LOUDNESS = 0.1  # of the noise that stands for audio


@dataclass(frozen=True)
class MadeUpdate:
    """An update: its totals, its micro-batches on the host, and how much audio it is."""

    totals: LabelTotals
    batches: list[tuple[Batch, LabelBatch]]
    seconds: float
    padded_seconds: float


def make_update(
    seconds: Sequence[float], model: ModelConfig, micro_utterances: int, *, live: bool, pin: bool = False
) -> MadeUpdate:
    """Make an update of utterances of these lengths, sorted as a plan sorts them; pinned if asked."""
    lengths = sorted(seconds)
    batches = []
    for start in range(0, len(lengths), micro_utterances):
        micro = lengths[start : start + micro_utterances]
        if live:
            batch: Batch = make_noise(micro, start)
        else:
            batch = make_random_features(micro, model.feature_dim, start)
        labels = make_label_batch([_make_labels(length, model.num_pieces) for length in micro])
        batches.append((batch.pin(), labels.pin()) if pin else (batch, labels))
    num_labels = sum(int(labels.num_labels_B.sum()) for _, labels in batches)
    micros = (lengths[start : start + micro_utterances] for start in range(0, len(lengths), micro_utterances))
    return MadeUpdate(
        totals=LabelTotals(num_labels, num_labels + len(lengths)),
        batches=batches,
        seconds=sum(lengths),
        padded_seconds=sum(len(micro) * max(micro) for micro in micros),
    )


def make_noise(seconds: Sequence[float], first: int = 0) -> AudioBatch:
    """Make a batch of noise: what is said takes no time. Utterances are numbered from `first` on."""
    num_samples = [seconds_to_samples(length) for length in seconds]
    rows = [LOUDNESS * _draw(first + row, length) for row, length in enumerate(num_samples)]
    ids = [str(first + row) for row in range(len(rows))]
    return AudioBatch(ids, pad_sequence(rows, batch_first=True), torch.tensor(num_samples))


def make_random_features(seconds: Sequence[float], feature_dim: int, first: int = 0) -> FeatureBatch:
    """Make a batch of random features, as a cache gives them. Utterances are numbered from `first` on."""
    num_frames = [samples_to_frames(seconds_to_samples(length)) for length in seconds]
    rows = [_draw(first + row, length, feature_dim).half() for row, length in enumerate(num_frames)]
    ids = [str(first + row) for row in range(len(rows))]
    return FeatureBatch(ids, pad_sequence(rows, batch_first=True), torch.tensor(num_frames))


def spread_lengths(average: float, count: int, spread: float, shift: int = 0) -> list[float]:
    """Return lengths in seconds around an average; another `shift` gives none of the same in frames."""
    steps = torch.linspace(-spread, spread, count).tolist() if count > 1 else [0.0]
    return [average * (1 + step) + 0.02 * shift for step in steps]


def _make_labels(seconds: float, vocab_size: int) -> list[int]:
    count = max(1, int(seconds * LABELS_PER_SECOND))
    return [FIRST_PIECE + index % (vocab_size - FIRST_PIECE) for index in range(count)]


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

"""The gradient of one update, of a tiny recogniser."""

import torch

from train.ranks import Ranks
from train.update.step import StepSettings, accumulate_gradients, wrap_losses
from vox.data.batch import FeatureBatch, LabelBatch, make_label_batch

NUM_UTTERANCES = 32


def make_split(seed: int = 0) -> tuple[list[torch.Tensor], list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    features, labels = [], []
    for _ in range(NUM_UTTERANCES):
        num_frames = int(torch.randint(12, 60, (1,), generator=generator))
        features.append(torch.randn(num_frames, 32, generator=generator))
        num_labels = int(torch.randint(1, 6, (1,), generator=generator))
        labels.append(torch.randint(4, 25, (num_labels,), generator=generator).tolist())
    return features, labels


def make_batch(features, labels, positions, dtype) -> tuple[FeatureBatch, LabelBatch]:
    padded_BTC = torch.nn.utils.rnn.pad_sequence([features[i].to(dtype) for i in positions], batch_first=True)
    num_frames_B = torch.tensor([len(features[i]) for i in positions])
    ids = [str(i) for i in positions]
    return FeatureBatch(ids, padded_BTC, num_frames_B), make_label_batch([labels[i] for i in positions])


def gradient_of(recogniser, batches, totals, **changes) -> torch.Tensor:
    recogniser.zero_grad()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    settings = StepSettings(torch.device("cpu"), torch.float32, 0.3, 0.1, 1.0, augment=None, **changes)
    accumulate_gradients(wrap_losses(recogniser, Ranks()), scaler, batches, totals, settings, Ranks())
    return torch.cat([p.grad.flatten() for p in recogniser.parameters() if p.grad is not None])

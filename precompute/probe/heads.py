"""Linear CTC heads over single layers, fixed means of layers, and a learned mix: fitted side by side.

All heads see the same batches, and the losses are summed: no parameter is shared and AdamW works element by
element, so each head ends where it would have ended alone.

B batch, T frames, L layers, C channels, V labels, H heads, U characters.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from precompute.probe.layers import LayerFeatures
from vox.data.batch import make_feature_batch, make_label_batch
from vox.data.plan import plan_by_length, plan_epoch
from vox.data.read_ahead import read_ahead
from vox.decode.ctc import greedy_ctc
from vox.progress import ProgressBar
from vox.score import score
from vox.text import BLANK_ID
from vox.units import FRAME_RATE

log = logging.getLogger(__name__)

UTTERANCES_PER_UPDATE = 16
MICRO_BATCH_FRAMES = 4000  # padded: 150 MB in float32 for 12 layers of 768
LEARNING_RATE = 1e-2
WARMUP_FRACTION = 0.1
SMALLEST_DEVIATION = 1e-5  # of a channel that never changes


@dataclass(frozen=True)
class HeadSpec:
    """What a head reads: one layer, the mean of some, or (learned) a mix of some, each standardised."""

    name: str
    layers: tuple[int, ...]  # counted from 1
    is_learned: bool = False


@dataclass(frozen=True)
class HeadResult:
    """What a head reached on the dev split."""

    spec: HeadSpec
    loss: float  # CTC, nats a character
    cer: float
    wer: float  # in scripts without words the CER
    mix_weights: tuple[float, ...] | None  # of a learned mix: of its layers, in their order; they sum to 1


class ProbeHead(nn.Module):
    """Per-channel standardisation and a linear layer, over a mean or a learned mix of layers."""

    mean_GC: Tensor  # G: one for the pooled layers, or one for each layer of a learned mix
    deviation_GC: Tensor

    def __init__(self, spec: HeadSpec, mean_GC: Tensor, deviation_GC: Tensor, num_labels: int) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("mean_GC", mean_GC)
        self.register_buffer("deviation_GC", deviation_GC)
        self.linear = nn.Linear(mean_GC.shape[1], num_labels)
        # A linear head needs no random start: all begin at the same point.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.mix_logits = nn.Parameter(torch.zeros(len(spec.layers))) if spec.is_learned else None

    @property
    def mix_weights(self) -> Tensor | None:
        """Return the weights of a learned mix, [len(spec.layers)], summing to 1."""
        return None if self.mix_logits is None else self.mix_logits.softmax(dim=0)

    def forward(self, layers_BTLC: Tensor) -> Tensor:
        """Return logits [B, T, V] of float32 layer outputs; layer 1 stands first."""
        layers = [layers_BTLC[:, :, layer - 1] for layer in self.spec.layers]
        weights = self.mix_weights
        if weights is None:
            pooled_BTC = sum(layers[1:], start=layers[0]) / len(layers)
            return self.linear((pooled_BTC - self.mean_GC[0]) / self.deviation_GC[0])
        # The weights go into scale and shift, so that no standardised copy of every layer is kept.
        scale_GC = weights[:, None] / self.deviation_GC
        shift_C = (scale_GC * self.mean_GC).sum(dim=0)
        terms = [layer_BTC * scale_C for layer_BTC, scale_C in zip(layers, scale_GC, strict=True)]
        return self.linear(sum(terms[1:], start=terms[0]) - shift_C)


def fit_heads(
    features: LayerFeatures,
    specs: Sequence[HeadSpec],
    *,
    num_updates: int,
    seed: int = 0,
    device: torch.device | None = None,
) -> list[ProbeHead]:
    """Fit one head for each spec, all from the same batches: the same on every call, on a CPU."""
    device = device or torch.device("cpu")
    heads = _build_heads(features, specs, device)
    parameters = [parameter for head in heads for parameter in head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    updates = _plan_updates(features, num_updates, seed)
    batches = _read_batches(features, [micro_batch for update in updates for micro_batch in update], device)
    labels = features.labels
    rows = [row for update in updates for micro_batch in update for row in micro_batch]
    with ProgressBar(_seconds(features, rows), "fitting the heads") as progress:
        for number, update in enumerate(updates):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * _schedule(number, num_updates)
            num_labels = sum(len(labels[row]) for micro_batch in update for row in micro_batch)
            optimizer.zero_grad()
            for micro_batch in update:
                layers_BTLC, num_frames_B = next(batches)
                losses_H, _ = _compute_losses(
                    heads, layers_BTLC, num_frames_B, [labels[row] for row in micro_batch]
                )
                (losses_H.sum() / num_labels).backward()
                progress.add(_seconds(features, micro_batch))
            optimizer.step()
    return heads


@torch.no_grad()
def evaluate_heads(heads: Sequence[ProbeHead], features: LayerFeatures) -> list[HeadResult]:
    """Return each head's CTC loss and greedy error rates on a split."""
    labels, characters = features.labels, features.characters
    planned = plan_by_length(features.num_frames, MICRO_BATCH_FRAMES)
    total_H = torch.zeros(len(heads), dtype=torch.float64)
    references: list[str] = []
    hypotheses: list[list[str]] = [[] for _ in heads]
    device = heads[0].linear.weight.device
    for rows, (layers_BTLC, num_frames_B) in zip(
        planned, _read_batches(features, planned, device), strict=True
    ):
        losses_H, logits_HBTV = _compute_losses(
            heads, layers_BTLC, num_frames_B, [labels[row] for row in rows]
        )
        total_H += losses_H.cpu()
        references += [features.texts[row] for row in rows]
        for said, logits_BTV in zip(hypotheses, logits_HBTV, strict=True):
            said += map(characters.decode, greedy_ctc(logits_BTV, num_frames_B))
    num_labels = sum(map(len, labels))
    results = []
    for head, total, said in zip(heads, total_H.tolist(), hypotheses, strict=True):
        counted = score(references, said, by_character=not characters.has_words)
        weights = head.mix_weights
        mix = None if weights is None else tuple(weights.tolist())
        results.append(HeadResult(head.spec, total / num_labels, counted.cer, counted.wer, mix))
    return results


def channel_statistics(
    features: LayerFeatures, groups: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return mean and deviation over all frames, float32 [G, C] each, of the mean of each group's layers."""
    total_GC = torch.zeros(len(groups), features.frames_NLC.shape[2], dtype=torch.float64, device=device)
    squares_GC = torch.zeros_like(total_GC)
    for row in range(len(features.spans)):
        layers_TLC = torch.from_numpy(features.read(row)).to(device, torch.float64)
        for index, layers in enumerate(groups):
            pooled_TC = layers_TLC[:, [layer - 1 for layer in layers]].mean(dim=1)
            total_GC[index] += pooled_TC.sum(dim=0)
            squares_GC[index] += pooled_TC.square().sum(dim=0)
    count = sum(features.num_frames)
    mean_GC = total_GC / count
    variance_GC = (squares_GC / count - mean_GC.square()).clamp(min=SMALLEST_DEVIATION**2)
    return mean_GC.float(), variance_GC.sqrt().float()


def _build_heads(features: LayerFeatures, specs: Sequence[HeadSpec], device: torch.device) -> list[ProbeHead]:
    groups_of = [[(layer,) for layer in spec.layers] if spec.is_learned else [spec.layers] for spec in specs]
    groups = list(dict.fromkeys(group for groups in groups_of for group in groups))
    mean_GC, deviation_GC = channel_statistics(features, groups, device)
    heads = []
    for spec, wanted in zip(specs, groups_of, strict=True):
        rows = [groups.index(group) for group in wanted]
        heads.append(
            ProbeHead(spec, mean_GC[rows], deviation_GC[rows], features.characters.num_labels).to(device)
        )
    return heads


def _plan_updates(features: LayerFeatures, num_updates: int, seed: int) -> list[tuple[tuple[int, ...], ...]]:
    """Return each update's micro-batches of rows, epoch after epoch."""
    updates: list[tuple[tuple[int, ...], ...]] = []
    epoch = 0
    while len(updates) < num_updates:
        planned = plan_epoch(
            features.num_frames,
            seed=seed,
            epoch=epoch,
            utterances_per_update=UTTERANCES_PER_UPDATE,
            micro_batch_utterances=UTTERANCES_PER_UPDATE,
            micro_batch_length=MICRO_BATCH_FRAMES,
        )
        updates += [update[0] for update in planned]
        epoch += 1
    return updates[:num_updates]


def _read_batches(
    features: LayerFeatures, planned: Sequence[Sequence[int]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield layer outputs, float32 [B, T, L, C], and num_frames [B], reading ahead."""
    shape = features.frames_NLC.shape[1:]

    def make(rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        frames = [features.read(row).reshape(-1, math.prod(shape)) for row in rows]
        batch = make_feature_batch([features.ids[row] for row in rows], frames)
        return batch.features_BTC.unflatten(2, shape), batch.num_frames_B

    for layers_BTLC, num_frames_B in read_ahead(make(rows) for rows in planned):
        yield layers_BTLC.to(device).float(), num_frames_B.to(device)


def _compute_losses(
    heads: Sequence[ProbeHead], layers_BTLC: Tensor, num_frames_B: Tensor, labels: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Return each head's CTC loss summed over a batch, [H], and the logits [H, B, T, V]."""
    targets = make_label_batch(labels).to(layers_BTLC.device)
    logits_HBTV = torch.stack([head(layers_BTLC) for head in heads])
    losses = functional.ctc_loss(
        logits_HBTV.flatten(0, 1).log_softmax(dim=-1).transpose(0, 1),
        targets.labels_BU.repeat(len(heads), 1),
        num_frames_B.repeat(len(heads)),
        targets.num_labels_B.repeat(len(heads)),
        blank=BLANK_ID,
        reduction="none",
    )
    return losses.unflatten(0, (len(heads), -1)).sum(dim=1), logits_HBTV


def _schedule(update: int, num_updates: int) -> float:
    """Return the share of the peak rate: up in a line over the warm-up, then down along a cosine to 0."""
    passed = (update + 1) / (num_updates + 1)
    if passed < WARMUP_FRACTION:
        return passed / WARMUP_FRACTION
    return (1 + math.cos(math.pi * (passed - WARMUP_FRACTION) / (1 - WARMUP_FRACTION))) / 2


def _seconds(features: LayerFeatures, rows: Sequence[int]) -> float:
    return sum(features.num_frames[row] for row in rows) / FRAME_RATE

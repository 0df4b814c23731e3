"""One update: nearly a pure function of model, batches and totals.

Both losses are sums over the update divided by the update's whole number of labels, which the plan
knows beforehand. So the gradient does not depend on how the update is cut into micro-batches: the mean
of micro-batch means would weigh short transcripts more (derivation in docs/training.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from train.augment import mask_features
from vox.config import AugmentConfig
from vox.data.batch import IGNORED, AudioBatch, FeatureBatch, LabelBatch
from vox.device import autocast
from vox.model.recogniser import Recogniser
from vox.text import BLANK_ID


@dataclass(frozen=True)
class LossSums:
    """Losses summed over the utterances of a batch, in nats; scalars with a graph in training."""

    ctc: torch.Tensor
    attention: torch.Tensor


@dataclass(frozen=True)
class LabelTotals:
    """What the sums of one update are divided by."""

    num_labels: int  # CTC's: the labels
    num_targets: int  # attention's: the labels and one eos an utterance


@dataclass(frozen=True)
class StepSettings:
    """What an update needs beside the model and the data."""

    device: torch.device
    precision: torch.dtype
    ctc_weight: float
    label_smoothing: float
    max_grad_norm: float
    augment: AugmentConfig | None


@dataclass(frozen=True)
class UpdateResult:
    """What an update was: losses a label that was read, the gradient's norm before clipping, audio read."""

    ctc: float
    attention: float
    loss: float
    grad_norm: float
    num_frames: int
    num_targets: int  # 0: nothing of the update could be read
    is_finite: bool


@dataclass
class UpdateSums:
    """What the micro-batches of an update come to: detached losses, and what was really read."""

    ctc: torch.Tensor
    attention: torch.Tensor
    num_labels: int = 0
    num_targets: int = 0
    num_frames: int = 0


def features_of(
    recogniser: Recogniser, batch: AudioBatch | FeatureBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float features [B, T, C] and their frame counts [B], from the cache or from live audio."""
    if isinstance(batch, FeatureBatch):
        return _at_least_float32(batch.features_BTC), batch.num_frames_B
    features_BTC, num_frames_B = recogniser.extractor(batch.waveforms_BS, batch.num_samples_B)
    return features_BTC, num_frames_B


def compute_losses(
    recogniser: Recogniser,
    hidden_BTD: torch.Tensor,
    num_frames_B: torch.Tensor,
    labels: LabelBatch,
    label_smoothing: float = 0.0,
) -> LossSums:
    """Compute both losses over encoded audio, summed, in float32 at least.

    An utterance too short for its labels gives an infinite CTC loss: such utterances are refused before
    training, never zeroed here.
    """
    logits_BTV = recogniser.ctc_logits(hidden_BTD)
    ctc = F.ctc_loss(
        _at_least_float32(logits_BTV).log_softmax(2).transpose(0, 1),
        labels.labels_BU,
        num_frames_B,
        labels.num_labels_B,
        blank=BLANK_ID,
        reduction="sum",
    )
    logits_BUV = recogniser.decoder(labels.inputs_BU, hidden_BTD, num_frames_B)
    attention = F.cross_entropy(
        _at_least_float32(logits_BUV).flatten(0, 1),
        labels.targets_BU.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return LossSums(ctc, attention)


def run_update(
    recogniser: Recogniser,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Iterable[tuple[AudioBatch | FeatureBatch, LabelBatch]],
    totals: LabelTotals,
    settings: StepSettings,
) -> UpdateResult:
    """Accumulate the gradients of an update's micro-batches, clip, and step.

    An update whose gradient is not finite changes nothing (`is_finite` is False), nor does one of which
    nothing could be read (`num_targets` is 0).
    """
    optimizer.zero_grad(set_to_none=True)
    sums = accumulate_gradients(recogniser, scaler, batches, totals, settings)
    if sums.num_targets == 0:
        return UpdateResult(0.0, 0.0, 0.0, 0.0, 0, 0, is_finite=True)
    scaler.unscale_(optimizer)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grad_norm = torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
    is_finite = bool(torch.isfinite(grad_norm))
    if is_finite:
        scaler.step(optimizer)
    scaler.update()
    ctc = float(sums.ctc) / max(1, sums.num_labels)
    attention = float(sums.attention) / sums.num_targets
    return UpdateResult(
        ctc=ctc,
        attention=attention,
        loss=settings.ctc_weight * ctc + (1 - settings.ctc_weight) * attention,
        grad_norm=float(grad_norm),
        num_frames=sums.num_frames,
        num_targets=sums.num_targets,
        is_finite=is_finite,
    )


def accumulate_gradients(
    recogniser: Recogniser,
    scaler: torch.amp.GradScaler,
    batches: Iterable[tuple[AudioBatch | FeatureBatch, LabelBatch]],
    totals: LabelTotals,
    settings: StepSettings,
) -> UpdateSums:
    """Add every micro-batch's share of the update's gradient; return the sums of what was read."""
    seen = UpdateSums(torch.zeros((), device=settings.device), torch.zeros((), device=settings.device))
    for cpu_batch, cpu_labels in batches:
        batch, labels = cpu_batch.to(settings.device), cpu_labels.to(settings.device)
        with autocast(settings.device, settings.precision):
            features_BTC, num_frames_B = features_of(recogniser, batch)
            if settings.augment is not None:
                features_BTC = mask_features(features_BTC, num_frames_B, settings.augment)
            hidden_BTD = recogniser.encode(features_BTC, num_frames_B)
            sums = compute_losses(recogniser, hidden_BTD, num_frames_B, labels, settings.label_smoothing)
        loss = settings.ctc_weight * sums.ctc / totals.num_labels
        loss = loss + (1 - settings.ctc_weight) * sums.attention / totals.num_targets
        scaler.scale(loss).backward()
        seen.ctc += sums.ctc.detach()
        seen.attention += sums.attention.detach()
        num_labels = int(cpu_labels.num_labels_B.sum())
        seen.num_labels += num_labels
        seen.num_targets += num_labels + len(batch.ids)
        seen.num_frames += int(num_frames_B.sum())
    return seen


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

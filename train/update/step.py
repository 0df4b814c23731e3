"""One update: nearly a pure function of model, batches and totals.

Both losses are sums over the update divided by the update's whole number of labels, which the plan
knows beforehand. So the gradient does not depend on how the update is cut into micro-batches or shared
among ranks: the mean of micro-batch means would weigh short transcripts more (derivation in
docs/training.md).

Nothing here asks the device for a value: losses and the verdict on the gradient stay there until they
are logged. (torch's CTC kernel for GPUs copies its lengths, and waits for that.)

B batch, T frames, C channels, U labels, V vocabulary.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from train.ranks import Ranks
from train.update.augment import mask_features
from train.update.l2_sp import L2Sp
from vox.config import AugmentConfig, Config, switch_is_on
from vox.data.batch import IGNORED, AudioBatch, FeatureBatch, LabelBatch, make_label_batch
from vox.device import at_least_float32, autocast
from vox.hear import Batch, count_frames, hear
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser
from vox.text import BLANK_ID, UNK_ID
from vox.units import SAMPLE_RATE

Pair = TypeVar("Pair")

DUMMY_FRAMES = 8  # of what a rank computes that has nothing to compute


class MicroBatchTooLargeError(torch.OutOfMemoryError):
    """Memory ran out while gradients were computed: weights and optimizer are as they were."""


@dataclass(frozen=True)
class LossSums:
    """Losses summed over the utterances of a batch, in nats; scalars with a graph in training."""

    ctc: torch.Tensor  # 0 where it was not computed
    attention: torch.Tensor


@dataclass(frozen=True)
class LabelTotals:
    """What the sums of one update are divided by."""

    num_labels: int  # CTC's: the labels; 0 if nothing is spoken in the update's recordings
    num_targets: int  # attention's: the labels and one eos an utterance

    @property
    def ctc_divisor(self) -> int:
        """What CTC's sum is divided by: the labels; the utterances, if nearly nothing is spoken in them."""
        return max(self.num_labels, self.num_targets - self.num_labels, 1)


@dataclass(frozen=True)
class StepSettings:
    """What an update needs beside the model and the data."""

    device: torch.device
    precision: torch.dtype
    ctc_weight: float | None  # None: no CTC loss is computed, for only the decoder learns
    label_smoothing: float
    max_grad_norm: float
    augment: AugmentConfig | None
    cached_layer: int | None = None  # the layer whose output the cache holds; None: it holds the mix
    is_padded_to_few_shapes: bool = False

    @classmethod
    def from_config(
        cls,
        config: Config,
        device: torch.device,
        precision: torch.dtype,
        *,
        ctc_weight: float,
        cached_layer: int | None,
    ) -> "StepSettings":
        """Return what a run of this config needs; ctc_weight: of this update, where CTC learns."""
        return cls(
            device=device,
            precision=precision,
            ctc_weight=ctc_weight if config.adapt.ctc_learns else None,
            label_smoothing=config.train.label_smoothing,
            max_grad_norm=config.optimizer.max_grad_norm,
            augment=config.augment,
            cached_layer=cached_layer,
            is_padded_to_few_shapes=switch_is_on(config.train.few_shapes, auto=device.type == "cuda"),
        )

    def mask(self, features_BTC: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
        """Mask features as the config says; without one, return them as they are."""
        if self.augment is None:
            return features_BTC
        return mask_features(features_BTC, num_frames_B, self.augment)


@dataclass(frozen=True)
class UpdateResult:
    """What an update was, over all ranks; tensors on the device until they are read."""

    sums_5: torch.Tensor  # float64: CTC loss, attention loss, labels, targets and frames that were read
    grad_norm: torch.Tensor  # before clipping
    is_finite: torch.Tensor  # bool: False for an update that changed nothing because of its gradient
    ctc_weight: float | None

    @property
    def has_changed(self) -> torch.Tensor:
        """Say, as a bool on the device, whether the update changed the weights."""
        return self.is_finite & (self.sums_5[3] > 0)

    def read(self) -> "UpdateFigures":
        """Wait for the device and return the figures."""
        ctc_sum, attention_sum, num_labels, num_targets, num_frames = self.sums_5.tolist()
        ctc = ctc_sum / LabelTotals(int(num_labels), int(num_targets)).ctc_divisor
        attention = attention_sum / max(1.0, num_targets)
        weight = self.ctc_weight
        return UpdateFigures(
            ctc=None if weight is None else ctc,
            attention=attention,
            loss=attention if weight is None else weight * ctc + (1 - weight) * attention,
            grad_norm=float(self.grad_norm),
            num_frames=int(num_frames),
            num_targets=int(num_targets),
            is_finite=bool(self.is_finite),
        )


@dataclass(frozen=True)
class UpdateFigures:
    """An update in numbers: losses a label that was read, the gradient's norm, audio read."""

    ctc: float | None  # None: not computed
    attention: float
    loss: float
    grad_norm: float
    num_frames: int
    num_targets: int  # 0: nothing of the update could be read, and it changed nothing
    is_finite: bool


class Losses(nn.Module):
    """From a batch to its loss sums: what DistributedDataParallel wraps."""

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.recogniser = recogniser

    def forward(self, cpu_batch: Batch, cpu_labels: LabelBatch, settings: StepSettings) -> LossSums:
        """Copy a batch to the device, mask its features, and compute the losses."""
        batch, labels = cpu_batch.to(settings.device), cpu_labels.to(settings.device)
        if settings.is_padded_to_few_shapes:
            batch, labels = batch.pad_to_few_shapes(), labels.pad_to_few_shapes()
        with autocast(settings.device, settings.precision):
            return compute_losses(
                self.recogniser,
                hear(self.recogniser, batch, settings.cached_layer, mask=settings.mask),
                labels,
                settings.label_smoothing,
                host_frames_B=count_frames(self.recogniser, cpu_batch),
                with_ctc=settings.ctc_weight is not None,
            )


def wrap_losses(recogniser: Recogniser, ranks: Ranks) -> nn.Module:
    """Make the module that `run_update` calls: with several ranks, one that adds gradients up."""
    losses = Losses(recogniser)
    if ranks.is_alone:
        return losses
    return DistributedDataParallel(losses, broadcast_buffers=False, gradient_as_bucket_view=True)


def settle_buckets(losses: nn.Module, settings: StepSettings) -> None:
    """Let DistributedDataParallel arrange its buckets of gradients before the first update; they then stay.

    It does so after its first exchange, by the order in which gradients came; and in which order three or
    more ranks add up depends on it. A resumed run would otherwise add its first update up differently.
    """
    if not isinstance(losses, DistributedDataParallel):
        return
    recogniser = _recogniser_of(losses)
    was_training = recogniser.training
    recogniser.train()
    devices = [settings.device] if settings.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for _ in range(2):
            sums = losses(*_make_dummy(recogniser, settings), settings)
            (0.0 * (sums.ctc + sums.attention)).backward()
    losses.zero_grad(set_to_none=True)
    recogniser.train(was_training)


def compute_losses(
    recogniser: Recogniser,
    encoded: Encoded,
    labels: LabelBatch,
    label_smoothing: float = 0.0,
    *,
    host_frames_B: torch.Tensor | None = None,
    with_ctc: bool = True,
) -> LossSums:
    """Compute both losses over encoded audio, summed, in float32 at least; or attention's alone.

    host_frames_B: the frame counts again, on the host, where CTC wants them: without them the host waits for
    the GPU. An utterance too short for its labels gives an infinite CTC loss: such utterances are refused
    before training, never zeroed here.
    """
    ctc = encoded.ctc_log_probs_BTV.new_zeros(())
    if with_ctc:
        ctc = F.ctc_loss(
            encoded.ctc_log_probs_BTV.transpose(0, 1),
            labels.labels_BU,
            (encoded.num_frames_B if host_frames_B is None else host_frames_B).tolist(),  # type: ignore[arg-type]
            labels.num_labels_B.tolist(),  # type: ignore[arg-type]
            blank=BLANK_ID,
            reduction="sum",
        )
    logits_BUV = recogniser.decoder(labels.inputs_BU, encoded)
    attention = F.cross_entropy(
        at_least_float32(logits_BUV).flatten(0, 1),
        labels.targets_BU.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return LossSums(ctc, attention)


def run_update(
    losses: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Iterable[tuple[Batch, LabelBatch]],
    totals: LabelTotals,
    settings: StepSettings,
    ranks: Ranks,
    l2_sp: L2Sp | None = None,
) -> UpdateResult:
    """Accumulate the gradients of an update's micro-batches over all ranks, clip, and step.

    losses: what `wrap_losses` returned. l2_sp: a loss on the weights, no part of the logged losses; every
    rank adds its gradient after the exchange and before clipping. An update whose gradient is not finite
    changes nothing, nor does one of which nothing could be read; every rank comes to the same verdict, from
    the same sums. Raises MicroBatchTooLargeError where memory ran out before anything was changed.
    """
    optimizer.zero_grad(set_to_none=True)
    try:
        sums_5 = accumulate_gradients(losses, scaler, batches, totals, settings, ranks)
    except torch.OutOfMemoryError as error:
        raise MicroBatchTooLargeError from error
    sums_5 = ranks.add_up(sums_5)
    scaler.unscale_(optimizer)
    if l2_sp is not None:
        l2_sp.add_gradient()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grad_norm = torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
    result = UpdateResult(sums_5, grad_norm.detach(), grad_norm.isfinite(), settings.ctc_weight)
    _step_if(result.has_changed, optimizer, scaler)
    return result


def accumulate_gradients(
    losses: nn.Module,
    scaler: torch.amp.GradScaler,
    batches: Iterable[tuple[Batch, LabelBatch]],
    totals: LabelTotals,
    settings: StepSettings,
    ranks: Ranks,
) -> torch.Tensor:
    """Add every micro-batch's share of the update's gradient; return what this rank read, float64 [5].

    Gradients are exchanged at the last micro-batch. A rank that has none of its own still takes part,
    with a made one that weighs nothing.
    """
    sums_5 = torch.zeros(5, dtype=torch.float64, device=settings.device)
    num_read = 0
    for (cpu_batch, cpu_labels), is_last in _mark_last(batches):
        with _exchange(losses, is_last):
            sums = losses(cpu_batch, cpu_labels, settings)
            # DistributedDataParallel takes the mean over ranks, and the update wants the sum.
            scaler.scale(_weigh(sums, totals, settings) * ranks.world_size).backward()
        num_labels = int(cpu_labels.num_labels_B.sum())
        num_frames = int(count_frames(_recogniser_of(losses), cpu_batch).sum())
        counts = (num_labels, num_labels + len(cpu_batch.ids), num_frames)
        sums_5[:2] += torch.stack([sums.ctc.detach(), sums.attention.detach()])
        sums_5[2:] += _to_device(torch.tensor(counts, dtype=torch.float64), settings.device)
        num_read += 1
    if num_read == 0:
        # Also alone, so that there is a gradient, of zeros, to look at.
        sums = losses(*_make_dummy(_recogniser_of(losses), settings), settings)
        scaler.scale(0.0 * (sums.ctc + sums.attention)).backward()
    return sums_5


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy from the host without waiting for the device."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def _weigh(sums: LossSums, totals: LabelTotals, settings: StepSettings) -> torch.Tensor:
    if settings.ctc_weight is None:
        return sums.attention / totals.num_targets
    ctc = settings.ctc_weight * sums.ctc / totals.ctc_divisor
    return ctc + (1 - settings.ctc_weight) * sums.attention / totals.num_targets


def _step_if(is_wanted: torch.Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Step where `is_wanted` (bool, on the device) is true, without reading it on the host."""
    if scaler.is_enabled():  # float16: the scaler has a verdict of its own, and its scale to adapt
        if bool(is_wanted):
            scaler.step(optimizer)
        scaler.update()
        return
    # The scaler's own way to make a fused optimizer on the device skip a step.
    assert optimizer.defaults["fused"]
    optimizer.found_inf = (~is_wanted).float()  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]


def _mark_last(items: Iterable[Pair]) -> Iterator[tuple[Pair, bool]]:
    """Yield each item, and whether it is the last."""
    iterator = iter(items)
    try:
        current = next(iterator)
    except StopIteration:
        return
    for following in iterator:
        yield current, False
        current = following
    yield current, True


def _exchange(losses: nn.Module, is_last: bool) -> AbstractContextManager[object]:
    """Let gradients be added up over ranks at the last micro-batch only."""
    if is_last or not isinstance(losses, DistributedDataParallel):
        return nullcontext()
    return losses.no_sync()


def _recogniser_of(losses: nn.Module) -> Recogniser:
    inner = losses.module if isinstance(losses, DistributedDataParallel) else losses
    assert isinstance(inner, Losses)
    return inner.recogniser


def _make_dummy(recogniser: Recogniser, settings: StepSettings) -> tuple[Batch, LabelBatch]:
    """Make a batch of silence that touches every parameter that learns."""
    labels = make_label_batch([[UNK_ID]])
    if recogniser.extractor.mix.weights.requires_grad and settings.cached_layer is None:
        return AudioBatch([""], torch.zeros(1, SAMPLE_RATE), torch.tensor([SAMPLE_RATE])), labels
    features_BTC = torch.zeros(1, DUMMY_FRAMES, recogniser.config.feature_dim)
    return FeatureBatch([""], features_BTC, torch.tensor([DUMMY_FRAMES])), labels

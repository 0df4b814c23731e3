"""Validation: both losses, and both decoders' word error rates, always."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from train.splits import TrainingSplit
from train.step import compute_losses, features_of
from vox.data.batch import AudioBatch, FeatureBatch
from vox.data.plan import plan_by_length
from vox.decode import DECODERS
from vox.device import autocast
from vox.errors import AudioError
from vox.model.recogniser import Recogniser
from vox.progress import AudioProgress
from vox.score import score
from vox.text import Tokenizer
from vox.units import SAMPLE_RATE, seconds_to_samples

DEV_BATCH_SECONDS = 120.0  # padded audio a batch
NUM_SAMPLES_SHOWN = 3


@dataclass(frozen=True)
class DevResult:
    """What validation found. Losses are nats a label, without label smoothing; WERs are fractions."""

    split: str
    split_digest: str  # of the utterances that were scored
    ctc: float
    attention: float
    wer: dict[str, float]
    num_truncated: int
    seconds: float
    examples: list[dict[str, str]]

    def loss(self, ctc_weight: float) -> float:
        """Return the weighted dev loss."""
        return ctc_weight * self.ctc + (1 - ctc_weight) * self.attention

    @property
    def rank(self) -> tuple[float, float]:
        """Order results: the decoders' mean WER, then the losses; lower is better, not finite worst.

        The mean, because the better decoder alone keeps a checkpoint whose other decoder is far off: on 100
        utterances one attention error outweighed half of all CTC errors.
        """
        losses = self.ctc + self.attention
        mean_wer = sum(self.wer.values()) / len(self.wer)
        return (mean_wer, losses) if math.isfinite(losses) else (math.inf, math.inf)


class Stopped(Exception):  # noqa: N818 - an event, no error
    """Validation was told to stop before its end."""


@dataclass
class _Sums:
    """What validation has found so far."""

    ctc: float = 0.0
    attention: float = 0.0
    num_labels: int = 0
    num_targets: int = 0
    num_truncated: int = 0
    texts: dict[str, dict[str, str]] = field(default_factory=lambda: {name: {} for name in DECODERS})


def validate(
    recogniser: Recogniser,
    split: TrainingSplit,
    tokenizer: Tokenizer,
    *,
    device: torch.device,
    precision: torch.dtype,
    is_stopped: Callable[[], bool] = lambda: False,
) -> DevResult:
    """Compute losses and decode a whole split, in eval mode; the mode it found is restored.

    Raises Stopped when `is_stopped` says so between two batches, AudioError when nothing could be read.
    """
    started = time.monotonic()
    was_training = recogniser.training
    recogniser.eval()
    sums = _Sums()
    seconds = dict(zip(split.ids, (length / SAMPLE_RATE for length in split.lengths), strict=True))
    try:
        with (
            torch.no_grad(),  # not inference_mode: tables cached now are used in training
            AudioProgress(sum(seconds.values()), f"validating on {split.name}") as progress,
        ):
            for batch in _read_by_length(split):
                if is_stopped():
                    raise Stopped
                _add_batch(sums, recogniser, split, tokenizer, batch, device, precision)
                progress.add(sum(seconds[name] for name in batch.ids))
    finally:
        recogniser.train(was_training)
    return _summarise(split, sums, time.monotonic() - started)


def _add_batch(
    sums: _Sums,
    recogniser: Recogniser,
    split: TrainingSplit,
    tokenizer: Tokenizer,
    cpu_batch: AudioBatch | FeatureBatch,
    device: torch.device,
    precision: torch.dtype,
) -> None:
    batch, labels = cpu_batch.to(device), split.label_batch(cpu_batch.ids).to(device)
    with autocast(device, precision):
        features_BTC, num_frames_B = features_of(recogniser, batch)
        hidden_BTD = recogniser.encode(features_BTC, num_frames_B)
        losses = compute_losses(recogniser, hidden_BTD, num_frames_B, labels)
        for name, decode in DECODERS.items():
            hypotheses = decode(recogniser, hidden_BTD, num_frames_B)
            sums.num_truncated += sum(hypothesis.is_truncated for hypothesis in hypotheses)
            for utterance_id, hypothesis in zip(batch.ids, hypotheses, strict=True):
                sums.texts[name][utterance_id] = tokenizer.decode(hypothesis.ids)
    num_labels = int(labels.num_labels_B.sum())
    sums.ctc += float(losses.ctc)
    sums.attention += float(losses.attention)
    sums.num_labels += num_labels
    sums.num_targets += num_labels + len(batch.ids)


def _summarise(split: TrainingSplit, sums: _Sums, seconds: float) -> DevResult:
    references = {utterance.id: utterance.text for utterance in split.utterances}
    decoded = [name for name in references if name in next(iter(sums.texts.values()))]
    if not decoded:
        raise AudioError(
            "not one recording of the dev split could be read",
            where=split.name,
            remedy="the first reasons are above; restore the audio, or choose another with --dev-split",
        )
    wer = {
        name: score([references[i] for i in decoded], [found[i] for i in decoded]).wer
        for name, found in sums.texts.items()
    }
    return DevResult(
        split=split.name,
        split_digest=split.digest(set(decoded)),
        ctc=sums.ctc / sums.num_labels,
        attention=sums.attention / sums.num_targets,
        wer=wer,
        num_truncated=sums.num_truncated,
        seconds=seconds,
        examples=[
            {"id": i, "reference": references[i], **{name: found[i] for name, found in sums.texts.items()}}
            for i in decoded[:NUM_SAMPLES_SHOWN]
        ],
    )


def _read_by_length(split: TrainingSplit) -> Iterator[AudioBatch | FeatureBatch]:
    ids = split.ids
    plan = plan_by_length(split.lengths, seconds_to_samples(DEV_BATCH_SECONDS))
    for batch in split.source.read([[ids[position] for position in positions] for positions in plan]):
        if batch.ids:
            yield batch

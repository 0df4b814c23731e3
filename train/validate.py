"""Validation: both losses, and both decoders' word error rates, always."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from train.splits import TrainingSplit
from train.step import compute_losses, features_of
from vox.data.batch import AudioBatch, FeatureBatch
from vox.data.plan import plan_by_length
from vox.decode import DECODERS
from vox.device import autocast
from vox.model.recogniser import Recogniser
from vox.score import score
from vox.text import Tokenizer
from vox.units import seconds_to_samples

DEV_BATCH_SECONDS = 120.0  # padded audio a batch
NUM_SAMPLES_SHOWN = 3


@dataclass(frozen=True)
class DevResult:
    """What validation found. Losses are nats a label, without label smoothing; WERs are fractions."""

    split: str
    split_digest: str
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
        """Order results: the better decoder's WER, then the losses; lower is better."""
        return min(self.wer.values()), self.ctc + self.attention


def validate(
    recogniser: Recogniser,
    split: TrainingSplit,
    tokenizer: Tokenizer,
    *,
    device: torch.device,
    precision: torch.dtype,
) -> DevResult:
    """Compute losses and decode a whole split, in eval mode; the mode it found is restored."""
    started = time.monotonic()
    was_training = recogniser.training
    recogniser.eval()
    ctc = attention = 0.0
    num_labels = num_targets = num_truncated = 0
    texts: dict[str, dict[str, str]] = {name: {} for name in DECODERS}
    try:
        with torch.no_grad():  # not inference_mode: tables cached now are used in training
            for cpu_batch in _read_by_length(split):
                batch, labels = cpu_batch.to(device), split.label_batch(cpu_batch.ids).to(device)
                with autocast(device, precision):
                    features_BTC, num_frames_B = features_of(recogniser, batch)
                    hidden_BTD = recogniser.encode(features_BTC, num_frames_B)
                    sums = compute_losses(recogniser, hidden_BTD, num_frames_B, labels)
                    for name, decode in DECODERS.items():
                        hypotheses = decode(recogniser, hidden_BTD, num_frames_B)
                        num_truncated += sum(hypothesis.is_truncated for hypothesis in hypotheses)
                        for utterance_id, hypothesis in zip(batch.ids, hypotheses, strict=True):
                            texts[name][utterance_id] = tokenizer.decode(hypothesis.ids)
                ctc += float(sums.ctc)
                attention += float(sums.attention)
                num_labels += int(labels.num_labels_B.sum())
                num_targets += int(labels.num_labels_B.sum()) + len(batch.ids)
    finally:
        recogniser.train(was_training)
    references = {utterance.id: utterance.text for utterance in split.utterances}
    decoded = [name for name in references if name in next(iter(texts.values()))]
    wer = {
        name: score([references[i] for i in decoded], [found[i] for i in decoded]).wer
        for name, found in texts.items()
    }
    return DevResult(
        split=split.name,
        split_digest=split.digest(),
        ctc=ctc / num_labels,
        attention=attention / num_targets,
        wer=wer,
        num_truncated=num_truncated,
        seconds=time.monotonic() - started,
        examples=[
            {"id": i, "reference": references[i], **{name: found[i] for name, found in texts.items()}}
            for i in decoded[:NUM_SAMPLES_SHOWN]
        ],
    )


def _read_by_length(split: TrainingSplit) -> Iterator[AudioBatch | FeatureBatch]:
    ids = split.ids
    plan = plan_by_length(split.lengths, seconds_to_samples(DEV_BATCH_SECONDS))
    for batch in split.source.read([[ids[position] for position in positions] for positions in plan]):
        if batch.ids:
            yield batch

"""Validation: always both losses and both greedy decoders' error rates."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from train.ranks import Ranks
from train.signals import Interrupted
from train.splits import TrainingSplit
from train.state import Run
from train.update.step import compute_losses
from vox.bootstrap import find_upper_ends
from vox.data.batch import AudioBatch, FeatureBatch
from vox.data.plan import plan_by_length
from vox.decode import SearchOptions, make_search
from vox.decoder_names import VALIDATION_DECODERS
from vox.device import autocast
from vox.errors import AudioError
from vox.hear import count_frames, hear
from vox.model.recogniser import Recogniser
from vox.progress import ProgressBar
from vox.runs.layout import Weights
from vox.score import Score, score
from vox.text import Tokenizer
from vox.units import samples_to_seconds, seconds_to_samples

DEV_BATCH_SECONDS = 120.0  # padded audio a batch
NUM_SAMPLES_SHOWN = 3
UNDECIDED_WER = 0.9  # WERs from here up are noise: they do not rank checkpoints


@dataclass(frozen=True)
class DevResult:
    """Results of a validation. Losses are nats a label, without label smoothing; WERs are fractions."""

    split: str
    split_digest: str  # of the utterances that were scored
    ctc: float
    attention: float
    wer: dict[str, float]
    num_truncated: int
    seconds: float
    examples: list[dict[str, str]]
    wer_upper: dict[str, float] = field(default_factory=dict)  # upper ends of their 95 % intervals
    wer_by_split: dict[str, dict[str, float]] = field(default_factory=dict)  # empty for one split
    rate: str = "WER"  # what `wer` is: CER in scripts without words
    source: "DevResult | None" = None  # the source's dev split with the same weights (stage 3)
    # Of each utterance: word errors, by decoder, and words. They are not kept with the result.
    errors: dict[str, list[int]] = field(default_factory=dict)
    num_words: list[int] = field(default_factory=list)

    def loss(self, ctc_weight: float) -> float:
        """Return the weighted dev loss."""
        return ctc_weight * self.ctc + (1 - ctc_weight) * self.attention

    def of_attention_alone(self) -> "DevResult":
        """Return this without CTC's WERs, which hide what is forgotten where CTC does not learn."""
        wer, upper = ({k: v for k, v in each.items() if k != "ctc"} for each in (self.wer, self.wer_upper))
        return replace(self, wer=wer, wer_upper=upper)

    @property
    def rank(self) -> tuple[float, float]:
        """The key that orders results: see `rank_result`."""
        return rank_result(self.wer, self.ctc + self.attention, self._judged)

    @property
    def better(self) -> str:
        """The decoder that ranks it."""
        return min(self._judged, key=lambda name: self.wer[name])

    @property
    def noise_end(self) -> float:
        """A WER twice as far above the one that ranks it as the end of its 95 % interval."""
        return 2 * self.wer_upper[self.better] - self.wer[self.better]

    @property
    def _judged(self) -> Collection[str]:
        return self.wer if self.source is None else self.source.wer

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint's state keeps, as JSON values."""
        kept = asdict(self)
        for fields in filter(None, (kept, kept["source"])):
            del fields["errors"], fields["num_words"]
        return kept

    def named_losses(self, prefix: str = "") -> dict[str, float]:
        """Return losses and WERs, with a prefix to their names."""
        wers = {f"{prefix}wer_{name}": wer for name, wer in self.wer.items()}
        return {f"{prefix}ctc": self.ctc, f"{prefix}attention": self.attention, **wers}

    def scalars(self) -> dict[str, Any]:
        """Return the figures of one metric line."""
        return {
            **self.named_losses(),
            **{
                f"{split}/wer_{name}": wer
                for split, wers in self.wer_by_split.items()
                for name, wer in wers.items()
            },
            "num_truncated": self.num_truncated,
            "seconds": self.seconds,
            **({} if self.source is None else self.source.named_losses("source_")),
        }


def rank_result(wer: Mapping[str, float], losses: float, judged: Collection[str]) -> tuple[float, float]:
    """Return a sort key for dev results: the better decoder's WER, then the losses; non-finite sorts last.

    The better decoder counts because `vox transcribe` uses it (`vox.decode.preferred_decoder`). While even
    its WER is near 100 %, it is noise, and the losses decide. judged: the decoders that count, in stage 3
    those of which the source's result has a WER: CTC does not count where only the decoder learns.
    """
    better = min(*(wer[name] for name in judged), UNDECIDED_WER)
    return (better, losses) if math.isfinite(losses) else (math.inf, math.inf)


class Stopped(Exception):  # noqa: N818 - an event, no error
    """Validation was stopped before its end."""


@dataclass
class _Sums:
    """Running sums of a validation."""

    ctc: float = 0.0
    attention: float = 0.0
    num_labels: int = 0
    num_targets: int = 0
    num_truncated: int = 0
    texts: dict[str, dict[str, str]] = field(
        default_factory=lambda: {name: {} for name in VALIDATION_DECODERS}
    )

    def add(self, other: "_Sums") -> None:
        """Add another rank's sums."""
        self.ctc += other.ctc
        self.attention += other.attention
        self.num_labels += other.num_labels
        self.num_targets += other.num_targets
        self.num_truncated += other.num_truncated
        for name, texts in other.texts.items():
            self.texts[name] |= texts


def validate_weights(run: Run, is_stopped: Callable[[], bool] = lambda: False) -> dict[Weights, DevResult]:
    """Validate the current weights and, if there is one, their exponential average."""
    results: dict[Weights, DevResult] = {"raw": validate_run(run, is_stopped)}
    if run.ema is not None:
        with run.ema.in_place():
            results["ema"] = validate_run(run, is_stopped)
    return results


def validate_run(run: Run, is_stopped: Callable[[], bool] = lambda: False) -> DevResult:
    """Validate the recogniser with its current weights; raises Stopped when `is_stopped` becomes true."""
    parts = run.parts
    validate_split = partial(
        validate,
        parts.recogniser,
        tokenizer=parts.tokenizer,
        device=run.device,
        precision=run.precision,
        ranks=run.ranks,
        cached_layer=parts.cached_layer,
        is_stopped=is_stopped,
    )
    with run.heartbeat.during("validating"):
        result = validate_split(split=parts.dev)
        if parts.source_dev is None:
            return result
        source = validate_split(split=parts.source_dev)
        if not parts.config.adapt.ctc_learns:
            source = source.of_attention_alone()
        return replace(result, source=source)


def validate_unless_stopped(run: Run) -> DevResult:
    """Validate the current weights; raises Interrupted after a signal.

    Nothing is saved then: a run that has a checkpoint repeats it when it is resumed.
    """
    try:
        return validate_run(run, run.signals.agree)
    except Stopped:
        raise Interrupted(run.signals.number) from None


def validate(
    recogniser: Recogniser,
    split: TrainingSplit,
    tokenizer: Tokenizer,
    *,
    device: torch.device,
    precision: torch.dtype,
    ranks: Ranks,
    cached_layer: int | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> DevResult:
    """Compute losses and decode a whole split in eval mode, then restore the previous mode.

    Ranks share the batches, and all return the same result. Raises Stopped if `is_stopped` becomes true
    between two batches (on all ranks together), AudioError if nothing could be read.
    """
    started = time.monotonic()
    was_training = recogniser.training
    recogniser.eval()
    sums = _Sums()
    reader = _DevReader(split, ranks)
    try:
        with (
            torch.no_grad(),  # not inference_mode: tables cached now are used in training
            ProgressBar(reader.my_seconds, f"validating on {split.name}", has_result=True) as progress,
        ):
            for _ in range(reader.num_rounds):
                if is_stopped():
                    raise Stopped
                batch = reader.next()
                if batch is not None and batch.ids:
                    _add_batch(sums, recogniser, split, tokenizer, batch, device, precision, cached_layer)
                    progress.add(reader.seconds_of(batch))
    finally:
        recogniser.train(was_training)
    first, *others = ranks.gather(sums)
    for other in others:
        first.add(other)
    score_texts = partial(score, by_character=not tokenizer.has_words)
    result = _summarise(split, first, score_texts, time.monotonic() - started)
    return replace(result, rate=tokenizer.rate)


class _DevReader:
    """This rank's batches of a split, sorted by length. Every rank has the same number of rounds."""

    def __init__(self, split: TrainingSplit, ranks: Ranks) -> None:
        ids, lengths = split.ids, split.lengths
        self._seconds = dict(zip(ids, map(samples_to_seconds, lengths), strict=True))
        plan = plan_by_length(lengths, seconds_to_samples(DEV_BATCH_SECONDS))
        mine = [[ids[position] for position in batch] for batch in plan[ranks.rank :: ranks.world_size]]
        self.num_rounds = -(-len(plan) // ranks.world_size)
        self.my_seconds = sum(self._seconds[name] for batch in mine for name in batch)
        self._stream = split.source.read(mine)

    def next(self) -> AudioBatch | FeatureBatch | None:
        """Return the next batch, empty if none of it could be read; None after the last one."""
        return next(self._stream, None)

    def seconds_of(self, batch: AudioBatch | FeatureBatch) -> float:
        """Return the seconds of audio in a batch."""
        return sum(self._seconds[name] for name in batch.ids)


def _add_batch(
    sums: _Sums,
    recogniser: Recogniser,
    split: TrainingSplit,
    tokenizer: Tokenizer,
    cpu_batch: AudioBatch | FeatureBatch,
    device: torch.device,
    precision: torch.dtype,
    cached_layer: int | None,
) -> None:
    batch, labels = cpu_batch.to(device), split.label_batch([[name] for name in cpu_batch.ids]).to(device)
    with autocast(device, precision):
        encoded = hear(recogniser, batch, cached_layer)
        host_frames_B = count_frames(recogniser, cpu_batch)
        losses = compute_losses(recogniser, encoded, labels, host_frames_B=host_frames_B)
        for name in VALIDATION_DECODERS:
            found = make_search(name, SearchOptions(), tokenizer)(recogniser, encoded)
            hypotheses = [best for best, *_ in found]
            sums.num_truncated += sum(hypothesis.is_truncated for hypothesis in hypotheses)
            for utterance_id, hypothesis in zip(batch.ids, hypotheses, strict=True):
                sums.texts[name][utterance_id] = tokenizer.decode(hypothesis.ids)
    num_labels = int(labels.num_labels_B.sum())
    sums.ctc += float(losses.ctc)
    sums.attention += float(losses.attention)
    sums.num_labels += num_labels
    sums.num_targets += num_labels + len(batch.ids)


def _summarise(
    split: TrainingSplit, sums: _Sums, score_texts: Callable[..., Score], seconds: float
) -> DevResult:
    references = {utterance.id: utterance.text for utterance in split.utterances}
    decoded = [name for name in references if name in next(iter(sums.texts.values()))]
    if not any(references[name] for name in decoded):
        raise AudioError(
            "no recording of speech in the dev split could be read",
            where=split.name,
            remedy="the first reasons are above; restore the audio, or choose another with --dev-split",
        )
    split_of = {utterance.id: utterance.split for utterance in split.utterances}
    by_split: dict[str, list[str]] = {}
    for name in decoded:
        by_split.setdefault(split_of[name], []).append(name)

    def score_all(ids: list[str]) -> dict[str, Score]:
        said = [references[i] for i in ids]
        return {name: score_texts(said, [found[i] for i in ids]) for name, found in sums.texts.items()}

    scores = score_all(decoded)
    errors = {name: [each.num_errors for each in some.utterances] for name, some in scores.items()}
    num_words = [each.num_words for each in next(iter(scores.values())).utterances]
    # A split in which nothing is spoken has no error rate; its insertions count in that of all splits.
    with_words = {each: ids for each, ids in by_split.items() if any(references[i] for i in ids)}
    return DevResult(
        split=split.name,
        split_digest=split.digest(set(decoded)),
        ctc=sums.ctc / sums.num_labels,
        attention=sums.attention / sums.num_targets,
        wer={name: each.wer for name, each in scores.items()},
        wer_upper=find_upper_ends(errors, num_words, decoded),
        num_truncated=sums.num_truncated,
        seconds=seconds,
        examples=[
            {"id": i, "reference": references[i], **{name: found[i] for name, found in sums.texts.items()}}
            for i in decoded[:NUM_SAMPLES_SHOWN]
        ],
        wer_by_split={
            split: {name: each.wer for name, each in score_all(ids).items()}
            for split, ids in (with_words if len(by_split) > 1 else {}).items()
        },
        errors=errors,
        num_words=num_words,
    )

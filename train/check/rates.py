"""How fast updates are, and what memory they take."""

import math
from collections.abc import Iterator

import torch

from train.check.made import make_update, spread_lengths
from train.check.trainer import Trainer
from train.memory import ROOM, find_largest
from train.options import CONFIGS_DIR
from train.stages import find_stage
from vox.check.rates import count_flops, matrix_rate, time_work
from vox.check.results import Rate
from vox.check.subject import CheckSubject
from vox.config import Config, load_config
from vox.defaults import NUM_UNFROZEN_LAYERS
from vox.device import available_memory_gb, peak_memory_gb

LENGTH_SPREAD = 0.2  # of an update's utterances around their average, up and down
LONGEST_SECONDS = 24.5  # of LibriSpeech's training utterances


def stage2_config(subject: CheckSubject) -> Config:
    """Return stage 2's config for the subject's model: the topmost layers of its WavLM learn."""
    config = load_config(CONFIGS_DIR / find_stage(2).config)
    num_layers = subject.extractor.wavlm.num_layers
    top = tuple(range(max(0, num_layers - NUM_UNFROZEN_LAYERS), num_layers))
    return config.model_copy(
        update={
            "model": subject.config.model,
            "features": subject.config.features,
            "train": config.train.model_copy(update={"unfreeze_layers": top}),
        }
    )


def check_cached_updates(subject: CheckSubject) -> Iterator[Rate]:
    """Time updates of stage 1 from cached features."""
    trainer = Trainer(subject.recogniser, subject.config, subject.device, subject.precision, cached=True)
    yield measure_updates(subject, trainer, "stage1_cached", "stage 1 from a cache")


def check_live_updates(subject: CheckSubject) -> Iterator[Rate]:
    """Time updates of stage 1 from audio."""
    trainer = Trainer(subject.recogniser, subject.config, subject.device, subject.precision, cached=False)
    yield measure_updates(subject, trainer, "stage1_live", "stage 1 from audio", live=True)


def check_stage2_updates(subject: CheckSubject) -> Iterator[Rate]:
    """Time updates of stage 2 from audio."""
    config = stage2_config(subject)
    trainer = Trainer(subject.recogniser, config, subject.device, subject.precision, cached=False)
    yield measure_updates(subject, trainer, "stage2_live", "stage 2 from audio", live=True)


def measure_updates(
    subject: CheckSubject,
    trainer: Trainer,
    key: str,
    what: str,
    *,
    live: bool = False,
    micro: int | None = None,
) -> Rate:
    """Time updates of which no two are of one length; on a GPU again, when it has met all lengths.

    micro: utterances computed at once; by default as many as training would take.
    """
    amounts, is_cuda = subject.amounts, subject.device.type == "cuda"
    micro = micro or choose_micro_batch(subject, trainer, live=live)
    updates = [
        make_update(
            spread_lengths(amounts.utterance_seconds, amounts.update_utterances, LENGTH_SPREAD, index),
            subject.config.model,
            micro,
            live=live,
            pin=is_cuda,
        )
        for index in range(amounts.num_updates + 1)
    ]
    first, timed = updates[0], updates[1:]
    flops = count_flops(lambda: trainer.update(first.totals, first.batches))  # a warm-up as well

    def work() -> None:
        for update in timed:
            trainer.update(update.totals, update.batches)

    new = seen = time_work(work, subject.device, warm_up=0)
    note = f"{first.seconds:.0f} s an update, {micro} utterances at once: "
    if is_cuda:
        seen = time_work(work, subject.device, warm_up=0)
        note += f"{1000 * new / len(timed):,.0f} ms with lengths not met before, then "
    note += f"{1000 * seen / len(timed):,.0f} ms"
    padded_seconds = sum(update.padded_seconds for update in timed)
    flops_per_second = flops / first.padded_seconds * padded_seconds / seen
    share = flops_per_second / matrix_rate(subject, subject.precision)
    return Rate(key, what, sum(update.seconds for update in timed) / seen, "x real time", share, note)


def choose_micro_batch(subject: CheckSubject, trainer: Trainer, *, live: bool) -> int:
    """Return how many utterances training would compute at once: as the config says, or as many as fit."""
    asked = subject.config.data.micro_batch_utterances
    if subject.device.type != "cuda":
        return subject.amounts.micro_utterances
    if asked != "auto":
        return asked
    available = available_memory_gb(subject.device)

    def fits(count: int) -> bool:
        gigabytes = measure_memory(trainer, count, live=live)
        return gigabytes is not None and gigabytes <= ROOM * available

    return find_largest(subject.amounts.update_utterances, fits)


def check_memory(subject: CheckSubject) -> Iterator[Rate]:
    """Find what micro-batches take on a GPU, and the one that training chooses; on a CPU the most so far."""
    if subject.device.type != "cuda":
        yield Rate("memory", "most memory held so far", peak_memory_gb(subject.device), "GB")
        return
    trainer = Trainer(subject.recogniser, subject.config, subject.device, subject.precision, cached=True)
    chosen = choose_micro_batch(subject, trainer, live=False)
    yield Rate("micro_batch", "stage 1 from a cache computes at once", chosen, "utterances")
    for count in dict.fromkeys((subject.amounts.micro_utterances, chosen)):
        gigabytes = measure_memory(trainer, count, live=False)
        what = f"memory, {count} utterances of {LONGEST_SECONDS} s at once"
        yield Rate(f"memory_{count}", what, math.inf if gigabytes is None else gigabytes, "GB")


def measure_memory(trainer: Trainer, count: int, *, live: bool) -> float | None:
    """Return the GB of an update that is one micro-batch of long utterances; None where it does not fit."""
    update = make_update([LONGEST_SECONDS] * count, trainer.recogniser.config, count, live=live)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(trainer.device)
    try:
        trainer.update(update.totals, update.batches)
        return peak_memory_gb(trainer.device)
    except torch.OutOfMemoryError:
        return None
    finally:
        trainer.optimizer.zero_grad(set_to_none=True)

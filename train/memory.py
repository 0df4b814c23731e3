"""How many utterances a micro-batch holds: the largest one is tried before the first update.

Running out of memory then happens in the first minute, and not in the night. By T6 the gradient does not
depend on the cut, so that `data.micro_batch_utterances: auto` may choose it.

B batch, T frames, C channels.
"""

import logging
from collections.abc import Callable

import torch

from train.state import Run
from train.update.step import StepSettings
from vox.config import MAX_COUNT
from vox.data.batch import AudioBatch, FeatureBatch, LabelBatch, make_label_batch
from vox.data.concatenate import MOST_IN_A_ROW, longest_row
from vox.data.sources import CachedSource
from vox.device import available_memory_gb, peak_memory_gb
from vox.errors import DeviceError, name_count
from vox.text import UNK_ID
from vox.units import FRAME_RATE, SAMPLE_RATE, samples_to_frames, seconds_to_samples

log = logging.getLogger(__name__)

CPU_MICRO_BATCH = 8
ROOM = 0.85  # of a GPU's memory: what `auto` fills at most


def settle_micro_batch(run: Run, settings: StepSettings) -> None:
    """Decide how many utterances a micro-batch holds, and try the largest one on a GPU.

    What was asked for, or for `auto` what a resumed run had if it still fits, else the largest cut that fits
    with room to spare; the same on all ranks. The optimizer's state is allowed for. Weights and random
    states stay as they are. Raises DeviceError, naming the setting to lower, where memory does not suffice.
    """
    progress, data = run.progress, run.parts.config.data
    recorded, is_tried = progress.micro_batch_utterances, False
    if data.micro_batch_utterances != "auto":
        # A run that once ran out of memory goes on as it did then.
        progress.micro_batch_utterances = min(data.micro_batch_utterances, recorded or MAX_COUNT)
    elif run.device.type != "cuda" or data.micro_batch_seconds is not None:
        progress.micro_batch_utterances = recorded or CPU_MICRO_BATCH
    else:
        most = recorded or -(-data.utterances_per_update // run.ranks.world_size)
        room = 1.0 if recorded else ROOM
        found = find_largest(most, lambda count: _fits(run, settings, count, room))
        progress.micro_batch_utterances = min(run.ranks.gather(found))
        is_tried = 1 < found == progress.micro_batch_utterances  # the last that was tried, and it fitted
        log.info("micro-batches of %s", name_count(progress.micro_batch_utterances, "utterance"))
    if run.device.type != "cuda":
        return
    if not is_tried:
        rehearse(run, settings)
    log.info("the largest micro-batch takes %.1f GB", peak_memory_gb(run.device))
    torch.cuda.reset_peak_memory_stats(run.device)  # the metrics tell what training itself takes


def find_largest(most: int, fits: Callable[[int], bool]) -> int:
    """Halve a number of utterances until it fits; 1 is returned untried."""
    count = most
    while count > 1 and not fits(count):
        count = -(-count // 2)
    return count


def halve_micro_batch(run: Run) -> None:
    """Go on with micro-batches of half the size, after one did not fit into memory during training.

    Raises DeviceError where that is impossible: with several ranks (the others wait for this one's
    gradients), where seconds limit a micro-batch, and at one utterance.
    """
    progress, data = run.progress, run.parts.config.data
    if not run.ranks.is_alone or data.micro_batch_seconds is not None or progress.micro_batch_utterances <= 1:
        raise DeviceError(
            f"a micro-batch does not fit into the memory of {run.device}", remedy=name_setting(run)
        )
    run.optimizer.zero_grad(set_to_none=True)
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    progress.micro_batch_utterances = -(-progress.micro_batch_utterances // 2)
    log.warning(
        "update %d ran out of memory: it is computed again in micro-batches of %s, as are all after it",
        progress.update + 1,
        name_count(progress.micro_batch_utterances, "utterance"),
    )


def _fits(run: Run, settings: StepSettings, count: int, room: float) -> bool:
    """Try micro-batches of `count` utterances; say whether they take at most this share of the memory."""
    run.progress.micro_batch_utterances = count
    torch.cuda.reset_peak_memory_stats(run.device)
    try:
        rehearse(run, settings)
    except DeviceError:
        torch.cuda.empty_cache()
        return False
    return peak_memory_gb(run.device) <= room * available_memory_gb(run.device)


def rehearse(run: Run, settings: StepSettings) -> None:
    """Compute losses and gradients of the largest micro-batch, and forget them.

    Raises DeviceError, naming the setting to lower, where memory does not suffice.
    """
    recogniser = run.parts.recogniser
    batch, labels = make_worst_batch(run)
    was_training = recogniser.training
    recogniser.train()
    learning = [parameter for parameter in recogniser.parameters() if parameter.requires_grad]
    devices = [run.device] if run.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            # Resumed, the optimizer has its two moments already.
            moments = [] if run.optimizer.state else [torch.empty_like(p) for p in (*learning, *learning)]
            # Not through DistributedDataParallel: ranks have batches of different sizes here.
            module = getattr(run.losses, "module", run.losses)
            sums = module(batch, labels, settings)
            (sums.ctc + sums.attention).backward()
            del moments, sums
    except torch.OutOfMemoryError:
        raise DeviceError(
            f"the largest micro-batch, {describe_batch(batch)}, does not fit into the memory of {run.device}",
            remedy=name_setting(run),
        ) from None
    finally:
        recogniser.train(was_training)
        for parameter in learning:
            parameter.grad = None


def make_worst_batch(run: Run) -> tuple[AudioBatch | FeatureBatch, LabelBatch]:
    """Make a silent micro-batch as large as the plan of any epoch can make one."""
    split, data = run.parts.train, run.parts.config.data
    utterance = longest = max(split.lengths)
    most_labels = max(map(len, split.labels.values()))
    if data.concatenate:  # as much audio, in fewer and longer rows: attention takes most with them
        longest = longest_row(split.lengths, seconds_to_samples(data.concatenate_seconds))
        most_labels *= MOST_IN_A_ROW
    share = -(-data.utterances_per_update // run.ranks.world_size)
    if data.micro_batch_seconds is not None:
        count = max(1, seconds_to_samples(data.micro_batch_seconds) // longest)
    else:
        count = -(-run.progress.micro_batch_utterances * utterance // longest)
    count = min(count, share, len(split.lengths))
    ids = [""] * count
    labels = make_label_batch([[UNK_ID, UNK_ID + 1] * (-(-most_labels // 2))] * count)
    if isinstance(split.source, CachedSource):
        num_frames = samples_to_frames(longest)
        features_BTC = torch.zeros(count, num_frames, run.parts.config.model.feature_dim, dtype=torch.float16)
        return FeatureBatch(ids, features_BTC, torch.full((count,), num_frames)), labels
    return AudioBatch(ids, torch.zeros(count, longest), torch.full((count,), longest)), labels


def describe_batch(batch: AudioBatch | FeatureBatch) -> str:
    """Say how large a batch is."""
    seconds = (
        batch.waveforms_BS.shape[1] / SAMPLE_RATE
        if isinstance(batch, AudioBatch)
        else batch.features_BTC.shape[1] / FRAME_RATE
    )
    return f"{name_count(len(batch.ids), 'utterance')} of {seconds:.1f} s"


def name_setting(run: Run) -> str:
    """Name the setting that makes micro-batches smaller; an update stays what it is."""
    data, count = run.parts.config.data, run.progress.micro_batch_utterances
    if data.concatenate and (count <= 1 or data.micro_batch_seconds is not None):
        return f"start another run with a lower data.concatenate_seconds (now {data.concatenate_seconds:g})"
    if data.micro_batch_seconds is not None:
        return f"lower data.micro_batch_seconds (now {data.micro_batch_seconds:g}), also with --resume"
    if count <= 1:
        return "use a GPU with more memory, or leave the longest recordings out"
    return f"lower data.micro_batch_utterances (now {count}), also with --resume"

"""The largest micro-batch that a run can meet, tried before the first one.

Running out of memory then happens in the first minute, and not in the night.

B batch, T frames, C channels.
"""

import logging

import torch

from train.progress import Run
from train.step import StepSettings
from vox.config import DataConfig
from vox.data.batch import AudioBatch, FeatureBatch, LabelBatch, make_label_batch
from vox.data.sources import CachedSource
from vox.errors import DeviceError
from vox.text import UNK_ID
from vox.units import FRAME_RATE, SAMPLE_RATE, samples_to_frames

log = logging.getLogger(__name__)


def try_worst_batch(run: Run, settings: StepSettings) -> None:
    """Compute losses and gradients of the largest micro-batch on a GPU, and forget them; on a CPU nothing.

    The optimizer's state is allowed for. Weights and random states stay as they are. Raises DeviceError,
    naming the setting to lower, where memory does not suffice.
    """
    if run.device.type != "cuda":
        return
    rehearse(run, settings)
    log.info("the largest micro-batch takes %.1f GB", torch.cuda.max_memory_allocated(run.device) / 1e9)
    torch.cuda.reset_peak_memory_stats(run.device)  # the metrics tell what training itself takes


def rehearse(run: Run, settings: StepSettings) -> None:
    """Do what `try_worst_batch` does, on any device."""
    recogniser, data = run.parts.recogniser, run.parts.config.data
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
            remedy=name_setting(data),
        ) from None
    finally:
        recogniser.train(was_training)
        for parameter in learning:
            parameter.grad = None


def make_worst_batch(run: Run) -> tuple[AudioBatch | FeatureBatch, LabelBatch]:
    """Make a silent micro-batch as large as the plan of any epoch can make one."""
    split, data = run.parts.train, run.parts.config.data
    longest = max(split.lengths)
    count = data.micro_batch_utterances
    if data.micro_batch_seconds is not None:
        count = max(1, int(data.micro_batch_seconds * SAMPLE_RATE) // longest)
    share = -(-data.utterances_per_update // run.ranks.world_size)
    count = min(count, share, len(split.lengths))
    ids = [""] * count
    most_labels = max(map(len, split.labels.values()))
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
    return f"{len(batch.ids)} utterances of {seconds:.1f} s"


def name_setting(data: DataConfig) -> str:
    """Name the setting that makes micro-batches smaller; an update stays what it is."""
    if data.micro_batch_seconds is not None:
        return f"lower data.micro_batch_seconds (now {data.micro_batch_seconds:g})"
    return f"lower data.micro_batch_utterances (now {data.micro_batch_utterances})"

"""Training: how fast each way of training is, and where a step's time goes.

`python -m tests.benchmarks.training` trains at full size with random weights (time does not depend on
them), as `vox train` does: planned updates of whole micro-batches, read ahead from a real cache of random
features or decoded from files. Two tables: the rate of each way, and the share of each part of a step,
measured in a pass of its own so that measuring does not change the rate. A CPU's parts are timed on the
host; a GPU's by events on its stream, which nothing waits for, and on the host as well: a part that is long
there and short on the GPU waits for the GPU, or keeps it waiting. Files are in memory (warm page cache),
and the features were checked before, as from the second epoch on.
"""

import contextlib
import gc
import itertools
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch

import train.update.step
import vox.hear
from tests.benchmarks.clock import Clock, find_waits
from tests.benchmarks.recordings import make_utterances, write_random_cache
from tests.benchmarks.updates import Share, Work, plan_work, read_updates, time_reading
from tests.support.speech import tiny_wavlm_kwargs
from tests.support.training import MODEL as TINY_MODEL
from train.check.trainer import Trainer
from train.memory import CPU_MICRO_BATCH
from train.options import CONFIGS_DIR
from vox.check.rates import CUDA_MATRICES, count_flops, measure_matrix_rate
from vox.config import Config, load_config
from vox.data.batch import AudioBatch, FeatureBatch, LabelBatch
from vox.data.sources import CachedSource, LiveSource, Source
from vox.device import peak_memory_gb, pick_device, pick_precision, synchronize
from vox.hear import Batch
from vox.model.recogniser import Recogniser
from vox.units import SAMPLE_RATE
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.mix import LayerMix
from vox.wavlm.model import WavLM

EPOCH_SECONDS = 100 * 3600
MOST_DISTINCT = 16  # updates' worth of utterances; more updates hear them again
UPDATES_BY_PARTS = 10
BASELINE, FASTEST = "stage 1 live", "stage 1 cached"
# "rest" is what none of the others holds: reducing a loss's sums, weighing, masks of the padding.
PARTS = (
    *("read", "copy", "WavLM", "masks", "adapter", "encoder", "decoder", "CTC"),
    *("backward", "optimizer", "rest"),
)


@dataclass(frozen=True)
class Variant:
    """A way of training."""

    name: str
    config: Config
    source: Source

    @property
    def is_cached(self) -> bool:
        return isinstance(self.source, CachedSource)


@dataclass
class Figures:
    """What was measured of a variant."""

    updates_per_second: float
    seconds_per_second: float  # of audio
    padded_per_second: float
    waiting: float  # share of the time in which the loop waited for data
    reading_alone: float  # seconds of audio a second
    peak_gb: float
    shares: list[dict[str, float]] = field(default_factory=list)  # by part: the device's, the host's
    waits: Counter[str] = field(default_factory=Counter)  # for the GPU, in one update, by line of code
    flops_per_second: float = 0.0  # of padded audio


@click.command()
@click.option("--audio", type=click.Path(path_type=Path, exists=True), help="Folder of FLAC or WAV files.")
@click.option("--count", type=click.IntRange(1), help="Utterances an update. Default: 4 on CPU, 32 on CUDA.")
@click.option("--updates", type=click.IntRange(1), help="Timed. Default: 2 on CPU, 50 on CUDA.")
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto")
@click.option("--tiny", is_flag=True, help="Tiny models: a look at the program, not at speed.")
def main(
    audio: Path | None, count: int | None, updates: int | None, device_name: str, precision: str, tiny: bool
) -> None:
    """Time whole updates and their parts, and print both tables."""
    device = pick_device(device_name)
    dtype = pick_precision(precision, device)
    count = count or (32 if device.type == "cuda" else 4)
    updates = updates or (50 if device.type == "cuda" else 2)
    stage1, stage2 = (_load_config(stage, count, tiny) for stage in (1, 2))
    with tempfile.TemporaryDirectory() as place:
        utterances = make_utterances(audio, count * min(updates, MOST_DISTINCT), Path(place))
        if len(utterances) < count:
            raise click.UsageError(f"{audio} holds {len(utterances)} FLAC or WAV files, {count} are needed")
        pin, workers = device.type == "cuda", stage1.data.workers
        live = LiveSource(utterances, workers=workers, pin=pin)
        cached = CachedSource(write_random_cache(utterances, stage1.model.feature_dim, Path(place)), pin=pin)
        work = plan_work([utterance.num_samples or 0 for utterance in utterances], stage1)
        recogniser = _build_recogniser(stage1, tiny).to(device)
        figures = {}
        for variant in (
            Variant(FASTEST, stage1, cached),
            Variant(BASELINE, stage1, live),
            Variant("stage 2 live", stage2, live),
            Variant("stage 2 cached", stage2, cached),
        ):
            click.echo(f"measuring {variant.name}", err=True)
            figures[variant.name] = _measure(recogniser, variant, work, updates, device, dtype)
        if live.failures:
            raise click.ClickException(f"cannot read {live.failures}")
    length = work.seconds(work.plan) / len(work.plan)
    click.echo(
        f"\ntraining: {updates} updates of {count} utterances ({length:.0f} s on average, micro-batches of "
        f"{CPU_MICRO_BATCH} at most), {_name_device(device)}, "
        f"{str(dtype).removeprefix('torch.')}, {workers} decoding workers{', tiny models' if tiny else ''}"
    )
    _print_rates(figures)
    for kind, title in enumerate(("GPU", "host") if device.type == "cuda" else ("host",)):
        _print_shares(title, {name: each.shares[kind] for name, each in figures.items()})
    _print_flops(figures[FASTEST], device, dtype)
    for name, each in figures.items():
        for line, number in each.waits.most_common():
            click.echo(f"{name}: waits {number} times an update for the GPU at {line}")


def _measure(
    recogniser: Recogniser,
    variant: Variant,
    work: Work,
    updates: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Figures:
    _reset_peak_memory(device)
    trainer = Trainer(recogniser, variant.config, device, dtype, cached=variant.is_cached)
    try:
        figures = _measure_rate(trainer, variant, work, updates)
        figures.shares = _measure_parts(trainer, variant, work, min(updates, UPDATES_BY_PARTS))
        if device.type == "cuda":
            with contextlib.closing(read_updates(variant.source, work, 1)) as stream:
                totals, batches = next(stream)
                ready = list(batches)
                figures.waits = find_waits(lambda: trainer.update(totals, iter(ready)))
        if variant.name == FASTEST:
            figures.flops_per_second = _count_flops(trainer, variant, work)
    finally:
        recogniser.zero_grad(set_to_none=True)
    return figures


def _measure_rate(trainer: Trainer, variant: Variant, work: Work, updates: int) -> Figures:
    device, waited = trainer.device, 0.0

    def wait(batches: Share) -> tuple[Batch, LabelBatch] | None:
        nonlocal waited
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        return batch

    warm = len(work.plan) if device.type == "cuda" else 1  # memory in all the sizes that come
    timed = work.take(warm, updates)
    with contextlib.closing(read_updates(variant.source, work, warm + updates)) as stream:
        for totals, batches in itertools.islice(stream, warm):
            trainer.update(totals, batches)
        synchronize(device)
        start, waited = time.perf_counter(), 0.0
        for number, (totals, batches) in enumerate(itertools.islice(stream, updates), 1):
            result = trainer.update(totals, iter(partial(wait, batches), None))
            if number % variant.config.train.log_updates == 0:
                result.read()
        synchronize(device)
        elapsed = time.perf_counter() - start
    return Figures(
        updates_per_second=updates / elapsed,
        seconds_per_second=work.seconds(timed) / elapsed,
        padded_per_second=work.seconds(timed, padded=True) / elapsed,
        waiting=waited / elapsed,
        reading_alone=work.seconds(work.plan) / time_reading(variant.source, work),
        peak_gb=peak_memory_gb(device),
    )


def _measure_parts(trainer: Trainer, variant: Variant, work: Work, updates: int) -> list[dict[str, float]]:
    recogniser, optimizer = trainer.recogniser, trainer.optimizer
    places: tuple[tuple[Any, str, str], ...] = (
        (AudioBatch, "to", "copy"),
        (FeatureBatch, "to", "copy"),
        (LabelBatch, "to", "copy"),
        (vox.hear, "features_of", "WavLM"),
        (train.update.step, "mask_features", "masks"),
        (recogniser.adapter, "forward", "adapter"),
        (recogniser.encoder, "forward", "encoder"),
        (train.update.step, "compute_losses", "CTC"),
        (recogniser.decoder, "forward", "decoder"),
        (torch.nn.functional, "cross_entropy", "decoder"),
        (torch.Tensor, "backward", "backward"),
        (torch.nn.utils, "clip_grad_norm_", "optimizer"),
        (optimizer, "step", "optimizer"),
        (optimizer, "zero_grad", "optimizer"),
    )
    with contextlib.closing(read_updates(variant.source, work, updates + 1)) as stream:
        # A warm-up: after the fork of decoding workers, memory is copied when it is first written.
        for totals, batches in itertools.islice(stream, 1):
            trainer.update(totals, batches)
        clock = Clock(trainer.device)
        with contextlib.ExitStack() as patches:
            for owner, name, part in places:
                timed = clock.timed(part, getattr(owner, name))
                patches.enter_context(patch.object(owner, name, timed))
            for totals, batches in itertools.islice(stream, updates):
                reading = clock.timed("read", next)
                trainer.update(totals, iter(partial(reading, batches, None), None))
        return clock.shares()


def _count_flops(trainer: Trainer, variant: Variant, work: Work) -> float:
    """Return floating-point operations a second of padded audio: those of the plan's first micro-batch."""
    with contextlib.closing(read_updates(variant.source, work, 1)) as stream:
        totals, batches = next(stream)
        first = next(batches)
        num_operations = count_flops(lambda: trainer.update(totals, iter([first])))
    lengths = [work.num_samples[i] for i in work.plan[0][0][0]]
    return num_operations / (len(lengths) * max(lengths) / SAMPLE_RATE)


def _load_config(stage: int, count: int, is_tiny: bool) -> Config:
    overrides = [f"data.utterances_per_update={count}"]
    if is_tiny:
        overrides += [f"model.{key}={value}" for key, value in TINY_MODEL.items()]
        overrides += ["features.layers=[3,4]"] + ["train.unfreeze_layers=[2,3]"] * (stage == 2)
    return load_config(CONFIGS_DIR / f"stage{stage}.yaml", overrides)


def _build_recogniser(config: Config, is_tiny: bool) -> Recogniser:
    from transformers import WavLMConfig

    torch.manual_seed(0)
    wavlm = WavLM(WavLMConfig(**(tiny_wavlm_kwargs() if is_tiny else {})), do_normalize=False)
    mix = LayerMix.mean_of(config.features.layers, wavlm.num_layers)
    return Recogniser(config.model, FeatureExtractor(wavlm, mix))


def _reset_peak_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # where the system has no such file, the peak is that of all so far
        Path("/proc/self/clear_refs").write_text("5")


def _name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _print_rates(figures: dict[str, Figures]) -> None:
    columns = ("updates/s", "audio s/s", "of live", "waiting", "read alone", "peak GB", "h for 100 h")
    click.echo(f"{'':16}" + "".join(f"{column:>12}" for column in columns))
    for name, each in figures.items():
        click.echo(
            f"{name:16}{each.updates_per_second:12.3f}{each.seconds_per_second:12.1f}"
            f"{each.seconds_per_second / figures[BASELINE].seconds_per_second:12.2f}{each.waiting:12.1%}"
            f"{each.reading_alone:12.0f}{each.peak_gb:12.2f}"
            f"{EPOCH_SECONDS / each.seconds_per_second / 3600:12.2f}"
        )
    click.echo(
        "(of live: to stage 1 live; waiting: for data; read alone: audio s/s that the source can give)"
    )


def _print_shares(title: str, shares: dict[str, dict[str, float]]) -> None:
    click.echo(f"\nshare of a step, {title}")
    click.echo(f"{'':16}" + "".join(f"{name:>16}" for name in shares))
    for part in PARTS:
        click.echo(f"{part:16}" + "".join(f"{each.get(part, 0.0):16.1%}" for each in shares.values()))


def _print_flops(figures: Figures, device: torch.device, dtype: torch.dtype) -> None:
    achieved = figures.flops_per_second * figures.padded_per_second
    click.echo(
        f"\n{FASTEST}: {figures.flops_per_second / 1e9:.2f} GFLOP a second of padded audio (products of "
        f"matrices and convolutions, forward and backward, counted on one micro-batch): "
        f"{achieved / 1e12:.3f} TFLOP/s"
    )
    if device.type == "cuda":
        dtype = torch.bfloat16 if dtype is torch.float32 else dtype
        rate = measure_matrix_rate(device, dtype)
        click.echo(
            f"matrices of {CUDA_MATRICES[0]} in {str(dtype).removeprefix('torch.')}: "
            f"{rate / 1e12:.0f} TFLOP/s; {FASTEST} reaches {achieved / rate:.1%} of it, and takes "
            f"{EPOCH_SECONDS / figures.seconds_per_second:.0f} s for an epoch of 100 h"
        )


if __name__ == "__main__":
    main()

"""Training: updates a second in stage 1 from a cache, stage 1 live and stage 2 live, at full size.

Random weights, made recordings, one update's micro-batches at a time in memory: what is timed is the
computation, not the disk. Cached over live is what the cache buys.
"""

import time
from pathlib import Path

import click
import torch

from tests.benchmarks.recordings import load_recordings
from train.build import choose_trainable, count_trainable
from train.schedule import build_optimizer
from train.step import LabelTotals, StepSettings, run_update
from vox.config import AugmentConfig, Config, load_config
from vox.data.batch import AudioBatch, FeatureBatch, LabelBatch, make_audio_batch, make_label_batch
from vox.device import peak_memory_gb, pick_device, pick_precision, synchronize
from vox.model.recogniser import Recogniser
from vox.units import SAMPLE_RATE
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.mix import LayerMix
from vox.wavlm.model import WavLM

LABELS_PER_SECOND = 4  # BPE pieces of 2000, about


@click.command()
@click.option(
    "--audio", type=click.Path(path_type=Path), help="Folder of FLAC or WAV files; made ones if none."
)
@click.option(
    "--count", default=4, show_default=True, help="Utterances an update, in micro-batches of 8 at most."
)
@click.option("--updates", default=2, show_default=True, help="Timed updates of each, after one warm-up.")
@click.option("--device", "device_name", default="auto", show_default=True)
def main(audio: Path | None, count: int, updates: int, device_name: str) -> None:
    """Time whole updates and print one table."""
    from transformers import WavLMConfig

    device = pick_device(device_name)
    torch.manual_seed(0)
    config = Config()
    wavlm = WavLM(WavLMConfig(), do_normalize=False)
    extractor = FeatureExtractor(wavlm, LayerMix.mean_of(config.features.layers, wavlm.num_layers))
    recogniser = Recogniser(config.model, extractor).to(device)
    recordings = load_recordings(audio, count)
    seconds = sum(map(len, recordings)) / SAMPLE_RATE
    live, cached = _make_batches(recogniser, recordings, device)
    stage2 = load_config(None, ["train.stage=2", "train.unfreeze_layers=[9,10,11]"])
    click.echo(f"\ntraining: updates of {count} utterances, {seconds:.0f} s, on {device}")
    click.echo(f"{'':20}{'learn':>13}{'s an update':>13}{'x real time':>13}{'speed-up':>10}")
    slowest = 0.0
    for name, settings, is_cached, batches in (
        ("stage 1 live", config, False, live),
        ("stage 1 cached", config, True, cached),
        ("stage 2 live", stage2, False, live),
    ):
        choose_trainable(recogniser, settings, cached=is_cached)
        elapsed = _time_updates(recogniser, settings, batches, device, updates)
        slowest = slowest or elapsed
        trainable = f"{count_trainable(recogniser):,}"
        figures = f"{elapsed:13.2f}{seconds / elapsed:13.2f}{slowest / elapsed:10.2f}"
        click.echo(f"{name:20}{trainable:>13}{figures}")
    click.echo(f"peak memory {peak_memory_gb(device):.1f} GB")


def _make_batches(
    recogniser: Recogniser, recordings: list, device: torch.device
) -> tuple[list[tuple[AudioBatch, LabelBatch]], list[tuple[FeatureBatch, LabelBatch]]]:
    """Cut the recordings into micro-batches, as audio and as features, with labels of a likely length."""
    live, cached = [], []
    for first in range(0, len(recordings), 8):
        group = recordings[first : first + 8]
        ids = [str(first + index) for index in range(len(group))]
        audio = make_audio_batch(ids, group)
        labels = [
            [4 + i % 1000 for i in range(len(wave) * LABELS_PER_SECOND // SAMPLE_RATE)] for wave in group
        ]
        with torch.no_grad():
            on_device = audio.to(device)
            features_BTC, num_frames_B = recogniser.extractor(on_device.waveforms_BS, on_device.num_samples_B)
        label_batch = make_label_batch(labels)
        live.append((audio, label_batch))
        cached.append((FeatureBatch(ids, features_BTC.half().cpu(), num_frames_B.cpu()), label_batch))
    return live, cached


def _time_updates(
    recogniser: Recogniser, config: Config, batches: list, device: torch.device, updates: int
) -> float:
    """Return the median seconds of an update."""
    precision = pick_precision("auto", device)
    optimizer = build_optimizer(recogniser, config.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
    num_labels = sum(int(labels.num_labels_B.sum()) for _, labels in batches)
    totals = LabelTotals(num_labels, num_labels + sum(len(labels.num_labels_B) for _, labels in batches))
    step = StepSettings(device, precision, 0.3, 0.1, 1.0, AugmentConfig())
    recogniser.train()
    times = []
    for _ in range(updates + 1):
        synchronize(device)
        start = time.perf_counter()
        run_update(recogniser, optimizer, scaler, batches, totals, step)
        synchronize(device)
        times.append(time.perf_counter() - start)
    timed = sorted(times[1:])
    return timed[len(timed) // 2]


if __name__ == "__main__":
    main()

"""Extraction: Vox against Hugging Face's WavLM, one by one and in padded batches.

Full-size WavLM-base of random weights (time does not depend on them). The error is the relative L2 of the
averaged layers against Hugging Face's own, one utterance at a time, in float32: the worst utterance's. The
runs take turns, and a speed-up is to Hugging Face's time in the same turn: a machine's noise hits both. The
share of the matrix rate is what the model's own operations would need if all were one large product. On a
CPU Vox computes a few batches at once, as `vox precompute` does; Hugging Face's model has all cores for one.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from precompute.extract import compute_at_once
from tests.benchmarks.recordings import load_recordings
from vox.check.rates import count_flops, measure_matrix_rate
from vox.data.batch import AudioBatch, make_audio_batch
from vox.data.plan import plan_by_length
from vox.device import autocast, peak_memory_gb, pick_device, synchronize
from vox.masks import lengths_to_mask
from vox.units import SAMPLE_RATE, samples_to_frames, seconds_to_samples
from vox.wavlm.extractor import FeatureExtractor, build_extractor

LAYERS = (9, 10, 11, 12)

Features = dict[int, np.ndarray]  # position of the recording: [T, C]
Extract = Callable[[AudioBatch], torch.Tensor]  # features [B, T, C], padded frames included
Run = Callable[[], Features]


@click.command()
@click.option(
    "--audio", type=click.Path(path_type=Path), help="Folder of FLAC or WAV files; made ones if none."
)
@click.option("--count", default=12, show_default=True, help="Recordings.")
@click.option("--batch-seconds", type=float, help="Padded audio a batch. Default: 30 on CPU, 320 on CUDA.")
@click.option("--repeats", default=3, show_default=True, help="Timed turns; the median counts.")
@click.option("--device", "device_name", default="auto", show_default=True)
def main(audio: Path | None, count: int, batch_seconds: float | None, repeats: int, device_name: str) -> None:
    """Time feature extraction and print one table."""
    import transformers
    from transformers import WavLMConfig, WavLMModel

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")  # theirs
    device = pick_device(device_name)
    torch.manual_seed(0)
    theirs = WavLMModel(WavLMConfig()).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = build_extractor(folder, LAYERS)  # what vox precompute runs, frozen as there
    theirs, ours = theirs.to(device), ours.to(device).eval()
    recordings = load_recordings(audio, count)
    seconds = sum(map(len, recordings)) / SAMPLE_RATE
    budget = batch_seconds or (320.0 if device.type == "cuda" else 30.0)
    lengths = [len(recording) for recording in recordings]
    alone = plan_by_length(lengths, 1)
    padded = plan_by_length(lengths, seconds_to_samples(budget))
    precisions = [torch.float32, torch.float16] if device.type == "cuda" else [torch.float32]
    runs: dict[str, Run] = {}
    for who, extract in (
        ("Hugging Face", partial(_run, partial(_extract_theirs, theirs), is_ours=False)),
        ("Vox", partial(_run, partial(_extract_ours, ours), is_ours=True)),
    ):
        runs[f"{who}, one by one"] = partial(extract, recordings, alone, device)
        for dtype in precisions:
            name = f"{who}, padded{', float16' if dtype is torch.float16 else ''}"
            runs[name] = partial(extract, recordings, padded, device, dtype)
    click.echo(
        f"\nextraction: {len(recordings)} recordings, {seconds:.0f} s, on {device}; batches of {budget:g} s"
    )
    features = {name: run() for name, run in runs.items()}  # a warm-up as well
    num_flops = _count_flops(lengths)
    rates = {dtype: measure_matrix_rate(device, dtype) for dtype in precisions}
    click.echo(f"{'':32}{'x real time':>12}{'speed-up':>10}{'error':>10}{'of matrix rate':>16}")
    turns = [{name: _time(run, device) for name, run in runs.items()} for _ in range(repeats)]
    first = next(iter(runs))
    for name in runs:
        elapsed = _median([turn[name] for turn in turns])
        speed_up = _median([turn[first] / turn[name] for turn in turns])
        error = max(_relative_l2(features[name][p], expected) for p, expected in features[first].items())
        share = num_flops / elapsed / rates[torch.float16 if "float16" in name else torch.float32]
        click.echo(f"{name:32}{seconds / elapsed:12.2f}{speed_up:10.2f}{error:10.1e}{share:16.2f}")
    found = ", ".join(f"{rate / 1e9:,.0f} ({dtype})" for dtype, rate in rates.items())
    click.echo(f"GFLOP a second of audio: {num_flops / seconds / 1e9:.1f}; GFLOP/s of one product: {found}")
    click.echo(f"peak memory {peak_memory_gb(device):.1f} GB")


def _run(
    extract: Extract,
    recordings: list[np.ndarray],
    batches: list[tuple[int, ...]],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    is_ours: bool,
) -> Features:
    found: Features = {}

    def compute(read: tuple[tuple[int, ...], AudioBatch]) -> tuple[tuple[int, ...], torch.Tensor]:
        with torch.inference_mode(), autocast(device, dtype):
            return read[0], extract(read[1]).cpu()

    at_once = compute_at_once if is_ours else lambda compute, items, _: map(compute, items)
    for positions, features_BTC in at_once(compute, _read(recordings, batches, device), device):
        for row, position in enumerate(positions):
            num_frames = samples_to_frames(len(recordings[position]))
            found[position] = features_BTC[row, :num_frames].numpy()
    return found


def _extract_theirs(model: torch.nn.Module, batch: AudioBatch) -> torch.Tensor:
    mask_BS = None
    if len(batch.ids) > 1:
        mask_BS = lengths_to_mask(batch.num_samples_B, batch.waveforms_BS.shape[1]).long()
    states = model(batch.waveforms_BS, attention_mask=mask_BS, output_hidden_states=True).hidden_states
    mixed_BTC: torch.Tensor = sum(states[layer].float() for layer in LAYERS) / len(LAYERS)
    return mixed_BTC


def _extract_ours(extractor: FeatureExtractor, batch: AudioBatch) -> torch.Tensor:
    features_BTC: torch.Tensor = extractor(batch.waveforms_BS, batch.num_samples_B)[0]
    return features_BTC


def _count_flops(lengths: list[int]) -> int:
    """Count the operations of Hugging Face's model, one by one; on shapes alone, so at once."""
    from transformers import WavLMConfig, WavLMModel

    with torch.device("meta"):
        model = WavLMModel(WavLMConfig()).eval()
        waveforms = [torch.empty(1, length) for length in lengths]

    def work() -> None:
        with torch.no_grad():
            for waveforms_1S in waveforms:
                model(waveforms_1S)

    return count_flops(work)


def _read(recordings: list[np.ndarray], batches: list[tuple[int, ...]], device: torch.device) -> Iterator:
    for positions in batches:
        batch = make_audio_batch([str(p) for p in positions], [recordings[p] for p in positions])
        yield positions, batch.to(device)


def _time(run: Run, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    main()

"""Reading: random utterances into padded batches, Vox's shards against other ways to keep features.

Every way fills the same batches: float16, padding zeroed, pinned where there is a GPU. The ways take turns,
and the ratio is to the bare memory map's rate in the same turn: a machine's noise hits both. Vox reads ahead
by threads, and so does the map that its last ratio is to, by as many; the others are a plain loop's.

B batch, T frames, C channels.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from tests.benchmarks.stores import CHANNELS, Fill, all_stores, open_cache, total_bytes
from vox.check.reading import Features, make_features
from vox.data.batch import FeatureBatch, RecycledMemory, empty_feature_batch
from vox.data.read_ahead import map_ahead
from vox.data.sources import CachedSource

BATCH_UTTERANCES = 8
BASELINE = "bare memory map"
THREADS = (1, 2, 4)
FIRST_EPOCH = ", first epoch"

Batches = list[list[int]]


@click.command()
@click.option("--gigabytes", default=1.0, show_default=True, help="Features; seven times as much disk.")
@click.option("--utterances", default=2_000, show_default=True, help="Read at most so many a turn.")
@click.option("--repeats", default=15, show_default=True, help="Turns; the median counts.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write. Default: a temporary one.")
def main(gigabytes: float, utterances: int, repeats: int, folder: Path | None) -> None:
    """Time reading and print one table."""
    features = make_features(gigabytes * 1e9, CHANNELS)
    order = np.random.default_rng(1).permutation(len(features))[:utterances].tolist()
    batches = [order[first : first + BATCH_UTTERANCES] for first in range(0, len(order), BATCH_UTTERANCES)]
    num_bytes = total_bytes([features[number] for number in order])
    pin = torch.cuda.is_available()
    with tempfile.TemporaryDirectory(dir=folder) as root:
        runs, missing = _prepare(Path(root), features, batches, pin)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(repeats + 1):  # the first brings the files into memory
            for name, run in runs.items():
                elapsed = _time(run)
                if turn:
                    times[name].append(elapsed)
    click.echo(
        f"\nreading: {len(order)} utterances, {num_bytes / 1e9:.2f} GB, at random into "
        f"{'pinned ' if pin else ''}batches of {BATCH_UTTERANCES}; files in memory (warm page cache)"
    )
    click.echo(f"{'':34}{'GB/s':>8}{'of the map':>12}{'of its threads':>16}")
    for name, elapsed in times.items():
        ratios = [f"{_ratio(times[BASELINE], elapsed):12.2f}"]
        if name.startswith("Vox"):
            threads = name.removeprefix("Vox").removesuffix(FIRST_EPOCH)
            ratios.append(f"{_ratio(times[BASELINE + threads], elapsed):16.2f}")
        click.echo(f"{name:34}{num_bytes / _median(elapsed) / 1e9:8.2f}{''.join(ratios)}")
    for name in missing:
        click.echo(f"{name:34}{'not installed':>20}")


def _prepare(
    root: Path, features: Features, batches: Batches, pin: bool
) -> tuple[dict[str, Callable[[], None]], list[str]]:
    """Write every store; return what reads it once, by name, and the names of those not installed."""
    runs: dict[str, Callable[[], None]] = {}
    missing = []
    for index, store in enumerate(all_stores()):
        if not store.is_installed:
            missing.append(store.name)
            continue
        folder = root / str(index)
        folder.mkdir()
        store.write(folder, features)
        if store.name == "Vox":
            runs |= _vox_runs(folder, batches, pin)
        else:
            fill = store.open(folder, features)
            runs[store.name] = partial(_fill_batches, fill, features, batches, pin)
            if store.name == BASELINE:
                for threads in THREADS:
                    name = BASELINE + _name_threads(threads)
                    runs[name] = partial(_fill_ahead, fill, features, batches, pin, threads)
    return runs, missing


def _vox_runs(folder: Path, batches: Batches, pin: bool) -> dict[str, Callable[[], None]]:
    named = [[str(number) for number in batch] for batch in batches]

    def read(source: CachedSource) -> None:
        for _ in source.read(named):
            pass

    def read_for_the_first_time(threads: int) -> None:
        read(CachedSource(open_cache(folder), pin=pin, threads=threads))

    cache = open_cache(folder)
    runs: dict[str, Callable[[], None]] = {}
    for threads in THREADS:
        name = f"Vox{_name_threads(threads)}"
        runs[name] = partial(read, CachedSource(cache, pin=pin, threads=threads))
        runs[name + FIRST_EPOCH] = partial(read_for_the_first_time, threads)
    return runs


def _name_threads(threads: int) -> str:
    return f", {threads} thread{'s' if threads > 1 else ''}"


def _fill_batches(fill: Fill, features: Features, batches: Batches, pin: bool) -> None:
    memory = RecycledMemory()
    for numbers in batches:
        _fill_batch(fill, features, pin, memory, numbers)


def _fill_ahead(fill: Fill, features: Features, batches: Batches, pin: bool, threads: int) -> None:
    for _ in map_ahead(partial(_fill_batch, fill, features, pin, RecycledMemory()), batches, threads):
        pass


def _fill_batch(
    fill: Fill, features: Features, pin: bool, memory: RecycledMemory, numbers: list[int]
) -> FeatureBatch:
    num_frames = [len(features[number]) for number in numbers]
    batch = empty_feature_batch([], num_frames, CHANNELS, pin, memory)
    padded_BTC = batch.features_BTC.numpy()
    for row, number in enumerate(numbers):
        fill(number, padded_BTC[row, : num_frames[row]])
        padded_BTC[row, num_frames[row] :] = 0
    return batch


def _time(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _ratio(baseline: list[float], elapsed: list[float]) -> float:
    """Return how many times as fast as the baseline something is: the median over the turns."""
    return _median([theirs / mine for theirs, mine in zip(baseline, elapsed, strict=True)])


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()

"""Writing: features from memory to disk, Vox's shards against other ways to keep them.

Each ends with its files on disk (fsync), Vox's with checksums of every utterance and of the whole file too.
"""

import shutil
import tempfile
import time
from pathlib import Path

import click

from tests.benchmarks.stores import CHANNELS, Store, all_stores, total_bytes
from vox.check.reading import Features, make_features

BASELINE = "bare memory map"  # reads what a plain file holds


@click.command()
@click.option("--gigabytes", default=1.0, show_default=True, help="Features to write, and disk space.")
@click.option("--repeats", default=3, show_default=True, help="Turns; the median counts.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write. Default: a temporary one.")
def main(gigabytes: float, repeats: int, folder: Path | None) -> None:
    """Time writing and print one table."""
    features = make_features(gigabytes * 1e9, CHANNELS)
    num_bytes = total_bytes(features)
    stores = all_stores()
    times: dict[str, list[float]] = {store.name: [] for store in stores}
    sizes: dict[str, int] = {}
    for _ in range(repeats):
        for store in stores:
            if store.is_installed:
                elapsed, sizes[store.name] = _write(store, features, folder)
                times[store.name].append(elapsed)
    click.echo(
        f"\nwriting: {len(features)} utterances, {num_bytes / 1e9:.2f} GB, to files on disk; "
        "pages still in memory as they come (warm page cache)"
    )
    click.echo(f"{'':34}{'GB/s':>8}{'of a plain file':>17}{'size':>8}")
    for store in stores:
        name = "plain file" if store.name == BASELINE else store.name
        if not store.is_installed:
            click.echo(f"{name:34}{'not installed':>20}")
            continue
        elapsed = sorted(times[store.name])[repeats // 2]
        ratio = sorted(times[BASELINE])[repeats // 2] / elapsed
        size = sizes[store.name] / num_bytes
        click.echo(f"{name:34}{num_bytes / elapsed / 1e9:8.2f}{ratio:17.2f}{size:8.3f}")


def _write(store: Store, features: Features, parent: Path | None) -> tuple[float, int]:
    """Return the seconds that writing took, and the bytes that it takes on disk."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        start = time.perf_counter()
        store.write(folder, features)
        elapsed = time.perf_counter() - start
        return elapsed, sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

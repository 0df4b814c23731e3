"""`vox cache list` and `vox cache verify`."""

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vox.errors import CacheError, CorpusError, name_count
from vox.options import features_option, root_option
from vox.units import samples_to_seconds

if TYPE_CHECKING:
    from vox.features.verify import Recording


@click.group()
def cache() -> None:
    """List and verify cached features."""


@cache.command("list")
@root_option
@features_option
@click.option("--split", help="This split only.")
def list_command(root: Path, features: Path | None, split: str | None) -> None:
    """Say which caches there are, how large, and from which weights; exit 2 if one cannot be read."""
    from vox.features.cache import CacheSummary, find_cache_dirs, summarise_cache
    from vox.features.fingerprint import join_layers

    features = features or root / "features"

    def describe(summary: CacheSummary) -> list[str]:
        plan = summary.plan
        return [
            plan.split,
            f"{plan.fingerprint.speed}",
            summary.folder.name,
            join_layers(plan.fingerprint.layers),
            f"{plan.wavlm} ({plan.fingerprint.weights_sha256[:8]})",
            f"{samples_to_seconds(plan.num_samples) / 3600:.2f}",
            f"{summary.num_bytes / 1e9:.3f}",
            f"{summary.num_present}/{len(plan.shards)}",
            "?" if summary.num_skipped is None else str(summary.num_skipped),
        ]

    rows = [["split", "speed", "fingerprint", "layers", "weights", "hours", "GB", "shards", "skipped"]]
    faults = []
    for folder in find_cache_dirs(features, split):
        try:
            rows.append(describe(summarise_cache(folder)))
        except CacheError as fault:
            faults.append(str(fault))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for line in faults:
        click.echo(line)
    if faults:
        raise CacheError(
            f"{len(faults)} of {len(rows) - 1 + len(faults)} caches cannot be read",
            where=features,
            remedy="fix them as described above",
        )


@cache.command("verify")
@root_option
@features_option
@click.option("--split", help="This split only.")
@click.option("--audio", is_flag=True, help="Also compare every recording with what its features are of.")
def verify_command(root: Path, features: Path | None, split: str | None, audio: bool) -> None:
    """Re-read every byte of every shard; exit 2 if anything is wrong."""
    from vox.features.cache import find_cache_dirs
    from vox.features.verify import verify_audio, verify_cache

    features = features or root / "features"
    num_faults = 0
    folders = find_cache_dirs(features, split)
    find_recordings = lru_cache(partial(_find_recordings, root))
    hashes: dict[Recording, tuple[str, str]] = {}

    def find_faults(folder: Path) -> Iterator[str]:
        yield from verify_cache(folder)
        if audio:
            try:
                yield from verify_audio(folder, find_recordings(folder.parent.name), hashes)
            except CorpusError as error:
                yield f"recordings that cannot be compared: {error}"

    for folder in folders:
        num_here = 0
        for line in find_faults(folder):
            click.echo(line)
            num_here += 1
        click.echo(f"{folder}: {'whole' if num_here == 0 else name_count(num_here, 'fault')}")
        num_faults += num_here
    if num_faults:
        raise CacheError(
            f"{name_count(num_faults, 'fault')} in {name_count(len(folders), 'cache')}",
            where=features,
            remedy="see the lines above; vox precompute computes again what is deleted",
        )


def _find_recordings(root: Path, split: str) -> "dict[str, Recording]":
    from vox.corpus import read_split
    from vox.text import accept_any_text

    utterances, _ = read_split(root, split, accept_any_text)
    return {each.id: (each.audio_path, each.segment) for each in utterances}

"""The order of events of `vox precompute`."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from precompute.estimate import Pace, estimate_time
from precompute.extract import compute_shards
from precompute.plan import plan_cache
from precompute.prepare import (
    CacheState,
    check_free_space,
    describe_state,
    inspect_cache,
    prepare_folder,
)
from precompute.recordings import Recordings
from vox.corpus import Problem, find_split, load_split
from vox.device import local_device, pick_device
from vox.errors import CacheError
from vox.features.cache import cache_dir
from vox.features.fingerprint import Fingerprint, make_fingerprint
from vox.wavlm.extractor import build_extractor

log = logging.getLogger(__name__)

# Padded seconds of audio computed at once: what keeps a GPU busy, and what a laptop's memory bears.
CUDA_BATCH_SECONDS = 160.0
CPU_BATCH_SECONDS = 30.0
MAX_DEFAULT_WORKERS = 4


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    splits: tuple[str, ...]
    root: Path
    wavlm: str
    layers: tuple[int, ...]
    speeds: tuple[float, ...]
    features: Path
    device: str
    batch_seconds: float | None
    workers: int | None
    shard_gb: float
    rank: int
    world_size: int
    dry_run: bool
    skip_bad: bool
    rebuild: bool


def run(options: Options) -> None:
    """Compute the features of some splits that are not there yet.

    Raises VoxError for whatever a user can mend, and OSError when the disk is full or not writable.
    """
    device = pick_device(local_device(options.device))
    for split in options.splits:
        find_split(options.root, split)  # a name misspelt is told before WavLM is loaded
    extractor = build_extractor(options.wavlm, options.layers)
    fingerprint = make_fingerprint(extractor.wavlm, options.layers)
    states = [
        _inspect_variant(options, split, speed, fingerprint, extractor.wavlm.hidden_size)
        for split in options.splits
        for speed in options.speeds
    ]
    for state in states:
        click.echo(describe_state(state))
    check_free_space(states)
    pace = _choose_pace(options, device)
    if options.dry_run:
        click.echo(estimate_time(states, extractor, device, pace))
        return
    states.reverse()
    while states:  # each is let go when it is done: of a large corpus it is gigabytes
        state = states.pop()
        prepare_folder(state, rank=options.rank, rebuild=options.rebuild)
        skipped = state.skipped
        if state.to_compute:
            if device.type == "cpu":
                log.warning("computing on the CPU in float32; a GPU would be far faster")
            skipped = skipped + compute_shards(
                state.work,
                state.to_compute,
                state.folder,
                extractor,
                device,
                batch_seconds=pace.batch_seconds,
                workers=pace.workers,
            )
        else:
            click.echo(f"{state.work.plan.title}: nothing to do, all shards are there")
        _report_skipped(state, skipped)


def default_workers() -> int:
    """Return how many processes decode when nobody says: one core is left for the computation."""
    return min(MAX_DEFAULT_WORKERS, len(os.sched_getaffinity(0)) - 1)


def _inspect_variant(
    options: Options, split: str, speed: float, fingerprint: Fingerprint, feature_dim: int
) -> CacheState:
    """Read a split at one speed and compare it with the cache of that."""
    fingerprint = fingerprint.at_speed(speed)
    folder = cache_dir(options.features, split, fingerprint)
    recordings = Recordings.recall(folder, options.root)
    corpus = load_split(
        options.root,
        split,
        skip_bad=options.skip_bad,
        speed=speed,
        known_length=recordings.known_length,
    )
    work = plan_cache(
        split,
        corpus,
        fingerprint,
        wavlm=options.wavlm,
        feature_dim=feature_dim,
        shard_gb=options.shard_gb,
    )
    return inspect_cache(
        folder,
        work,
        recordings,
        rank=options.rank,
        world_size=options.world_size,
        rebuild=options.rebuild,
    )


def _choose_pace(options: Options, device: torch.device) -> Pace:
    default_seconds = CUDA_BATCH_SECONDS if device.type == "cuda" else CPU_BATCH_SECONDS
    return Pace(
        batch_seconds=default_seconds if options.batch_seconds is None else options.batch_seconds,
        workers=default_workers() if options.workers is None else options.workers,
    )


def _report_skipped(state: CacheState, skipped: list[Problem]) -> None:
    if not skipped:
        return
    split = state.work.plan.title
    log.warning("%s: %d utterances have no features and will not be trained on:", split, len(skipped))
    for problem in skipped:
        log.warning("skipped %s: %s", problem.name, problem.reason)
    if len(skipped) == state.num_mine:
        whose = "" if state.num_mine == state.num_utterances else " that this process is to compute"
        raise CacheError(
            f"no utterance of split {split}{whose} has features ({skipped[0].reason})",
            where=state.folder,
            remedy="correct what is said above, then run this again with --rebuild",
        )

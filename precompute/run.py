"""The order of events of `vox precompute`.

Whether there is anything to do is found out first, from what files say of themselves: WavLM, and torch with
it, is loaded for work alone.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from precompute.audio_changes import Recordings
from precompute.extend import Opened, find_refused, keep_shards
from precompute.pace import choose_pace
from precompute.plan import plan_cache
from precompute.prepare import (
    CacheState,
    check_free_space,
    describe_state,
    inspect_cache,
    prepare_folder,
)
from vox.corpus import Problem, find_split, load_split
from vox.errors import CacheError, DeviceError, name_count
from vox.features.cache import cache_dir
from vox.features.fingerprint import Fingerprint, ModelIdentity, identify_model
from vox.features.known_models import recall_model, remember_model
from vox.text import ENGLISH
from vox.wavlm.files import FileStamp, find_folder, stamp_files
from vox.wavlm.shape import check_layers_fit

if TYPE_CHECKING:
    import torch

    from vox.wavlm.extractor import FeatureExtractor

log = logging.getLogger(__name__)

# Checked at once; whether there is such a device is asked of torch, once there is work for it.
DEVICE_NAMES = r"auto|cpu|cuda(:\d+)?"


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
    normalise: Callable[[str], str] = (
        ENGLISH  # transcripts that it refuses are problems; features have no text
    )


@dataclass(frozen=True)
class Computer:
    """What computes features, and where."""

    extractor: "FeatureExtractor"
    device: "torch.device"
    model: ModelIdentity
    folder: Path | None  # that the model came from; None if it has only just been fetched
    stamps: list[FileStamp] | None  # of its files, taken before they were read; None if there are none


def run(options: Options) -> None:
    """Compute the features of some splits that are not there yet.

    Raises VoxError for whatever a user can fix, and OSError when the disk is full or not writable.
    """
    if not re.fullmatch(DEVICE_NAMES, options.device):
        raise DeviceError("unknown device", where=options.device, remedy="use auto, cpu, cuda or cuda:N")
    for split in options.splits:
        find_split(options.root, split)  # fail on a misspelt split before loading WavLM
    known = _recall_model(options)
    if known is None:
        check_layers_fit(options.wavlm, options.layers)
    states = [] if known is None else _inspect_variants(options, known)
    computer = None
    if known is None or any(state.to_compute for state in states):
        computer = _load_computer(options)
        if computer.model != known:  # what is computed is described by what computes it
            states = _inspect_variants(options, computer.model)
    for state in states:
        click.echo(describe_state(state))
    check_free_space(states)
    if options.dry_run:
        click.echo(_estimate(options, states, computer))
        return
    if computer is not None and computer.folder is not None and computer.stamps is not None:
        remember_model(options.features, computer.folder, computer.stamps, computer.model)
    states.reverse()
    while states:  # each is let go when it is done: of a large corpus it is gigabytes
        state = states.pop()
        prepare_folder(state, rank=options.rank, rebuild=options.rebuild)
        skipped = state.skipped
        if state.to_compute:
            assert computer is not None
            skipped = skipped + _compute(options, state, computer)
        else:
            click.echo(f"{state.work.plan.title}: nothing to do, all shards are there")
        _report_skipped(state, skipped)


def _recall_model(options: Options) -> ModelIdentity | None:
    """Return what the model was when it was last loaded, if it is the same and has these layers."""
    folder = find_folder(options.wavlm)
    known = None if folder is None else recall_model(options.features, folder)
    return known if known is not None and max(options.layers) <= known.num_layers else None


def _load_computer(options: Options) -> Computer:
    from vox.device import local_device, pick_device
    from vox.wavlm.extractor import build_extractor

    device = pick_device(local_device(options.device))
    folder = find_folder(options.wavlm)
    stamps = None if folder is None else stamp_files(folder)
    extractor = build_extractor(options.wavlm, options.layers)
    return Computer(extractor, device, identify_model(extractor.wavlm), folder, stamps)


def _estimate(options: Options, states: Sequence[CacheState], computer: Computer | None) -> str:
    if computer is None:
        return "nothing to compute here"
    from precompute.estimate import estimate_time

    pace = choose_pace(options.batch_seconds, options.workers, computer.device.type)
    return estimate_time(states, computer.extractor, computer.device, pace)


def _compute(options: Options, state: CacheState, computer: Computer) -> list[Problem]:
    """Compute a state's missing shards; return the utterances that were skipped."""
    from precompute.extract import compute_shards

    if computer.device.type == "cpu":
        log.warning("computing on the CPU in float32; a GPU would be far faster")
    pace = choose_pace(options.batch_seconds, options.workers, computer.device.type)
    return compute_shards(
        state.work,
        state.to_compute,
        state.folder,
        computer.extractor,
        computer.device,
        batch_seconds=pace.batch_seconds,
        workers=pace.workers,
    )


def _inspect_variants(options: Options, model: ModelIdentity) -> list[CacheState]:
    """Read every split at every speed and compare it with the cache of that."""
    fingerprint = model.fingerprint(options.layers)
    return [
        _inspect_variant(options, split, speed, fingerprint, model.hidden_size)
        for split in options.splits
        for speed in options.speeds
    ]


def _inspect_variant(
    options: Options, split: str, speed: float, fingerprint: Fingerprint, feature_dim: int
) -> CacheState:
    """Read a split at one speed and compare it with the cache of that."""
    fingerprint = fingerprint.at_speed(speed)
    folder = cache_dir(options.features, split, fingerprint)
    recordings = Recordings.recall(folder, options.root)
    problems: list[Problem] = []
    corpus = load_split(
        options.root,
        split,
        skip_bad=options.skip_bad,
        speed=speed,
        known_length=recordings.known_length,
        normalise=options.normalise,
        left_out=problems,
    )
    work = plan_cache(
        split,
        corpus,
        fingerprint,
        wavlm=options.wavlm,
        feature_dim=feature_dim,
        shard_gb=options.shard_gb,
    )
    opened: Opened = {}
    if not options.rebuild:
        refused = []
        if problems and folder.exists():
            refused = find_refused(options.root, split, problems, speed, recordings.known_length)
        work = keep_shards(folder, work, options.shard_gb, problems, refused, opened)
    return inspect_cache(
        folder,
        work,
        recordings,
        rank=options.rank,
        world_size=options.world_size,
        rebuild=options.rebuild,
        opened=opened,
    )


def _report_skipped(state: CacheState, skipped: list[Problem]) -> None:
    if not skipped:
        return
    split = state.work.plan.title
    count = name_count(len(skipped), "utterance")
    log.warning("%s: no features for %s, which training will not use:", split, count)
    for problem in skipped:
        log.warning("skipped %s: %s", problem.name, problem.reason)
    if len(skipped) == state.num_mine:
        whose = "" if state.num_mine == state.num_utterances else " that this process is to compute"
        raise CacheError(
            f"no utterance of split {split}{whose} has features ({skipped[0].reason})",
            where=state.folder,
            remedy="correct what is listed above, then run this again with --rebuild",
        )

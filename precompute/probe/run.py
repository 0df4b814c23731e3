"""The order of events of `vox probe`."""

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from precompute.pace import choose_pace
from precompute.probe.heads import HeadResult, HeadSpec, evaluate_heads, fit_heads
from precompute.probe.layers import FRAME_BYTES, LayerFeatures, compute_layers, open_scratch
from precompute.probe.report import (
    TOO_LITTLE_LEARNED,
    find_best,
    format_recommendation,
    format_results,
    is_within_margin,
    recommend_layers,
    results_to_json,
)
from precompute.probe.select import Characters, Selection, choose_characters, select_utterances
from vox.corpus import load_split, refuse_without_words
from vox.device import pick_device
from vox.disk import check_space, check_writable, format_gb, free_bytes, remove_leftovers, write_whole
from vox.errors import CacheError, ConfigError, CorpusError, name_count
from vox.features.fingerprint import join_layers, make_fingerprint
from vox.text import ENGLISH, Normaliser
from vox.wavlm.extractor import build_extractor
from vox.wavlm.model import WavLM

log = logging.getLogger(__name__)

MAX_DEV_HOURS = 0.5
ROLES = ("train", "dev")  # of the two selections, in names of files


@dataclass(frozen=True)
class ProbeOptions:
    """The command line, checked."""

    split: str
    dev_split: str
    hours: float
    num_updates: int
    seed: int
    keep: bool
    root: Path
    wavlm: str
    layers: tuple[int, ...] | None  # the mean to compare with; None: the top third
    features: Path
    device: str
    batch_seconds: float | None
    workers: int | None
    dry_run: bool
    skip_bad: bool
    normalise: Normaliser = ENGLISH


def run_probe(options: ProbeOptions) -> None:
    """Measure what a linear CTC head hears in each layer, and say which layers to cache.

    Raises VoxError for whatever a user can fix, and OSError when the disk is full or not writable.
    """
    split = options.split
    if split == options.dev_split:
        raise ConfigError(
            "--split and --dev-split are the same, and the probe measures on speech it has not seen",
            where=split,
            remedy="choose another with --dev-split",
        )
    device = pick_device(options.device)
    train = _select(options, split, options.hours)
    dev = _select(options, options.dev_split, min(options.hours, MAX_DEV_HOURS))
    texts = [utterance.text for part in (train, dev) for utterance in part.utterances]
    characters = choose_characters(options.normalise, texts)
    wavlm = build_extractor(options.wavlm, options.layers or (1,)).wavlm
    _check_size(options, (train, dev), wavlm)
    if options.dry_run:
        return
    check_writable(options.features, "--features")
    options.features.mkdir(parents=True, exist_ok=True)
    for name in remove_leftovers(options.features):
        log.info("removed %s, left by a run that died", options.features / name)
    prefix = make_fingerprint(wavlm, range(1, wavlm.num_layers + 1)).prefix
    stem = options.features / f"probe-{split}-{prefix}"
    with ExitStack() as stack:
        paths = [stem.with_name(f"{stem.name}.{role}.npy") for role in ROLES]
        features = [
            _compute(options, selection, characters, wavlm, device, path, stack)
            for selection, path in zip((train, dev), paths, strict=True)
        ]
        results, layers = measure_layers(
            *features,
            compared=options.layers,
            num_updates=options.num_updates,
            seed=options.seed,
            device=device,
        )
    _warn_of_little_learning(results)
    report_path = stem.with_name(f"{stem.name}.json")
    write_whole(report_path, results_to_json(results, layers, _describe(options, (train, dev), features)))
    click.echo(format_results(results, has_words=characters.has_words))
    click.echo(format_recommendation(layers, wavlm.num_layers))
    click.echo(f"report: {report_path}")


def _warn_of_little_learning(results: Sequence[HeadResult]) -> None:
    best = find_best(results)
    if best.cer > TOO_LITTLE_LEARNED:
        log.warning(
            "the best layer's CER is %.0f %%: the heads have learned too little to choose layers by; take "
            "more with --hours or --updates",
            100 * best.cer,
        )


def plan_heads(num_layers: int, compared: tuple[int, ...] | None) -> list[HeadSpec]:
    """Return one head for each layer, one for a mean of layers (the top third by default), one for a mix."""
    compared = compared or tuple(range(num_layers - math.ceil(num_layers / 3) + 1, num_layers + 1))
    every = tuple(range(1, num_layers + 1))
    heads = [HeadSpec(str(layer), (layer,)) for layer in every]
    if len(compared) > 1:
        heads.append(_mean_head(compared))
    return [*heads, HeadSpec("learned mix", every, is_learned=True)]


def measure_layers(
    train: LayerFeatures,
    dev: LayerFeatures,
    *,
    compared: tuple[int, ...] | None,
    num_updates: int,
    seed: int,
    device: torch.device,
) -> tuple[list[HeadResult], tuple[int, ...]]:
    """Fit and evaluate all heads, then one for the mean that is to be recommended.

    Returns all results and the recommended layers, by the rule that the report states.
    """

    def measure(specs: list[HeadSpec]) -> list[HeadResult]:
        heads = fit_heads(train, specs, num_updates=num_updates, seed=seed, device=device)
        return evaluate_heads(heads, dev)

    results = measure(plan_heads(train.num_layers, compared))
    best, layers = find_best(results), recommend_layers(results)
    if all(layers != result.spec.layers or result.spec.is_learned for result in results):
        results += measure([_mean_head(layers)])
    mean = next(r for r in results if r.spec.layers == layers and not r.spec.is_learned)
    return results, layers if is_within_margin(mean, best) else best.spec.layers


def _select(options: ProbeOptions, split: str, hours: float) -> Selection:
    utterances = load_split(options.root, split, skip_bad=options.skip_bad, normalise=options.normalise)
    refuse_without_words(split, utterances)
    if num_without := sum(not utterance.text for utterance in utterances):
        left_out = name_count(num_without, "recording")
        log.info("%s: %s without speech left out: the probe measures letters", split, left_out)
    selection = select_utterances(split, utterances, hours, options.seed)
    if selection.too_short:
        count = name_count(len(selection.too_short), "utterance")
        log.warning("%s: %s left out, too short:", split, count)
        for problem in selection.too_short:
            log.warning("left out %s: %s", problem.name, problem.reason)
    return selection


def _check_size(options: ProbeOptions, selections: tuple[Selection, ...], wavlm: WavLM) -> None:
    """Say what will be computed and how large it is; raise CacheError if it does not fit on the disk."""
    num_frames = sum(selection.num_frames for selection in selections)
    needed = num_frames * wavlm.num_layers * wavlm.hidden_size * FRAME_BYTES
    counts = [name_count(len(s.utterances), "utterance") for s in selections]
    parts = [f"{s.split}: {count}, {s.hours:.3f} hours" for s, count in zip(selections, counts, strict=True)]
    click.echo(
        f"probe of {'; '.join(parts)}; {wavlm.num_layers} layers of {wavlm.hidden_size} channels in float16: "
        f"{format_gb(needed)}, {'kept' if options.keep else 'removed at the end'}; "
        f"into {options.features} ({format_gb(free_bytes(options.features))} free)"
    )
    check_space(
        options.features,
        needed,
        CacheError,
        what="the probe",
        remedy="take less with --hours, or another disk with --features DIR",
    )


def _compute(
    options: ProbeOptions,
    selection: Selection,
    characters: Characters,
    wavlm: WavLM,
    device: torch.device,
    path: Path,
    stack: ExitStack,
) -> LayerFeatures:
    pace = choose_pace(options.batch_seconds, options.workers, device.type)
    shape = (selection.num_frames, wavlm.num_layers, wavlm.hidden_size)
    features, problems = compute_layers(
        selection,
        wavlm,
        device,
        stack.enter_context(open_scratch(path, shape, keep=options.keep)),
        characters,
        batch_seconds=pace.batch_seconds,
        workers=pace.workers,
    )
    if problems:
        log.warning("%s: %s left out:", selection.split, name_count(len(problems), "utterance"))
        for problem in problems:
            log.warning("left out %s: %s", problem.name, problem.reason)
    if not features.ids:
        raise CorpusError(
            f"no chosen utterance of split {selection.split} has features ({problems[0].reason})",
            remedy="repair the recordings",
        )
    return features


def _mean_head(layers: tuple[int, ...]) -> HeadSpec:
    return HeadSpec(f"mean of {join_layers(layers)}", layers)


def _describe(
    options: ProbeOptions, selections: tuple[Selection, Selection], features: Sequence[LayerFeatures]
) -> dict[str, Any]:
    """Return what the report says of the probe; with --keep also where each utterance's features are."""
    train, dev = selections
    about: dict[str, Any] = {
        "split": train.split,
        "dev_split": dev.split,
        "wavlm": options.wavlm,
        "hours": train.hours,
        "dev_hours": dev.hours,
        "num_updates": options.num_updates,
        "seed": options.seed,
    }
    if options.keep:
        about["kept"] = {
            role: {"split": selection.split, "frames": _spans(part)}
            for role, selection, part in zip(ROLES, selections, features, strict=True)
        }
    return about


def _spans(features: LayerFeatures) -> dict[str, list[int]]:
    """Return each utterance's first frame in the kept array and the one after its last."""
    return {name: list(span) for name, span in zip(features.ids, features.spans, strict=True)}

"""Several splits trained on, or validated, as one: each keeps its own cache, and a plan sees one list."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from train.options import TrainOptions
from train.splits import TrainingSplit, command_for, open_source
from vox.config import DataConfig
from vox.corpus import Utterance
from vox.data.sources import CachedSource, LiveSource, Source
from vox.errors import name_count, name_first
from vox.features.cache import cache_dir, join_caches
from vox.features.fingerprint import Fingerprint
from vox.text import ENGLISH, Normaliser
from vox.units import samples_to_seconds

log = logging.getLogger(__name__)


def join_names(splits: Collection[str]) -> str:
    """Return the name of several splits together; the order in which they were given makes no difference."""
    return "+".join(sorted(splits))


def open_splits(
    options: TrainOptions,
    splits: Sequence[str],
    fingerprint: Fingerprint | None,
    *,
    workers: int,
    pin: bool,
    speeds: Sequence[float] = (1.0,),
    normalise: Normaliser = ENGLISH,
) -> tuple[list[Utterance], Source]:
    """Open splits, as `open_source` does with one, and join them.

    The utterances are in the order that they would have in one split of all. Where an id is in two splits,
    every utterance's is `<split>/<id>`: refusing would ask people to rename recordings that are not theirs,
    and which splits a run reads is decided long after they were named.
    """
    opened = [
        open_source(options, split, fingerprint, workers=workers, pin=pin, speeds=speeds, normalise=normalise)
        for split in splits
    ]
    if len(opened) == 1:
        return opened[0]
    # Of all that the sources hold, also of what has no transcript: one id must never find another's audio.
    counts = Counter(name for _, source in opened for name in _ids_in(source))
    is_shared = max(counts.values(), default=0) > 1
    prefixes = [f"{split}/" if is_shared else "" for split in splits]
    utterances = [
        replace(utterance, id=prefix + utterance.id) if is_shared else utterance
        for prefix, (some, _) in zip(prefixes, opened, strict=True)
        for utterance in some
    ]
    utterances.sort(key=lambda utterance: (speeds.index(utterance.speed), utterance.id))
    caches = [
        (prefix, source.cache)
        for prefix, (_, source) in zip(prefixes, opened, strict=True)
        if isinstance(source, CachedSource)
    ]
    if fingerprint is None:
        return utterances, LiveSource(utterances, workers=workers, pin=pin)
    return utterances, CachedSource(join_caches(caches), pin=pin)


def open_dev_splits(
    options: TrainOptions,
    splits: Sequence[str],
    fingerprint: Fingerprint | None,
    *,
    workers: int,
    pin: bool,
    normalise: Normaliser = ENGLISH,
) -> tuple[list[Utterance], Source]:
    """Open dev splits from their caches where all have one, else all from audio, which is logged."""
    if fingerprint is not None:
        missing = [
            split for split in splits if not cache_dir(options.features_dir, split, fingerprint).exists()
        ]
        for split in missing:
            log.info(
                "%s is not cached: validating from live audio (`%s` would make it faster)",
                split,
                command_for(options, split, fingerprint),
            )
        fingerprint = None if missing else fingerprint
    return open_splits(options, splits, fingerprint, workers=workers, pin=pin, normalise=normalise)


def leave_out_by_length(
    name: str, utterances: list[Utterance], data: DataConfig
) -> tuple[list[Utterance], dict[str, float]]:
    """Leave out what data.min_seconds and data.max_seconds exclude; return the rest, and ids with seconds."""
    left_out: dict[str, float] = {}
    for is_outside, limit, word in (
        (float.__lt__, data.min_seconds, "shorter"),
        (float.__gt__, data.max_seconds, "longer"),
    ):
        if limit is None:
            continue
        seconds = {utterance.id: samples_to_seconds(utterance.num_samples or 0) for utterance in utterances}
        outside = {each: length for each, length in seconds.items() if is_outside(length, limit)}
        if outside:
            log.warning(
                "%s: left out %s (%.2f h) that are %s than %g s: %s",
                name,
                name_count(len(outside), "utterance"),
                sum(outside.values()) / 3600,
                word,
                limit,
                name_first(list(outside)),  # metrics.jsonl names all
            )
        left_out |= outside
    return [utterance for utterance in utterances if utterance.id not in left_out], left_out


def repeat_utterances(split: TrainingSplit, weights: Mapping[str, int]) -> TrainingSplit:
    """Return a split in which an utterance stands as often as an epoch is to hear it.

    weights: by the split that it is of. A plan counts positions, so each of them comes once an epoch.
    """
    more = [u for u in split.utterances for _ in range(weights[u.split] - 1)]
    return replace(split, utterances=split.utterances + more)


def find_shared_recordings(train: TrainingSplit, dev: TrainingSplit) -> dict[str, str]:
    """Find the recordings that are in both, by content: a dev utterance's id, and a train utterance's.

    Empty where one of them is not cached: the recordings' hashes are in the shards.
    """
    if not (isinstance(train.source, CachedSource) and isinstance(dev.source, CachedSource)):
        return {}
    trained_on = {train.source.cache.audio_sha256(name): name for name in train.ids}
    hashes = {name: dev.source.cache.audio_sha256(name) for name in dev.ids}
    return {name: trained_on[sha256] for name, sha256 in hashes.items() if sha256 in trained_on}


def _ids_in(source: Source) -> Collection[str]:
    if isinstance(source, CachedSource):
        return source.cache.ids
    assert isinstance(source, LiveSource)
    return source.utterances.keys()

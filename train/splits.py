"""Splits made ready for training: who is in them, what they say, and where their batches come from."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from train.options import TrainOptions
from vox.corpus import Utterance, load_split
from vox.data.batch import LabelBatch, make_label_batch
from vox.data.sources import CachedSource, LiveSource, Source
from vox.decode.ctc import min_ctc_frames
from vox.defaults import DEFAULT_WAVLM
from vox.errors import CacheError, CorpusError, name_count, name_first
from vox.features.cache import (
    FeatureCache,
    merge_caches,
    open_cache,
    precompute_command,
)
from vox.features.fingerprint import Fingerprint
from vox.resample import format_speed
from vox.text import ENGLISH, UNK_ID, Normaliser, Tokenizer
from vox.units import samples_to_seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSplit:
    """Utterances with labels, and the source of their batches."""

    name: str
    utterances: list[Utterance]  # num_samples known
    labels: dict[str, list[int]]
    source: Source
    num_replayed: int = 0  # of the utterances, at the end: a source's, which a plan mixes in (stage 3)
    left_out: dict[str, float] = field(default_factory=dict)  # ids and seconds, by data.min_seconds and max_

    @property
    def num_target(self) -> int:
        """Count the utterances that are not replayed."""
        return len(self.utterances) - self.num_replayed

    @property
    def ids(self) -> list[str]:
        """Ids, in the order that plans count positions in."""
        return [utterance.id for utterance in self.utterances]

    @property
    def lengths(self) -> list[int]:
        """Samples at 16 kHz of each utterance, in the order of ids."""
        return [utterance.num_samples or 0 for utterance in self.utterances]

    @property
    def hours(self) -> float:
        """Audio in the split, without what is replayed."""
        return samples_to_seconds(sum(self.lengths[: self.num_target])) / 3600

    @cached_property
    def word_counts(self) -> dict[str, int]:
        """How often an epoch has each word, replayed utterances included; sorted by word."""
        return dict(sorted(Counter(word for u in self.utterances for word in u.text.split()).items()))

    @property
    def is_cached(self) -> bool:
        """Whether batches are cached features rather than waveforms."""
        return isinstance(self.source, CachedSource)

    def label_batch(self, rows: Sequence[Sequence[str]]) -> LabelBatch:
        """Return the labels of rows of utterances, padded."""
        return make_label_batch([[label for name in row for label in self.labels[name]] for row in rows])

    def digest(self, only: Collection[str] | None = None) -> str:
        """Return a sha256 over ids, lengths and texts: equal digests, equal split.

        only: ids to take, where not all of the split was read.
        """
        content = hashlib.sha256()
        for utterance in self.utterances:
            if only is None or utterance.id in only:
                content.update(f"{utterance.id}\t{utterance.num_samples}\t{utterance.text}\n".encode())
        return content.hexdigest()


def open_source(
    options: TrainOptions,
    split: str,
    fingerprint: Fingerprint | None,
    *,
    workers: int,
    pin: bool,
    speeds: Sequence[float] = (1.0,),
    normalise: Normaliser = ENGLISH,
) -> tuple[list[Utterance], Source]:
    """Read a split's transcripts and open its cache (with a fingerprint) or its audio (without).

    options.wavlm: what advice to run `vox precompute` names. speeds: every utterance is there at each, one
    under its own id where the speed is 1, else as `sp0.9-<id>`. The fingerprint is that of speed 1. Raises
    CorpusError or CacheError.
    """
    utterances: list[Utterance] = []
    if fingerprint is None:
        for speed in speeds:
            corpus = load_split(
                options.root, split, skip_bad=options.skip_bad, speed=speed, normalise=normalise
            )
            utterances += _name_variants(corpus, split, speed)
        return _refuse_duplicates(utterances, split), LiveSource(utterances, workers=workers, pin=pin)
    prints = {speed: fingerprint.at_speed(speed) for speed in speeds}
    caches = {
        speed: open_cache(options.features_dir, split, wanted, command_for(options, split, wanted))
        for speed, wanted in prints.items()
    }
    corpus = load_split(
        options.root, split, needs_audio=False, skip_bad=options.skip_bad, normalise=normalise
    )
    for speed, cache in caches.items():
        utterances += _match_cache(corpus, cache, split, prints[speed], options)
    merged = merge_caches({variant_prefix(speed): cache for speed, cache in caches.items()})
    return _refuse_duplicates(utterances, split), CachedSource(merged, pin=pin)


def variant_prefix(speed: float) -> str:
    """Return what goes before an utterance's id at a speed: nothing at 1."""
    return "" if speed == 1 else f"sp{format_speed(speed)}-"


def label_split(
    name: str,
    utterances: list[Utterance],
    source: Source,
    tokenizer: Tokenizer,
    count_frames: Callable[[int], int],
    *,
    skip_bad: bool,
    spare_frames: int = 0,
) -> TrainingSplit:
    """Encode the transcripts and refuse, by name, what CTC cannot align or the tokenizer cannot spell (T4).

    spare_frames: that CTC needs beside an utterance's own: 1 if utterances are concatenated, because equal
        labels on both sides of a seam have a blank between them.
    Raises CorpusError unless skip_bad, which leaves such utterances out and lists them.
    """
    labels = {utterance.id: tokenizer.encode(utterance.text) for utterance in utterances}
    unknown = [name for name, row in labels.items() if UNK_ID in row]
    too_long = [
        utterance.id
        for utterance in utterances
        if min_ctc_frames(labels[utterance.id]) + spare_frames > count_frames(utterance.num_samples or 0)
    ]
    for names, problem in (
        (unknown, "characters that the tokenizer lacks"),
        (too_long, "more labels than frames of audio"),
    ):
        if not names:
            continue
        what = f"{name_count(len(names), 'transcript')} with {problem}"
        if not skip_bad:
            raise CorpusError(
                what, where=f"{name}: {name_first(names)}", remedy="correct them, or pass --skip-bad"
            )
        log.warning("%s: skipped %s: %s", name, what, ", ".join(names))
        bad = set(names)
        utterances = [utterance for utterance in utterances if utterance.id not in bad]
    if not utterances:
        raise CorpusError("no utterance is left to use", where=name)
    return TrainingSplit(name, utterances, labels, source)


def command_for(options: TrainOptions, split: str, fingerprint: Fingerprint) -> str:
    """Write the command that makes the cache that a run with these options reads."""
    return precompute_command(
        split,
        fingerprint,
        root=options.root,
        wavlm=options.wavlm or DEFAULT_WAVLM,
        features=options.features,
    )


def _name_variants(utterances: list[Utterance], split: str, speed: float) -> list[Utterance]:
    prefix = variant_prefix(speed)
    return [replace(utterance, id=prefix + utterance.id, split=split) for utterance in utterances]


def _refuse_duplicates(utterances: list[Utterance], split: str) -> list[Utterance]:
    """Return the utterances; raise CorpusError if one's id is that of another at another speed."""
    counts = Counter(utterance.id for utterance in utterances)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise CorpusError(
            f"{name_count(len(twice), 'id')} also used by another utterance at another speed",
            where=f"{split}: {name_first(twice)}",
            remedy="rename these utterances",
        )
    return utterances


def _match_cache(
    utterances: list[Utterance],
    cache: FeatureCache,
    split: str,
    fingerprint: Fingerprint,
    options: TrainOptions,
) -> list[Utterance]:
    """Give utterances the lengths their shards recorded, and their variant's name and speed.

    Refuse a cache of another corpus.
    """
    speed = fingerprint.speed
    prefix = variant_prefix(speed)
    command = f"`{command_for(options, split, fingerprint)}`"
    title = split if speed == 1 else f"{split} at speed {speed}"
    if cache.skipped:
        log.warning(
            "%s: precompute skipped %s: %s",
            title,
            name_count(len(cache.skipped), "recording"),
            ", ".join(sorted(cache.skipped)),
        )
    matched, missing = [], []
    for utterance in utterances:
        if utterance.id in cache.num_samples and utterance.id not in cache.skipped:
            num_samples = cache.num_samples[utterance.id]
            name = prefix + utterance.id
            matched.append(replace(utterance, id=name, num_samples=num_samples, speed=speed, split=split))
        elif utterance.id not in cache.skipped:
            missing.append(utterance.id)
    known = {utterance.id for utterance in utterances}
    unknown = [name for name in cache.ids if name not in known]
    if missing and not options.skip_bad:
        raise CacheError(
            f"{name_count(len(missing), 'utterance')} of the split missing in its cache",
            where=f"{title}: {name_first(missing)}",
            remedy=f"run {command}, or pass --skip-bad",
        )
    if unknown and not options.skip_bad:
        raise CacheError(
            f"{name_count(len(unknown), 'cached utterance')} without a transcript",
            where=f"{title}: {name_first(unknown)}",
            remedy=f"restore them, or run {command}, or pass --skip-bad",
        )
    for names, what in ((missing, "not cached"), (unknown, "without a transcript")):
        if names:
            count = name_count(len(names), "utterance")
            log.warning("%s: skipped %s %s: %s", title, count, what, ", ".join(names))
    return matched

"""Data of stage 3: the source of a checkpoint, and a target split with the source replayed."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from train.splits import TrainingSplit
from vox.config import Config
from vox.corpus import find_split
from vox.data.sources import CachedSource, LiveSource, Source
from vox.errors import ConfigError, CorpusError
from vox.features.cache import join_caches

log = logging.getLogger(__name__)


def name_source(config: Config, origin: Config) -> Config:
    """Return the config with the source's splits filled in: the requested ones, or else the checkpoint's.

    origin: the config that the checkpoint was trained with. After an earlier stage 3 the source is that
    stage's source. Raises ConfigError if source and target are the same split, for training or validation.
    """
    asked = config.adapt
    split = asked.replay_split or origin.adapt.replay_split or tuple(origin.data.train_weights)
    dev_split = asked.source_dev_split or origin.adapt.source_dev_split or origin.data.dev_split
    for target, source, flag in (
        (tuple(config.data.train_weights), split, "--train-split"),
        (config.data.dev_split, dev_split, "--dev-split"),
    ):
        if both := set(target) & set(source):
            raise ConfigError(
                "this split is the source's, so it cannot be the target too",
                where=" and ".join(sorted(both)),
                remedy=f"name your own with {flag}",
            )
    adapt = asked.model_copy(update={"replay_split": split, "source_dev_split": dev_split})
    return config.model_copy(update={"adapt": adapt})


def check_source_dev(root: Path, splits: Sequence[str]) -> None:
    """Raise CorpusError if a dev split of the source is missing: nothing else shows what is forgotten."""
    for split in splits:
        try:
            find_split(root, split)
        except CorpusError:
            raise CorpusError(
                f"the source's dev split {split} is not there, so forgetting could not be measured",
                where=root,
                remedy="put it back, or name recordings of the source with --set adapt.source_dev_split=NAME",
            ) from None


def add_replay(target: TrainingSplit, source: TrainingSplit) -> TrainingSplit:
    """Append the source's utterances to the target's; their ids get the source's name as a prefix."""
    prefix = f"{source.name}/"
    replayed = [replace(utterance, id=prefix + utterance.id) for utterance in source.utterances]
    utterances, ours, theirs = target.utterances + replayed, target.source, source.source
    joined: Source
    if isinstance(ours, CachedSource) and isinstance(theirs, CachedSource):
        joined = CachedSource(join_caches([("", ours.cache), (prefix, theirs.cache)]), pin=ours.pin)
    else:
        assert isinstance(ours, LiveSource) and isinstance(theirs, LiveSource)
        joined = LiveSource(utterances, workers=ours.workers, pin=ours.pin)
    return TrainingSplit(
        target.name,
        utterances,
        target.labels | {prefix + name: row for name, row in source.labels.items()},
        joined,
        num_replayed=len(replayed),
        left_out=target.left_out | {prefix + name: seconds for name, seconds in source.left_out.items()},
    )

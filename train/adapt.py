"""Data of stage 3: the source of a checkpoint, and a target split with the source replayed."""

import logging
from dataclasses import replace

from train.splits import TrainingSplit
from vox.config import Config
from vox.data.sources import CachedSource
from vox.errors import ConfigError
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


def add_replay(target: TrainingSplit, source: TrainingSplit) -> TrainingSplit:
    """Append the source's utterances to the target's; their ids get the source's name as a prefix."""
    assert isinstance(target.source, CachedSource) and isinstance(source.source, CachedSource)
    prefix = f"{source.name}/"
    replayed = [replace(utterance, id=prefix + utterance.id) for utterance in source.utterances]
    return TrainingSplit(
        target.name,
        target.utterances + replayed,
        target.labels | {prefix + name: row for name, row in source.labels.items()},
        CachedSource(
            join_caches([("", target.source.cache), (prefix, source.source.cache)]), pin=target.source.pin
        ),
        num_replayed=len(replayed),
        left_out=target.left_out | {prefix + name: seconds for name, seconds in source.left_out.items()},
    )

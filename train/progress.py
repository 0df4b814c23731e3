"""Where a run stands: what its checkpoints record beside weights and optimizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vox.errors import CheckpointError, name_first
from vox.runs.layout import STATE, Weights

# What later dev results are compared with.
OF_BEST = ("best", "best_limit", "best_checkpoint", "lowest_errors", "lowest_digest", "start_wer")


@dataclass
class Progress:
    """Where a run stands: everything the loop carries from one update to the next, as JSON."""

    epoch: int = 0  # complete epochs: trained and validated
    update: int = 0  # complete updates, over all epochs
    update_in_epoch: int = 0
    window: dict[str, float] = field(default_factory=dict)  # sums since the last metric line
    skipped_updates: int = 0  # their gradient was not finite
    skipped_in_a_row: int = 0  # of these, those since the last update that changed the weights
    unread_updates: int = 0  # none of their recordings could be read
    best: list[float] | None = None  # the lowest rank of a dev result
    lowest_errors: str = ""  # of each utterance of that result
    lowest_digest: str = ""  # of the utterances
    best_limit: float | None = None  # the highest WER of a newer `best`; None: only the lowest is
    start_wer: float | None = None  # of the weights that the run began with, if they were validated
    best_checkpoint: str | None = None  # the name of the best checkpoint's folder
    dev: dict[str, Any] | None = None  # the newest dev result
    weights: Weights = "raw"  # which weights it is of, and the checkpoint stands for
    micro_batch_utterances: int = 0  # what data.micro_batch_utterances came to; 0: not known yet
    longest_train_samples: int = 0  # the longest row trained on, in this stage or before
    cache_weights: str | None = None  # sha256 of the WavLM that made the cache that is read
    handoff: dict[str, float] | None = None
    promise: dict[str, float] | None = None  # stage 3: the source's dev WER before, and its limit (T15)
    metrics_bytes: int = 0
    train_digest: str = ""  # of the train split, and the number of updates: a run keeps both
    dev_digest: str = ""  # of the dev split; empty in runs of older versions
    total_updates: int = 0

    @classmethod
    def from_state(cls, state: Mapping[str, Any], folder: Path) -> "Progress":
        """Take up a checkpoint's state; keys that an older version did not write get their defaults.

        folder: the checkpoint. Raises CheckpointError for keys that only another version of Vox knows.
        """
        unknown = sorted(state.keys() - {each.name for each in fields(cls)})
        if unknown:
            raise CheckpointError(
                f"the checkpoint's state has keys that this Vox does not know ({name_first(unknown)})",
                where=folder / STATE,
                remedy="resume with the version of Vox that wrote it, or a newer one",
            )
        return cls(**state)

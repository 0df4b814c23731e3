"""How a run reads its splits: one place for what all of them have in common."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from train.joined import join_names, leave_out_by_length, open_dev_splits, open_splits
from train.options import TrainOptions
from train.splits import TrainingSplit, label_split
from vox.config import Config
from vox.corpus import Utterance
from vox.data.sources import Source
from vox.features.fingerprint import Fingerprint
from vox.text import Normaliser, Tokenizer

Opened = tuple[list[Utterance], Source]


@dataclass(frozen=True)
class Reader:
    """Reads a run's splits: from a cache or live, of one alphabet, with one tokenizer.

    fingerprint: of the cache; None for live audio. count_frames: of a number of samples.
    """

    options: TrainOptions
    config: Config
    fingerprint: Fingerprint | None
    count_frames: Callable[[int], int]
    pin: bool

    @cached_property
    def normaliser(self) -> Normaliser:
        """What brings the transcripts into the alphabet."""
        # Later stages have the checkpoint's alphabet, and a resumed run has its own settings.
        has_set = self.options.stage == 1 and not self.options.resume
        return Normaliser(self.config.text, has_set=has_set)

    @property
    def _how(self) -> dict[str, Any]:
        return {"workers": self.config.data.workers, "pin": self.pin, "normalise": self.normaliser}

    def open(self, splits: Sequence[str], speeds: Sequence[float] = (1.0,)) -> Opened:
        """Open splits as one; raises as `train.joined.open_splits`."""
        return open_splits(self.options, splits, self.fingerprint, speeds=speeds, **self._how)

    def open_dev(self, splits: Sequence[str]) -> Opened:
        """Open dev splits as one, live where one is not cached."""
        return open_dev_splits(self.options, splits, self.fingerprint, **self._how)

    def label(
        self, splits: Collection[str], opened: Opened, tokenizer: Tokenizer, spare_frames: int = 0
    ) -> TrainingSplit:
        """Encode the transcripts; raises as `train.splits.label_split`."""
        return label_split(
            join_names(splits),
            *opened,
            tokenizer,
            self.count_frames,
            skip_bad=self.options.skip_bad,
            spare_frames=spare_frames,
        )

    def label_train(self, splits: Collection[str], opened: Opened, tokenizer: Tokenizer) -> TrainingSplit:
        """The same for training: too short and too long utterances are left out."""
        utterances, source = opened
        data = self.config.data
        kept, left_out = leave_out_by_length(join_names(splits), utterances, data)
        labelled = self.label(splits, (kept, source), tokenizer, spare_frames=bool(data.concatenate))
        return replace(labelled, left_out=left_out)

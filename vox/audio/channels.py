"""Several channels as one: their mean, or the loudest where the mean would cancel it.

Shape suffixes: S samples, C channels.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

# Channels whose mean has less than this share of the louder one's energy cancel each other (20 dB).
CANCELLED_ENERGY = 0.01

_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Log a warning the first time that this process gives it: a run reads its recordings each epoch."""
    if message not in _warned:
        _warned.add(message)
        log.warning("%s", message)


class Energies:
    """Sums of squares over the blocks of a recording: of each channel, and of the channels' mean."""

    def __init__(self) -> None:
        self.by_channel_C: np.ndarray = np.zeros(1)
        self.of_mean = 0.0

    def mix(self, block_SC: np.ndarray) -> np.ndarray:
        """Count a block [S, C] and return the mean of its channels."""
        if block_SC.shape[1] == 1:
            return block_SC[:, 0]
        mixed_S: np.ndarray = block_SC.mean(axis=1)
        self.of_mean += float(np.square(mixed_S, dtype=np.float64).sum())
        self.by_channel_C = self.by_channel_C + np.square(block_SC, dtype=np.float64).sum(axis=0)
        return mixed_S

    def cancel(self) -> bool:
        """Say whether the mean loses nearly all that is in the channels: one is another's negative.

        The mean of unrelated channels has their summed energy over the square of their number.
        """
        return bool(self.of_mean < CANCELLED_ENERGY * self.by_channel_C.sum() / len(self.by_channel_C) ** 2)

    def pick_loudest(self, path: Path | str, warn: Callable[[str], None]) -> int:
        """Return the loudest channel, and warn that it is used alone."""
        loudest = int(self.by_channel_C.argmax())
        warn(f"{path}: its channels cancel each other; channel {loudest} (counted from 0) is used alone")
        return loudest


def channels_cancel(waveform_SC: np.ndarray) -> bool:
    """Say whether the mean of channels [S, C] loses nearly all that is in them: one is another's negative."""
    energies = Energies()
    energies.mix(waveform_SC)
    return energies.cancel()


def mix_channels(waveform_SC: np.ndarray, path: Path | str, warn: Callable[[str], None]) -> np.ndarray:
    """Return the mean of the channels, or the loudest where the mean would cancel it."""
    energies = Energies()
    mixed_S = energies.mix(waveform_SC)
    if not energies.cancel():
        return mixed_S
    return np.ascontiguousarray(waveform_SC[:, energies.pick_loudest(path, warn)])

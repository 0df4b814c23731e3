"""Audio to measure with: a user's folder, or tones and noise of the lengths that LibriSpeech has."""

from pathlib import Path

import numpy as np

from tests.conftest import make_speech
from vox.audio import read_audio
from vox.units import SAMPLE_RATE


def load_recordings(folder: Path | None, count: int, seed: int = 0) -> list[np.ndarray]:
    """Return waveforms [S] float32: `count` of a folder's FLAC and WAV files, or as many made ones.

    Made ones are 2 to 16 s, uniformly: WavLM's time depends on lengths, not on what is said.
    """
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".flac", ".wav"))
        return [read_audio(path) for path in paths[:count]]
    lengths = np.random.default_rng(seed).integers(2 * SAMPLE_RATE, 16 * SAMPLE_RATE, count)
    return [make_speech(int(length), seed + index) for index, length in enumerate(lengths)]

"""Audio to measure with: a user's folder, or tones and noise of the lengths that LibriSpeech has.

S samples, T frames, C channels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from tests.support.speech import make_speech
from vox.audio import read_audio, read_header
from vox.check.reading import write_shard
from vox.corpus import Utterance
from vox.features.cache import FeatureCache
from vox.features.shard import FEATURE_DTYPE
from vox.units import SAMPLE_RATE, samples_to_frames


def load_recordings(folder: Path | None, count: int, seed: int = 0) -> list[np.ndarray]:
    """Return waveforms [S] float32: `count` of a folder's FLAC and WAV files, or as many made ones.

    Made ones are 2 to 16 s, uniformly: WavLM's time depends on lengths, not on what is said.
    """
    if folder is not None:
        return [read_audio(path) for path in _find_audio(folder, count)]
    lengths = np.random.default_rng(seed).integers(2 * SAMPLE_RATE, 16 * SAMPLE_RATE, count)
    return [make_speech(int(length), seed + index) for index, length in enumerate(lengths)]


def make_utterances(folder: Path | None, count: int, place: Path) -> list[Utterance]:
    """Return up to `count` utterances of a folder, or as many made ones, written to `place` as FLAC."""
    if folder is None:
        for index, waveform_S in enumerate(load_recordings(None, count)):
            soundfile.write(place / f"{index:06d}.flac", waveform_S, SAMPLE_RATE)
        folder = place
    return [
        Utterance(str(number), path, "", "", read_header(path).num_samples)
        for number, path in enumerate(_find_audio(folder, count))
    ]


def write_random_cache(utterances: Sequence[Utterance], feature_dim: int, place: Path) -> FeatureCache:
    """Write a shard of random features, as long as the utterances' own, and open it.

    The utterances are called by their positions, as `make_utterances` calls them.
    """
    generator = np.random.default_rng(0)
    num_samples = [utterance.num_samples or 0 for utterance in utterances]
    features = [
        generator.standard_normal((samples_to_frames(length), feature_dim), np.float32).astype(FEATURE_DTYPE)
        for length in num_samples
    ]
    return FeatureCache(place, [write_shard(place / "shard-00000.h5", features, num_samples=num_samples)])


def _find_audio(folder: Path, count: int) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".flac", ".wav"))
    return paths[:count]

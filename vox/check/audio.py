"""Made audio to measure with: no speech, but with pitch, onsets and noise, so that no frame is like another.

S samples.
"""

from collections.abc import Sequence

import numpy as np

from vox.data.batch import AudioBatch, make_audio_batch
from vox.units import SAMPLE_RATE, seconds_to_samples

NUM_HARMONICS = 12


def make_voice(seconds: float, seed: int = 0) -> np.ndarray:
    """Make [S] float32: a gliding tone with harmonics, broken into syllables, over faint noise."""
    generator = np.random.default_rng(seed)
    time_S = np.arange(seconds_to_samples(seconds)) / SAMPLE_RATE
    pitch_S = generator.uniform(90, 200) * (
        1 + 0.2 * np.sin(2 * np.pi * generator.uniform(0.2, 0.6) * time_S)
    )
    phase_S = 2 * np.pi * np.cumsum(pitch_S) / SAMPLE_RATE
    weights = generator.uniform(0.2, 1.0, NUM_HARMONICS) / np.arange(1, NUM_HARMONICS + 1)
    tone_S = sum(weight * np.sin((index + 1) * phase_S) for index, weight in enumerate(weights))
    loudness_S = np.sin(np.pi * generator.uniform(2, 5) * time_S) ** 2
    noise_S = 0.01 * generator.standard_normal(len(time_S))
    return (0.2 * loudness_S * tone_S + noise_S).astype(np.float32)


def make_voices(seconds: Sequence[float], seed: int = 0) -> AudioBatch:
    """Make a padded batch of voices, each different, named by their positions."""
    waveforms = [make_voice(length, seed + index) for index, length in enumerate(seconds)]
    return make_audio_batch([str(index) for index in range(len(seconds))], waveforms)


def make_extremes(seconds: float) -> dict[str, np.ndarray]:
    """Make recordings that break careless arithmetic: [S] float32 each, by what they are."""
    voice_S = make_voice(seconds)
    click_S = np.zeros_like(voice_S)
    click_S[len(click_S) // 2] = 1.0
    return {
        "loud": (voice_S / np.abs(voice_S).max()).astype(np.float32),
        "quiet": (voice_S * 1e-4).astype(np.float32),
        "silent": np.zeros_like(voice_S),
        "clipped": np.sign(voice_S).astype(np.float32),
        "click": click_S,
        "offset": (voice_S + 0.5).astype(np.float32),
    }

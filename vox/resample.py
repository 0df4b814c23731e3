"""Samples at other rates and speeds: exact lengths, torchaudio's windowed sinc.

Shape suffixes: S samples, N output samples, K kernel values.
"""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from vox.errors import ConfigError
from vox.units import SAMPLE_RATE

# torchaudio tabulates its resampling kernel for a ratio in lowest terms: above this many values (32 MB),
# which no usual rate reaches, each is computed where it is needed instead.
MAX_KERNEL_VALUES = 2**22
CHUNK_VALUES = 2**20  # of the kernel computed at once: 8 MB

BLOCK_SAMPLES = 2**22  # resampled at once: 87 s at 48 kHz

MIN_PADDING = 64  # input samples: more than one at any output rate

# torchaudio's own: zero crossings of the sinc to each side, and the cut-off as a share of the lower rate's.
SINC_ZERO_CROSSINGS = 6
SINC_ROLLOFF = 0.99

# Speeds are exact: 0.9 is 9/10. This many decimals keep their ratios small integers.
SPEED_DECIMALS = 3
MIN_SPEED, MAX_SPEED = 0.5, 2.0


def resampled_length(num_samples: int, from_rate: int, to_rate: int = SAMPLE_RATE) -> int:
    """Count the samples at one rate for a number of samples at another: exact, rounded up."""
    return -(-num_samples * to_rate // from_rate)


def resampling_rates(sample_rate: int, speed: float = 1.0) -> tuple[int, int]:
    """Return the two rates between which resampling plays a recording at a speed, at 16 kHz.

    At speed 1 they are the recording's own and 16 kHz; otherwise integers whose ratio is exactly
    `sample_rate * speed / 16000`. Raises ConfigError for a speed that `check_speed` refuses.
    """
    check_speed(speed)
    if speed == 1:
        return sample_rate, SAMPLE_RATE
    ratio = Fraction(sample_rate, SAMPLE_RATE) * Fraction(format_speed(speed))
    return ratio.numerator, ratio.denominator


def check_speed(speed: float) -> None:
    """Raise ConfigError unless a speed is from 0.5 to 2 and has three decimals at most."""
    if not MIN_SPEED <= speed <= MAX_SPEED or round(speed, SPEED_DECIMALS) != speed:
        raise ConfigError(
            "a speed that audio cannot be played at",
            where=speed,
            remedy=f"choose from {MIN_SPEED:g} to {MAX_SPEED:g}, {SPEED_DECIMALS} decimals at most",
        )


def format_speed(speed: float) -> str:
    """Write a speed as names and fingerprints have it: 0.9, 1.0."""
    return str(float(speed))


def resample(waveform_S: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample float32 [S] to [N] at another rate, N as `resampled_length` counts it."""
    if from_rate == to_rate:
        return waveform_S
    blocks = list(resample_blocks(waveform_S, from_rate, to_rate))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def resample_blocks(waveform_S: np.ndarray, from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    """Yield the result of `resample` in parts, float32, with memory for one part only.

    Each part is computed from BLOCK_SAMPLES of the input and what the filter reaches on both sides.
    """
    divisor = math.gcd(from_rate, to_rate)
    # An output sample lies exactly on every `period` input samples, so blocks of whole periods fit together.
    period, outputs = from_rate // divisor, to_rate // divisor
    reach = math.ceil(SINC_ZERO_CROSSINGS * period / (min(period, outputs) * SINC_ROLLOFF)) + 1
    margin = -(-reach // period) * period
    step = -(-BLOCK_SAMPLES // period) * period
    for start in range(0, max(1, len(waveform_S)), step):
        end = min(start + step, len(waveform_S))
        first = max(0, start - margin)
        block_N = _resample_at_once(waveform_S[first : end + margin], from_rate, to_rate)
        num_before = (start - first) // period * outputs
        num_out = resampled_length(end - start, from_rate, to_rate)
        yield block_N[num_before : num_before + num_out]


def _resample_at_once(waveform_S: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    divisor = math.gcd(from_rate, to_rate)
    if (from_rate // divisor) * (to_rate // divisor) > MAX_KERNEL_VALUES:
        return interpolate(waveform_S, from_rate, to_rate)
    import torch  # a second or more, and needed only where the rate differs
    import torchaudio

    # torchaudio cuts its result to a length that it rounds up in float32: one sample too few from a few
    # seconds on. Zeros appended (what it pads with itself) give it room; the cut here is exact.
    padded_S = np.pad(waveform_S, (0, max(from_rate, MIN_PADDING)))
    resampled_S = torchaudio.functional.resample(torch.from_numpy(padded_S), from_rate, to_rate).numpy()
    return np.ascontiguousarray(resampled_S[: resampled_length(len(waveform_S), from_rate, to_rate)])


def interpolate(waveform_S: np.ndarray, from_rate: int, to_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Resample float32 [S] from any rate to another, in time and memory that the ratio does not change.

    The windowed sinc of torchaudio's `resample` (its default width and roll-off), evaluated where each
    output sample lies instead of tabulated for every fraction of a sample that can occur: 44,101 Hz has
    16,000 of them, a table of 5.6 GB.
    """
    bandwidth_hz = min(from_rate, to_rate) * SINC_ROLLOFF
    reach = math.ceil(SINC_ZERO_CROSSINGS * from_rate / bandwidth_hz)  # input samples to each side
    offsets_K = np.arange(-reach, reach + 1)
    padded_S = np.pad(waveform_S, (reach, reach + 1))
    num_out = resampled_length(len(waveform_S), from_rate, to_rate)
    resampled_N = np.empty(num_out, np.float32)
    step = max(1, CHUNK_VALUES // len(offsets_K))
    for start in range(0, num_out, step):
        # In integers, so that hours from the start a sample still lies where it should.
        numerators_N = np.arange(start, min(start + step, num_out), dtype=np.int64) * from_rate
        positions_N, remainders_N = np.divmod(numerators_N, to_rate)
        distances_NK = offsets_K - remainders_N[:, None] / to_rate
        phases_NK = np.clip(
            distances_NK * (bandwidth_hz / from_rate), -SINC_ZERO_CROSSINGS, SINC_ZERO_CROSSINGS
        )
        window_NK = np.cos(phases_NK * (np.pi / 2 / SINC_ZERO_CROSSINGS)) ** 2
        kernel_NK = np.sinc(phases_NK) * window_NK * (bandwidth_hz / from_rate)
        inputs_NK = padded_S[positions_N[:, None] + (offsets_K + reach)]
        resampled_N[start : start + step] = (inputs_NK * kernel_NK).sum(axis=1)
    return resampled_N

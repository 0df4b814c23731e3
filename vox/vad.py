"""Where somebody speaks in a recording, as Silero VAD finds it (an extra, MIT licence).

The recogniser hears the speech alone then, so that it has no noise or pause to write words for. What it gains
and what it costs is in docs/log.md, "voice activity detection".

S samples.
"""

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from vox.errors import ConfigError
from vox.progress import ProgressBar
from vox.units import HOP_SAMPLES, SAMPLE_RATE, samples_to_frames, samples_to_seconds, seconds_to_samples

if TYPE_CHECKING:
    from torch import Tensor

MIN_PAUSE_SECONDS = 1.0  # shorter ones are heard
MARGIN_SECONDS = 0.2  # of sound around speech that is heard with it
SHORT_SECONDS = 60.0  # a shorter recording needs no progress bar


@dataclass(frozen=True)
class Span:
    """Frames [first, end) of a recording, to be heard or not."""

    first: int
    end: int
    is_speech: bool = True


def check_installed() -> None:
    """Raise ConfigError if Silero VAD is not there; import nothing, which takes seconds."""
    if importlib.util.find_spec("silero_vad") is None:
        raise ConfigError(
            "--vad needs silero-vad, which is not installed",
            remedy="install it: pip install 'vox-asr[vad]'",
        )


class SpeechDetector:
    """Silero VAD, on the CPU."""

    def __init__(self) -> None:
        """Load it; raise ConfigError where it is not installed."""
        check_installed()
        with _one_thread():  # importing it sets 1, for good
            import silero_vad
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit, in which it is published
            self._model = silero_vad.load_silero_vad()
        self._find_speech = silero_vad.get_speech_timestamps

    @property
    def identity(self) -> str:
        """What its answers depend on beside the recording."""
        return f"silero-vad {version('silero-vad')}, {MIN_PAUSE_SECONDS}, {MARGIN_SECONDS}"

    def find_spans(self, waveform_S: "Tensor") -> list[Span]:
        """Divide a recording into speech and pauses: float32 [S], 16 kHz, on the CPU, a frame at least."""
        seconds = samples_to_seconds(len(waveform_S))
        with ProgressBar(seconds, "finding speech", is_hidden=seconds < SHORT_SECONDS) as progress:
            percent = 0.0

            def show(now: float) -> None:
                nonlocal percent
                progress.add(seconds * (min(100.0, now) - percent) / 100)
                percent = min(100.0, now)

            with _one_thread():
                found = self._find_speech(
                    waveform_S,
                    self._model,
                    sampling_rate=SAMPLE_RATE,
                    min_silence_duration_ms=int(1000 * MIN_PAUSE_SECONDS),
                    speech_pad_ms=int(1000 * MARGIN_SECONDS),
                    progress_tracking_callback=show,
                )
        return divide([(each["start"], each["end"]) for each in found], len(waveform_S))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread: the model is so small that two take a hundred times as long."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def divide(speech: Sequence[tuple[int, int]], num_samples: int) -> list[Span]:
    """Return spans that hold every frame of a recording once, in order.

    speech: where somebody speaks, [start, end) in samples, in order. A pause that is shorter than
    MIN_PAUSE_SECONDS at the recording's beginning or end is heard too.
    """
    num_frames, pause = samples_to_frames(num_samples), seconds_to_samples(MIN_PAUSE_SECONDS)
    spans: list[Span] = []
    position = 0
    for start, end in speech:
        first = 0 if start < pause else max(position, start // HOP_SAMPLES)
        last = num_frames if num_samples - end < pause else min(num_frames, -(-end // HOP_SAMPLES))
        if position < first < last:
            spans.append(Span(position, first, is_speech=False))
        if max(position, first) < last:
            spans.append(Span(max(position, first), last))
            position = last
    if position < num_frames:
        spans.append(Span(position, num_frames, is_speech=False))
    return spans

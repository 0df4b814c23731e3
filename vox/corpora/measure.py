"""Measure one utterance's samples. Letters: S samples, C channels."""

from dataclasses import dataclass

import numpy as np

from vox.audio import channels_cancel, read_channels
from vox.corpus import Utterance
from vox.decode.ctc import min_ctc_frames
from vox.errors import AudioError
from vox.resample import resampled_length
from vox.units import samples_to_frames, samples_to_seconds

CLIPPING_LEVEL = 0.99  # of full scale
CLIPPING_RUN = 3  # consecutive samples of one value: a peak that only touches the limit is not clipped


@dataclass(frozen=True)
class Measured:
    """An utterance and the measurements of its samples at the file's own rate.

    peak, offset: fractions of full scale; the offset is the mean of the channel whose mean is farthest from
    0. rms: of the loudest channel. clipped: fraction of clipped samples. cancels: the mean of the channels
    loses nearly all energy.
    """

    utterance: Utterance
    seconds: float
    sample_rate: int
    channels: int
    peak: float
    rms: float
    offset: float
    clipped: float
    cancels: bool

    @property
    def words_per_second(self) -> float:
        """The speaking rate, if the text is complete."""
        return len(self.utterance.text.split()) / self.seconds

    @property
    def characters_per_second(self) -> float:
        """The speaking rate of a script without words."""
        return len(self.utterance.text) / self.seconds

    @property
    def is_too_long_for_ctc(self) -> bool:
        """Whether the letters do not fit into WavLM's frames, even at one letter a frame.

        Pieces of several letters need fewer frames: training may take such a text, but no speech is so fast.
        """
        letters = [ord(letter) for letter in self.utterance.text if letter != " "]
        return min_ctc_frames(letters) > samples_to_frames(self.utterance.num_samples or 0)


def measure(utterance: Utterance) -> Measured:
    """Decode and measure an utterance. Raises as `read_audio` does."""
    waveform_SC, rate = read_channels(utterance.audio_path, utterance.segment)
    if not np.isfinite(waveform_SC).all():
        raise AudioError("samples that are NaN or infinite", where=utterance.audio_path)
    energy_C = np.square(waveform_SC, dtype=np.float64).mean(axis=0)
    return Measured(
        utterance,
        samples_to_seconds(resampled_length(len(waveform_SC), rate)),
        rate,
        waveform_SC.shape[1],
        float(np.abs(waveform_SC).max()),
        float(np.sqrt(energy_C.max())),
        float(max(waveform_SC.mean(axis=0, dtype=np.float64), key=abs)),
        float(max(_clipped_share(waveform_SC[:, channel]) for channel in range(waveform_SC.shape[1]))),
        channels_cancel(waveform_SC),
    )


def _clipped_share(samples_S: np.ndarray) -> float:
    """Return the fraction of samples in runs of one value near full scale."""
    changes = np.flatnonzero(np.diff(samples_S)) + 1
    starts = np.concatenate([[0], changes])
    lengths = np.diff(np.concatenate([starts, [len(samples_S)]]))
    is_clipped = (np.abs(samples_S[starts]) >= CLIPPING_LEVEL) & (lengths >= CLIPPING_RUN)
    return lengths[is_clipped].sum() / len(samples_S)

"""From waveforms to text with a trained recogniser.

Shape letters: B batch, S samples.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from vox.audio import read_audio
from vox.checkpoint import Checkpoint
from vox.decode import DECODERS, Hypothesis
from vox.device import autocast, pick_precision
from vox.errors import AudioError, ConfigError, name_first
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser
from vox.units import samples_to_frames, samples_to_seconds

log = logging.getLogger(__name__)

# Training utterances are shorter than this, and the cost of WavLM's attention grows with the square.
LONG_SECONDS = 60

Decoder = Callable[[Recogniser, Encoded], list[Hypothesis]]


def pick_decoder(name: str) -> Decoder:
    """Return the decoder of that name; raise ConfigError naming those that there are."""
    if name not in DECODERS:
        raise ConfigError("unknown decoder", where=name, remedy=f"use {' or '.join(sorted(DECODERS))}")
    return DECODERS[name]


def device_of(recogniser: Recogniser) -> torch.device:
    """Return the device that a recogniser's weights are on."""
    return next(recogniser.parameters()).device


def encode_audio(recogniser: Recogniser, waveforms_BS: torch.Tensor, num_samples_B: torch.Tensor) -> Encoded:
    """Run WavLM and the encoder over waveforms at 16 kHz."""
    return recogniser.encode(*recogniser.extractor(waveforms_BS, num_samples_B))


def transcribe_files(
    loaded: Checkpoint, paths: Iterable[Path], decoder: str = "attention"
) -> Iterator[tuple[Path, str]]:
    """Yield each recording's path and text, in order, as soon as it is known.

    A recording that cannot be read does not stop the others: it is logged, and when all are done an
    AudioError counts them. Raises ConfigError for an unknown decoder.
    """
    decode = pick_decoder(decoder)
    failures: list[AudioError] = []
    num_files = num_long = 0
    for path in paths:
        num_files += 1
        try:
            waveform_S = _read_recording(path)
        except AudioError as error:
            log.warning("%s", error)
            failures.append(error)
            continue
        seconds = samples_to_seconds(len(waveform_S))
        num_long += seconds > LONG_SECONDS
        if seconds > LONG_SECONDS and num_long == 1:
            log.warning(
                "%s is %.0f s long: the recogniser was trained on short utterances, and long ones are slow "
                "and less accurate; cut recordings at pauses",
                path,
                seconds,
            )
        hypothesis = _recognise(loaded.recogniser, waveform_S, decode)
        if hypothesis.is_truncated:
            log.warning("%s: the text was cut off at the most labels for its length", path)
        yield path, loaded.tokenizer.decode(hypothesis.ids)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise AudioError(
            f"{len(failures)} of {num_files} recordings could not be transcribed",
            where=name_first([str(error) for error in failures], limit=1),
            remedy="the others were",
        )


def _read_recording(path: Path) -> torch.Tensor:
    waveform_S = torch.from_numpy(read_audio(path))
    if samples_to_frames(len(waveform_S)) == 0:
        raise AudioError(
            f"recording of {len(waveform_S)} samples is shorter than one frame",
            where=path,
            remedy="give at least 25 ms",
        )
    return waveform_S


@torch.inference_mode()
def _recognise(recogniser: Recogniser, waveform_S: torch.Tensor, decode: Decoder) -> Hypothesis:
    device = device_of(recogniser)
    waveforms_BS = waveform_S[None].to(device)
    num_samples_B = torch.tensor([len(waveform_S)], device=device)
    with autocast(device, pick_precision("auto", device)):
        return decode(recogniser, encode_audio(recogniser, waveforms_BS, num_samples_B))[0]

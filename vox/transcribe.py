"""From waveforms to text with a trained recogniser.

Shape letters: B batch, S samples.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from vox.audio import read_audio
from vox.checkpoint import Checkpoint
from vox.decode import Hypothesis, Search, SearchOptions, make_search, preferred_decoder
from vox.decode.ctc import decode_ctc
from vox.device import autocast, pick_precision
from vox.errors import AudioError, name_first
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser
from vox.units import samples_to_frames, samples_to_seconds

log = logging.getLogger(__name__)

# Two decoders whose texts differ in length by more than this do not agree on what was said.
MAX_LENGTH_DIFFERENCE = 0.25  # of the longer one
MIN_LENGTH_DIFFERENCE = 5  # labels: short texts differ by chance


def device_of(recogniser: Recogniser) -> torch.device:
    """Return the device that a recogniser's weights are on."""
    return next(recogniser.parameters()).device


def encode_audio(recogniser: Recogniser, waveforms_BS: torch.Tensor, num_samples_B: torch.Tensor) -> Encoded:
    """Run WavLM and the encoder over waveforms at 16 kHz."""
    return recogniser.encode(*recogniser.extractor(waveforms_BS, num_samples_B))


def transcribe_files(
    loaded: Checkpoint,
    paths: Iterable[Path],
    decoder: str | None = None,
    options: SearchOptions | None = None,
) -> Iterator[tuple[Path, str]]:
    """Yield each recording's path and text, in order, as soon as it is known.

    decoder: None for the greedy one with the lower dev WER when the checkpoint was saved. options: None for
    the defaults.

    Warns of a recording longer than any that the model was trained on, and of a text by attention that is
    much longer or shorter than CTC's (a text by CTC is compared with nothing). A recording that cannot be
    read does not stop the others: it is logged, and when all are done an AudioError counts them. Raises
    ConfigError for an unknown decoder.
    """
    name = decoder or preferred_decoder(loaded.state)
    search = None if name == "ctc" else make_search(name, options or SearchOptions(), loaded.tokenizer)
    longest_seconds = samples_to_seconds(loaded.state.get("longest_train_samples", 0))
    failures: list[AudioError] = []
    num_files = 0
    for path in paths:
        num_files += 1
        try:
            waveform_S = _read_recording(path)
        except AudioError as error:
            log.warning("%s", error)
            failures.append(error)
            continue
        seconds = samples_to_seconds(len(waveform_S))
        if 0 < longest_seconds < seconds:
            log.warning(
                "%s is %.1f s long, and no recording of the training was longer than %.1f s: words may be "
                "missing; cut it at pauses",
                path,
                seconds,
                longest_seconds,
            )
        hypothesis, ctc = _recognise(loaded.recogniser, waveform_S, search)
        if hypothesis.is_truncated:
            log.warning("%s: the text was cut off at the most labels for its length", path)
        elif is_far_apart(len(hypothesis.ids), len(ctc.ids)):
            log.warning(
                "%s: the %s decoder found %d labels and CTC %d: words may be missing or repeated; compare "
                "with --decoder ctc",
                path,
                name,
                len(hypothesis.ids),
                len(ctc.ids),
            )
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


def is_far_apart(num_labels: int, num_ctc_labels: int) -> bool:
    """Say whether two decoders' texts differ so much in length that one of them must be wrong."""
    longer, difference = max(num_labels, num_ctc_labels), abs(num_labels - num_ctc_labels)
    if longer > 0 and min(num_labels, num_ctc_labels) == 0:
        return True
    return difference >= MIN_LENGTH_DIFFERENCE and difference > MAX_LENGTH_DIFFERENCE * longer


@torch.inference_mode()
def _recognise(
    recogniser: Recogniser, waveform_S: torch.Tensor, search: Search | None
) -> tuple[Hypothesis, Hypothesis]:
    """Return what the search found (None: greedy CTC), and what greedy CTC found, at next to no cost."""
    device = device_of(recogniser)
    waveforms_BS = waveform_S[None].to(device)
    num_samples_B = torch.tensor([len(waveform_S)], device=device)
    with autocast(device, pick_precision("auto", device)):
        encoded = encode_audio(recogniser, waveforms_BS, num_samples_B)
        (ctc,) = decode_ctc(recogniser, encoded)
        return ctc if search is None else search(recogniser, encoded)[0][0], ctc

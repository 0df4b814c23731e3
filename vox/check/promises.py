"""The promises about features, measured on this device: T1, T2, T4, T10, and that all numbers are finite.

B batch, S samples, T frames, C channels, D model width.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vox.check.audio import make_extremes, make_voices
from vox.check.results import Promise
from vox.check.subject import CheckSubject
from vox.data.batch import AudioBatch, make_audio_batch
from vox.device import autocast
from vox.units import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE
from vox.wavlm.model import WavLM
from vox.wavlm.stem import NORMALISE_EPS

FEATURES_BOUND = 1e-5  # relative L2: T1, T10
PRECISION_BOUND = 1e-3  # relative L2: T2
NUM_LENGTHS = 40  # recordings whose frames are counted


def relative_l2(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected, in float64 on the CPU."""
    expected = expected.detach().cpu().double()
    return float((found.detach().cpu().double() - expected).norm() / expected.norm())


def check_reference(subject: CheckSubject) -> Iterator[Promise]:
    """Compare every hidden state with Hugging Face's WavLM, which runs on the CPU."""
    wavlm = subject.extractor.wavlm
    batch = make_voices([max(subject.amounts.clip_seconds)])
    waveform_1S = batch.waveforms_BS
    if wavlm.do_normalize:  # Hugging Face has this in a feature extractor beside its model
        waveform_1S = (waveform_1S - waveform_1S.mean()) / (
            waveform_1S.var(correction=0) + NORMALISE_EPS
        ).sqrt()
    with torch.inference_mode():
        expected = subject.reference(waveform_1S, output_hidden_states=True).hidden_states
        found, _ = wavlm(*_on_device(batch, subject.device))
    error = max(relative_l2(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    yield Promise(
        "T10", f"all {len(expected)} hidden states against Hugging Face's on the CPU", error, FEATURES_BOUND
    )


def check_batching(subject: CheckSubject) -> Iterator[Promise]:
    """Compare every hidden state of each utterance alone with the same in a padded batch."""
    wavlm, batch = subject.extractor.wavlm, make_voices(subject.amounts.clip_seconds)
    with torch.inference_mode():
        together = _valid_states(wavlm, batch, subject.device)
        alone = [_valid_states(wavlm, part, subject.device)[0] for part in split_batch(batch)]
    error = max(
        relative_l2(batched_TD, lone_TD)
        for batched, lone in zip(together, alone, strict=True)
        for batched_TD, lone_TD in zip(batched, lone, strict=True)
    )
    yield Promise("T1", f"features alone and among {len(alone)}, padded", error, FEATURES_BOUND)


def check_precision(subject: CheckSubject) -> Iterator[Promise]:
    """Compare live features in mixed precision with float32: a run in bf16 must hear what the cache holds."""
    exact_BTC = compute_features(subject, torch.float32)
    dtypes = [torch.bfloat16] if subject.device.type == "cpu" else [torch.bfloat16, torch.float16]
    for dtype in dtypes:
        error = relative_l2(compute_features(subject, dtype), exact_BTC)
        name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
        yield Promise("T2", f"live features of {name} training against float32", error, PRECISION_BOUND)


def compute_features(subject: CheckSubject, dtype: torch.dtype) -> Tensor:
    """Return features [B, T, C] of the promises' utterances, computed live in a precision."""
    batch = make_voices(subject.amounts.clip_seconds)
    with torch.inference_mode(), autocast(subject.device, dtype):
        features_BTC: Tensor = subject.extractor(*_on_device(batch, subject.device))[0]
        return features_BTC


def check_lengths(subject: CheckSubject) -> Iterator[Promise]:
    """Count frames of many lengths by convolutions on the device, and by the one function for it."""
    wavlm = subject.extractor.wavlm
    lengths = RECEPTIVE_FIELD_SAMPLES + np.random.default_rng(0).integers(0, SAMPLE_RATE, NUM_LENGTHS)
    counted = wavlm.num_frames(torch.from_numpy(lengths).to(subject.device)).tolist()
    wrong = sum(
        _count_by_convolving(wavlm, length, subject.device) != count
        for length, count in zip(lengths.tolist(), counted, strict=True)
    )
    yield Promise("T4", f"frame counts of {NUM_LENGTHS} lengths that are wrong", wrong, 0)


def check_extremes(subject: CheckSubject) -> Iterator[Promise]:
    """Count what is not finite in the features of extreme audio, in the precision of training."""
    extremes = make_extremes(min(2.0, max(subject.amounts.clip_seconds)))
    batch = make_audio_batch(list(extremes), list(extremes.values()))
    with torch.inference_mode(), autocast(subject.device, subject.precision):
        features_BTC, _ = subject.extractor(*_on_device(batch, subject.device))
    rounded_BTC = features_BTC.to(torch.float16)  # as a cache keeps them
    bad = {name: int((~row_TC.isfinite()).sum()) for name, row_TC in zip(extremes, rounded_BTC, strict=True)}
    kinds = ", ".join(name for name, count in bad.items() if count) or ", ".join(bad)
    yield Promise("", f"not finite: {kinds}", sum(bad.values()), 0)


def split_batch(batch: AudioBatch) -> Iterable[AudioBatch]:
    """Yield each utterance of a batch alone, without padding."""
    for row, length in enumerate(batch.num_samples_B.tolist()):
        rows = slice(row, row + 1)
        yield AudioBatch(batch.ids[rows], batch.waveforms_BS[rows, :length], batch.num_samples_B[rows])


def _on_device(batch: AudioBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    moved = batch.to(device)
    return moved.waveforms_BS, moved.num_samples_B


def _valid_states(wavlm: WavLM, batch: AudioBatch, device: torch.device) -> list[list[Tensor]]:
    """Return each utterance's hidden states [T, D], valid frames only."""
    states, num_frames_B = wavlm(*_on_device(batch, device))
    return [
        [state_BTD[row, :num_frames] for state_BTD in states]
        for row, num_frames in enumerate(num_frames_B.tolist())
    ]


def _count_by_convolving(wavlm: WavLM, length: int, device: torch.device) -> int:
    signal_11S = torch.zeros(1, 1, length, device=device)
    for kernel, stride in zip(wavlm.config.conv_kernel, wavlm.config.conv_stride, strict=True):
        signal_11S = F.conv1d(signal_11S, torch.ones(1, 1, kernel, device=device), stride=stride)
    return signal_11S.shape[2]

"""From a batch to what the encoder heard: one way for training, validation, evaluation and transcription.

B batch, T frames, C channels.
"""

from collections.abc import Callable

import torch

from vox.data.batch import AudioBatch, FeatureBatch
from vox.device import at_least_float32
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser

Batch = AudioBatch | FeatureBatch


def hear(
    recogniser: Recogniser,
    batch: Batch,
    cached_layer: int | None = None,
    *,
    mask: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> Encoded:
    """Encode a batch that is on the recogniser's device.

    cached_layer: see `features_of`. mask: changes features [B, T, C], given their frame counts [B].
    """
    features_BTC, num_frames_B = features_of(recogniser, batch, cached_layer)
    if mask is not None:
        features_BTC = mask(features_BTC, num_frames_B)
    return recogniser.encode(features_BTC, num_frames_B)


def features_of(
    recogniser: Recogniser, batch: Batch, cached_layer: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float features [B, T, C] and their frame counts [B], from the cache or from live audio.

    cached_layer: where the cache holds the output of one WavLM layer (counted from 1), that layer; those
    above it are computed.
    """
    if isinstance(batch, AudioBatch):
        features_BTC, num_frames_B = recogniser.extractor(batch.waveforms_BS, batch.num_samples_B)
    elif cached_layer is None:
        features_BTC, num_frames_B = at_least_float32(batch.features_BTC), batch.num_frames_B
    else:
        features_BTC, num_frames_B = recogniser.extractor.continue_from(
            at_least_float32(batch.features_BTC), batch.num_frames_B, cached_layer
        )
    return features_BTC, num_frames_B


def count_frames(recogniser: Recogniser, cpu_batch: Batch) -> torch.Tensor:
    """Return each utterance's frames, int64 [B], on the host."""
    if isinstance(cpu_batch, FeatureBatch):
        return cpu_batch.num_frames_B
    num_frames_B: torch.Tensor = recogniser.extractor.wavlm.num_frames(cpu_batch.num_samples_B)
    return num_frames_B


def device_of(recogniser: Recogniser) -> torch.device:
    """Return the device that a recogniser's weights are on."""
    return next(recogniser.parameters()).device

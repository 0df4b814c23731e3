"""SpecAugment on features: time and channel masks, drawn on the device of the features.

Park et al. 2019 (masks), Park et al. 2020 (time masks in proportion to length). Shape letters: B batch,
T frames, C channels, N masks.
"""

import torch

from vox.config import AugmentConfig


def mask_features(
    features_BTC: torch.Tensor, num_frames_B: torch.Tensor, config: AugmentConfig
) -> torch.Tensor:
    """Replace masked frames and channels by the utterance's own mean, channel by channel.

    features_BTC: float, zeros on padded frames; they stay zeros. Draws from torch's global generator.
    """
    if config.time_masks == 0 and config.channel_masks == 0:
        return features_BTC
    num_channels = features_BTC.shape[2]
    is_valid_BT = _positions(features_BTC, 1) < num_frames_B[:, None]
    mean_BC = features_BTC.sum(1) / num_frames_B[:, None]
    channels_B = torch.full_like(num_frames_B, num_channels)
    is_masked_BT = _draw_spans(
        num_frames_B, features_BTC.shape[1], config.time_masks, config.time_mask_fraction
    )
    is_masked_BC = _draw_spans(channels_B, num_channels, config.channel_masks, config.channel_mask_fraction)
    is_masked_BTC = (is_masked_BT[:, :, None] | is_masked_BC[:, None, :]) & is_valid_BT[:, :, None]
    return torch.where(is_masked_BTC, mean_BC[:, None, :].to(features_BTC.dtype), features_BTC)


def _draw_spans(lengths_B: torch.Tensor, size: int, num_masks: int, longest: float) -> torch.Tensor:
    """Draw masks of 0 to `longest` times the length, anywhere inside it; returns bool [B, size]."""
    shape = (len(lengths_B), num_masks)
    width_BN = (torch.rand(shape, device=lengths_B.device) * (longest * lengths_B[:, None] + 1)).floor()
    start_BN = (torch.rand(shape, device=lengths_B.device) * (lengths_B[:, None] - width_BN + 1)).floor()
    positions = torch.arange(size, device=lengths_B.device)
    is_inside_BNS = (positions >= start_BN[:, :, None]) & (positions < (start_BN + width_BN)[:, :, None])
    return is_inside_BNS.any(1)


def _positions(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    return torch.arange(tensor.shape[dimension], device=tensor.device)

"""SpecAugment on features."""

import torch

from train.update.augment import mask_features
from vox.config import AugmentConfig


def make_features() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    num_frames_B = torch.tensor([200, 60])
    features_BTC = torch.randn(2, 200, 40) + 3
    features_BTC[1, 60:] = 0
    return features_BTC, num_frames_B


def test_masks_stay_within_length_and_share():
    features_BTC, num_frames_B = make_features()
    config = AugmentConfig(time_masks=3, time_mask_fraction=0.1, channel_masks=0)
    widest = [0, 0]
    for _ in range(50):
        masked_BTC = mask_features(features_BTC, num_frames_B, config)
        is_changed_BT = (masked_BTC != features_BTC).any(2)
        assert not is_changed_BT[1, 60:].any()
        for row, num_frames in enumerate((200, 60)):
            widest[row] = max(widest[row], int(is_changed_BT[row].sum()))
            assert is_changed_BT[row].sum() <= 3 * 0.1 * num_frames
    assert widest[0] > 20
    assert widest[1] > 6


def test_masked_values_are_the_utterance_mean():
    features_BTC, num_frames_B = make_features()
    config = AugmentConfig(time_masks=4, channel_masks=3)
    masked_BTC = mask_features(features_BTC, num_frames_B, config)
    is_changed_BTC = masked_BTC != features_BTC
    assert is_changed_BTC[:, :, :].any(1).sum() > is_changed_BTC.all(1).sum() > 0  # both kinds of mask
    for row, num_frames in enumerate((200, 60)):
        mean_C = features_BTC[row, :num_frames].mean(0).expand(num_frames, -1)
        changed = is_changed_BTC[row, :num_frames]
        torch.testing.assert_close(masked_BTC[row, :num_frames][changed], mean_C[changed])


def test_no_masks_is_the_identity():
    features_BTC, num_frames_B = make_features()
    assert (
        mask_features(features_BTC, num_frames_B, AugmentConfig(time_masks=0, channel_masks=0))
        is features_BTC
    )

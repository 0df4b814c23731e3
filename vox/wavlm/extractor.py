"""From waveforms to features: the one module behind cached features and live ones.

B batch, S samples, T frames, C channels. Masks: True = real frame.
"""

from torch import Tensor, nn

from vox.wavlm.mix import LayerMix
from vox.wavlm.model import WavLM
from vox.wavlm.stem import lengths_to_mask


class FeatureExtractor(nn.Module):
    """WavLM and the mix of its layers."""

    def __init__(self, wavlm: WavLM, mix: LayerMix) -> None:
        super().__init__()
        self.wavlm = wavlm
        self.mix = mix

    def forward(self, waveforms_BS: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, T, C], float32, zero on padded frames, and num_frames [B], int64.

        Waveforms are 16 kHz float32 [B, S], `num_samples_B` int64; padding may hold anything. Layers that the
        mix does not need are not kept, and those above the last that it needs are not computed.
        """
        layers = self.mix.needed_layers()
        layer_outputs, num_frames_B = self.wavlm(waveforms_BS, num_samples_B, [i + 1 for i in layers])
        features_BTC = self.mix(layer_outputs, layers)
        is_valid_BT = lengths_to_mask(num_frames_B, features_BTC.shape[1])
        return features_BTC.masked_fill(~is_valid_BT[..., None], 0.0), num_frames_B

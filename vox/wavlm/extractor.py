"""From waveforms to features: the one module behind cached features and live ones.

B batch, S samples, T frames, C channels.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vox.errors import WavLMError
from vox.masks import lengths_to_mask, zero_padding
from vox.units import SAMPLE_RATE, samples_to_frames
from vox.wavlm.load import load_wavlm
from vox.wavlm.measure import Measured
from vox.wavlm.mix import LayerMix
from vox.wavlm.model import WavLM
from vox.wavlm.shape import Shape, check_layers


class FeatureExtractor(nn.Module):
    """WavLM and the mix of its layers."""

    def __init__(self, wavlm: WavLM, mix: LayerMix) -> None:
        super().__init__()
        self.wavlm = wavlm
        self.mix = mix

    def forward(
        self, waveforms_BS: Tensor, num_samples_B: Tensor, measured: Measured | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features [B, T, C], float32, zero on padded frames, and num_frames [B], int64.

        Waveforms are 16 kHz float32 [B, S], `num_samples_B` int64; padding may hold anything. Layers that the
        mix does not need are not kept, and those above the last that it needs are not computed.

        measured: of the recording of which this is a window, a batch of one without padding.
        """
        layers = self.mix.needed_layers()
        layer_outputs, num_frames_B = self.wavlm(
            waveforms_BS, num_samples_B, [i + 1 for i in layers], measured
        )
        return self._mix(layer_outputs, layers, num_frames_B)

    def continue_from(self, hidden_BTC: Tensor, num_frames_B: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, from the output of Transformer layer `layer`, counted from 1.

        `hidden_BTC` is [B, T, C] of any floating-point dtype, `num_frames_B` [B] int64; padded frames may
        hold anything. The mix must weigh nothing below `layer` (looking at it here would make the host wait
        for a GPU); in training, the weights of layers from `layer` on get their gradients.
        """
        num_frames_B = num_frames_B.to(hidden_BTC.device)
        layers = [i for i in self.mix.needed_layers() if i >= layer - 1] or [layer - 1]
        layer_outputs = self.wavlm.continue_from(hidden_BTC, num_frames_B, layer, [i + 1 for i in layers])
        return self._mix(layer_outputs, layers, num_frames_B)

    def _mix(
        self, layer_outputs: Sequence[Tensor], layers: Sequence[int], num_frames_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        features_BTC = self.mix(layer_outputs, layers)
        return zero_padding(features_BTC, lengths_to_mask(num_frames_B, features_BTC.shape[1])), num_frames_B


def build_extractor(wavlm_name: str, layers: Sequence[int]) -> FeatureExtractor:
    """Load a WavLM (hub name or folder) and take the mean of these layers, counted from 1; all frozen.

    Raises ConfigError for a layer that it has not, and WavLMError for a WavLM that cannot be had or does not
    make 50 frames a second.
    """
    wavlm = load_wavlm(wavlm_name)
    check_layers(Shape(wavlm.hidden_size, wavlm.num_layers), layers, where=wavlm_name)
    # Shards are laid out, and labels checked, from lengths alone, before any WavLM runs.
    if wavlm.num_frames(SAMPLE_RATE) != samples_to_frames(SAMPLE_RATE):
        raise WavLMError(
            "this WavLM's convolution stem does not make WavLM's 50 frames a second",
            where=wavlm_name,
            remedy="choose another with --wavlm",
        )
    # Of frozen weights the mix remembers which are zero, and asks the GPU no more than once.
    return FeatureExtractor(wavlm, LayerMix.mean_of(layers, wavlm.num_layers)).requires_grad_(False)

"""The whole recogniser: WavLM's features, adapter, Zipformer, CTC head and attention decoder.

Letters: B batch, T frames, C feature channels.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vox.config import ModelConfig
from vox.masks import lengths_to_mask, zero_padding
from vox.model.adapter import Adapter, normalise_utterances
from vox.model.decoder import Decoder
from vox.model.encoded import Encoded
from vox.model.label_clock import count_labels_begun
from vox.model.zipformer import Zipformer
from vox.wavlm.shape import Shape, check_model

if TYPE_CHECKING:
    from vox.wavlm.extractor import FeatureExtractor

_CTC_HEAD_STD = 0.01  # small: training starts from nearly equal scores, ln(vocab_size) a frame


class Recogniser(nn.Module):
    """Everything from waveforms to scores; from a cache, everything above `extractor`."""

    def __init__(self, config: ModelConfig, extractor: "FeatureExtractor") -> None:
        """Build with fresh weights above the extractor.

        Raises ConfigError if the extractor's width or number of layers is not what the config says.
        """
        super().__init__()
        check_model(Shape(extractor.wavlm.hidden_size, extractor.wavlm.num_layers), config)
        self.config = config
        self.extractor = extractor
        self.adapter = Adapter(config.feature_dim, config.d_model, config.dropout)
        self.encoder = Zipformer(config)
        self.decoder = Decoder(config)
        self.ctc_head = nn.Linear(config.d_model, config.num_pieces)
        nn.init.normal_(self.ctc_head.weight, std=_CTC_HEAD_STD)
        nn.init.zeros_(self.ctc_head.bias)

    def train(self, mode: bool = True) -> "Recogniser":
        """Set training mode; adapter and encoder stay in evaluation mode where they do not learn.

        A frozen part has no use for dropout, and what learns on its output is to hear it as it will be used.
        WavLM does so itself, layer by layer.
        """
        super().train(mode)
        for part in (self.adapter, self.encoder):
            part.train(mode and any(parameter.requires_grad for parameter in part.parameters()))
        return self

    def encode(self, features_BTC: Tensor, num_frames_B: Tensor) -> Encoded:
        """Run adapter, encoder and CTC head over features, frame for frame.

        features_BTC: any float dtype (a cache holds float16); padded frames may hold anything.
        """
        is_valid_BT = lengths_to_mask(num_frames_B, features_BTC.shape[1])
        features_BTC = zero_padding(features_BTC.to(self._dtype()), is_valid_BT)
        if self.config.feature_norm == "utterance":
            features_BTC = normalise_utterances(features_BTC, is_valid_BT)
        hidden_BTD = self.encoder(self.adapter(features_BTC, is_valid_BT), num_frames_B)
        logits_BTV = self.ctc_head(hidden_BTD)
        # Half precision has too few digits for sums over time.
        wide = torch.promote_types(logits_BTV.dtype, torch.float32)
        log_probs_BTV = logits_BTV.to(wide).log_softmax(dim=2)
        return Encoded(hidden_BTD, num_frames_B, log_probs_BTV, self.place_frames(log_probs_BTV, is_valid_BT))

    def place_frames(self, log_probs_BTV: Tensor, is_valid_BT: Tensor) -> Tensor | None:
        """Return each frame's position [B, T], counted in labels; None where the decoder reads none."""
        if self.config.cross_attention != "label_clock":
            return None
        return count_labels_begun(log_probs_BTV, is_valid_BT)

    def _dtype(self) -> torch.dtype:
        return self.ctc_head.weight.dtype

"""What is checked: a device, WavLM's weights, the recogniser above them, and how much work to give them."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import transformers
from transformers import WavLMConfig, WavLMModel

from vox.config import Config
from vox.device import pick_precision
from vox.errors import WavLMError
from vox.model.recogniser import Recogniser
from vox.wavlm.extractor import FeatureExtractor, build_extractor
from vox.wavlm.files import find_folder
from vox.wavlm.mix import LayerMix
from vox.wavlm.model import WavLM

log = logging.getLogger(__name__)

NO_WEIGHTS = "random weights of WavLM-base's shape"
AUTO_PIECES = 500  # for vocab_size: auto, which there are no transcripts to decide for
CTC_SPREAD = 20.0  # makes the fresh CTC head's scores as different from each other as a trained one's


@dataclass(frozen=True)
class Amounts:
    """How much work: enough to be right about a device, little enough for a minute or three."""

    clip_seconds: tuple[float, ...]  # of the promises' utterances
    odd_frames: tuple[int, ...]  # lengths at which gradients must be finite
    batch_seconds: float  # padded audio that extraction computes at once
    num_batches: int
    update_utterances: int
    micro_utterances: int
    utterance_seconds: float  # of an update's utterances, on average
    num_updates: int
    cache_mb: int  # written and read back
    matrix_size: int
    matrix_products: int


CUDA = Amounts(
    clip_seconds=(2.0, 5.3, 9.1, 12.4, 16.0),
    odd_frames=(192, 320, 448, 576, 704, 832),
    batch_seconds=320.0,
    num_batches=8,
    update_utterances=32,
    micro_utterances=8,
    utterance_seconds=12.0,
    num_updates=12,
    cache_mb=1000,
    matrix_size=8192,
    matrix_products=20,
)
CPU = Amounts(
    clip_seconds=(1.1, 2.4, 4.0),
    odd_frames=(64, 192),
    batch_seconds=12.0,
    num_batches=3,
    update_utterances=4,
    micro_utterances=2,
    utterance_seconds=4.0,
    num_updates=1,
    cache_mb=300,
    matrix_size=2048,
    matrix_products=4,
)
AMOUNTS = {  # by the type of device, and whether it shall be quick
    ("cuda", False): CUDA,
    ("cuda", True): replace(CUDA, odd_frames=(192, 704), num_batches=3, num_updates=4, cache_mb=200),
    ("cpu", False): CPU,
    ("cpu", True): replace(
        CPU,
        clip_seconds=(0.4, 0.9),
        odd_frames=(64,),
        batch_seconds=1.8,
        num_batches=1,
        update_utterances=2,
        micro_utterances=1,
        utterance_seconds=0.9,
        cache_mb=20,
        matrix_size=512,
    ),
}


@dataclass(frozen=True)
class CheckSubject:
    """Everything that the checks share. The models are on the device, in evaluation mode."""

    device: torch.device
    precision: torch.dtype  # that training computes in here
    amounts: Amounts
    root: Path
    config: Config
    wavlm_name: str
    weights: str  # where they come from
    missing_weights: str | None  # why they are random, in one line
    reference: WavLMModel  # Hugging Face's, with the same weights, on the CPU in float32
    recogniser: Recogniser
    matrix_rates: dict[torch.dtype, float] = field(default_factory=dict)  # as far as they were measured

    @property
    def extractor(self) -> FeatureExtractor:
        """WavLM and its mix."""
        return self.recogniser.extractor


def make_subject(
    wavlm_name: str, config: Config, device: torch.device, root: Path, is_quick: bool
) -> CheckSubject:
    """Load WavLM, or make one of random weights where it cannot be had, and build a recogniser on it.

    The model's width and depth follow WavLM's. Raises WavLMError for a folder that holds no good WavLM, and
    ConfigError for layers that it has not.
    """
    torch.manual_seed(0)
    reference, extractor, missing = _load(wavlm_name, config.features.layers)
    wavlm = extractor.wavlm
    shape: dict[str, object] = {"feature_dim": wavlm.hidden_size, "num_wavlm_layers": wavlm.num_layers}
    if config.model.vocab_size == "auto":
        shape["vocab_size"] = AUTO_PIECES
    config = config.model_copy(update={"model": config.model.model_copy(update=shape)})
    recogniser = Recogniser(config.model, extractor)
    vary_weights(recogniser)
    return CheckSubject(
        device=device,
        precision=pick_precision("auto", device),
        amounts=AMOUNTS[device.type, is_quick],
        root=root,
        config=config,
        wavlm_name=wavlm_name,
        weights=NO_WEIGHTS if missing else wavlm_name,
        missing_weights=missing,
        reference=reference,
        recogniser=recogniser.to(device).eval(),
    )


@torch.no_grad()
def vary_weights(recogniser: Recogniser) -> None:
    """Move what starts at zero or at one, so that no fault hides behind it.

    Norms' biases of zero leave padded zeros zero where a mask is missing; a fresh CTC head scores all pieces
    alike.
    """
    for module in (recogniser.adapter, recogniser.encoder, recogniser.decoder, recogniser.ctc_head):
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    recogniser.ctc_head.weight.mul_(CTC_SPREAD)


def _load(name: str, layers: tuple[int, ...]) -> tuple[WavLMModel, FeatureExtractor, str | None]:
    """Return Hugging Face's model, ours, and why both are random if they are."""
    transformers.utils.logging.disable_progress_bar()
    is_here = find_folder(name) is not None
    try:
        extractor = build_extractor(name, layers)
    except WavLMError as error:
        if is_here:  # what was named is damaged: that is for the user to correct
            raise
        reference = WavLMModel(WavLMConfig()).eval()
        return reference, _copy_weights(reference, layers), str(error)
    folder = find_folder(name)
    reference = WavLMModel.from_pretrained(folder or name, dtype=torch.float32, local_files_only=True)
    return reference.eval(), extractor, None


def _copy_weights(reference: WavLMModel, layers: tuple[int, ...]) -> FeatureExtractor:
    wavlm = WavLM(reference.config, do_normalize=False)
    wavlm.load_state_dict(reference.state_dict(), strict=True)
    mix = LayerMix.mean_of(layers, wavlm.num_layers)
    return FeatureExtractor(wavlm, mix).requires_grad_(False)

"""What must be true of an update on any device: an exact gradient, however it is cut (T6), or no change."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from transformers import WavLMConfig

from train.check.made import MadeUpdate, make_update
from train.check.trainer import Trainer
from train.ranks import Ranks
from train.update.step import StepSettings, accumulate_gradients, wrap_losses
from vox.check.promises import relative_l2
from vox.check.results import Promise
from vox.check.subject import CheckSubject, vary_weights
from vox.config import ModelConfig
from vox.model.recogniser import Recogniser
from vox.units import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, samples_to_seconds
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.mix import LayerMix
from vox.wavlm.model import WavLM

EXACT_BOUND = 1e-4  # relative L2, in float32: T6, and against float64
HALF_BOUND = 3e-2  # relative L2, in bf16 or fp16 against float64

CUT_UTTERANCES = 8  # of the update that is cut in two ways
SMALL_SECONDS = (1.0, 0.7, 0.4)
SMALL_WAVLM: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
SMALL_MODEL = ModelConfig(
    vocab_size=25,
    feature_dim=64,
    num_wavlm_layers=2,
    d_model=64,
    encoder_heads=4,
    encoder_d_ff=128,
    layers_per_block=1,
    conv_kernel=7,
    decoder_layers=2,
    decoder_heads=4,
    decoder_d_ff=128,
    dropout=0.0,
)


def check_gradients(subject: CheckSubject) -> Iterator[Promise]:
    """Compare a small recogniser's gradient, WavLM's layers included, with float64 on the CPU."""
    recogniser = make_small_recogniser()
    update = make_update(SMALL_SECONDS, SMALL_MODEL, len(SMALL_SECONDS), live=True)
    exact = copy.deepcopy(recogniser).double()
    expected = torch.cat(gradients_of(exact, update, torch.device("cpu"), torch.float32))
    for dtype in dict.fromkeys((torch.float32, subject.precision)):
        moved = copy.deepcopy(recogniser).to(subject.device)
        found = torch.cat(gradients_of(moved, update, subject.device, dtype))
        name = str(dtype).removeprefix("torch.")
        bound = EXACT_BOUND if dtype is torch.float32 else HALF_BOUND
        error = relative_l2(found, expected)
        yield Promise("", f"gradient of both losses in {name} against float64", error, bound)


def check_cut(subject: CheckSubject) -> Iterator[Promise]:
    """Compare the gradient of one update computed at once with the same in small micro-batches."""
    recogniser = subject.recogniser.eval().requires_grad_(True)
    recogniser.extractor.requires_grad_(False)
    count = min(CUT_UTTERANCES, subject.amounts.update_utterances)
    few = max(1, count // 4)
    lengths = list(itertools.islice(itertools.cycle(subject.amounts.clip_seconds), count))
    whole, cut = (
        gradients_of(
            recogniser,
            make_update(lengths, subject.config.model, size, live=False),
            subject.device,
            torch.float32,
        )
        for size in (count, few)
    )
    squares = sum(float((one - other).double().square().sum()) for one, other in zip(whole, cut, strict=True))
    norm = sum(float(gradient.double().square().sum()) for gradient in whole)
    what = f"gradient of {count} utterances, at once and {few} at a time"
    yield Promise("T6", what, (squares / norm) ** 0.5, EXACT_BOUND)


def check_finite(subject: CheckSubject) -> Iterator[Promise]:
    """Count the micro-batches whose gradient is not finite, over lengths that attention kernels cut unevenly.

    With dropout and padding, in the precision of training. torch 2.11's cuDNN attention fails at some lengths
    of 128 n + 64 frames (pytorch issue 196678).
    """
    recogniser = subject.recogniser.requires_grad_(True).train()
    recogniser.extractor.requires_grad_(False)
    bad = 0
    for frames in subject.amounts.odd_frames:
        longest = samples_to_seconds((frames - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES)
        update = make_update((longest, 0.7 * longest), subject.config.model, 2, live=False)
        gradients = gradients_of(recogniser, update, subject.device, subject.precision)
        bad += not all(bool(gradient.isfinite().all()) for gradient in gradients)
    what = f"gradients of {len(subject.amounts.odd_frames)} micro-batches that are not finite"
    yield Promise("", what, bad, 0)


def check_infinity(subject: CheckSubject) -> Iterator[Promise]:
    """Put an infinite feature into an update; count what of weights and optimizer it has changed."""
    trainer = Trainer(subject.recogniser, subject.config, subject.device, subject.precision, cached=True)
    update = make_update(subject.amounts.clip_seconds[:2], subject.config.model, 1, live=False)
    trainer.update(update.totals, update.batches)  # so that the optimizer has a state to keep
    before = [tensor.clone() for tensor in _list_state(trainer)]
    update.batches[0][0].features_BTC[0, 0, 0] = float("inf")  # type: ignore[union-attr]
    trainer.update(update.totals, update.batches)
    after = _list_state(trainer)
    changed = sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    yield Promise("", "tensors that an update with an infinite feature changes", changed, 0)


def gradients_of(
    recogniser: Recogniser, update: MadeUpdate, device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Return the gradient of an update, flat, a tensor a parameter that learns; nothing is augmented."""
    settings = StepSettings(device, dtype, 0.3, 0.1, 1.0, augment=None)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    losses = wrap_losses(recogniser, Ranks())
    recogniser.zero_grad(set_to_none=True)  # a check before may have left some
    accumulate_gradients(losses, scaler, update.batches, update.totals, settings, Ranks())
    gradients = [p.grad.flatten() for p in recogniser.parameters() if p.grad is not None]
    recogniser.zero_grad(set_to_none=True)
    return gradients


def make_small_recogniser() -> Recogniser:
    """Build a recogniser in evaluation mode, on the CPU, all of whose layers learn but WavLM's stem."""
    torch.manual_seed(0)
    wavlm = WavLM(WavLMConfig(**SMALL_WAVLM), do_normalize=False)
    extractor = FeatureExtractor(wavlm, LayerMix.mean_of((1, 2), wavlm.num_layers))
    recogniser = Recogniser(SMALL_MODEL, extractor)
    vary_weights(recogniser)
    wavlm.freeze_except(range(wavlm.num_layers))
    return recogniser.eval()


def _list_state(trainer: Trainer) -> list[torch.Tensor]:
    """Return every weight, and every tensor that the optimizer keeps."""
    kept = [value for state in trainer.optimizer.state.values() for value in state.values()]
    return [*trainer.recogniser.state_dict().values(), *(v for v in kept if isinstance(v, torch.Tensor))]

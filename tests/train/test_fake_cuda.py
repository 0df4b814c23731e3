"""GPU code on a fake GPU that computes nothing: devices, dtypes, and where the host waits for the GPU.

B batch, S samples, T frames, C channels, U labels.
"""

from collections.abc import Iterable
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import WavLMConfig

from precompute.extract import compute_batch
from tests.support.fake_cuda import Watch, fake_gpu
from tests.support.speech import tiny_wavlm_kwargs
from tests.support.training import MODEL
from train.judge.validate import validate
from train.ranks import Ranks
from train.record.checkpoint_writer import copy_to_host
from train.update.ema import Ema
from train.update.schedule import build_optimizer, set_learning_rate
from train.update.step import LabelTotals, StepSettings, run_update, wrap_losses
from vox.config import AugmentConfig, ModelConfig, OptimizerConfig
from vox.data.batch import AudioBatch, FeatureBatch, LabelBatch, make_label_batch
from vox.decode import SearchOptions, make_search
from vox.decoder_names import VALIDATION_DECODERS
from vox.device import autocast, pick_precision
from vox.model.recogniser import Recogniser
from vox.text import Tokenizer
from vox.transcribe import _recognise_whole
from vox.units import samples_to_frames
from vox.wavlm.extractor import FeatureExtractor
from vox.wavlm.mix import LayerMix
from vox.wavlm.model import WavLM

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is there")

CUDA = torch.device("cuda")
Batch = AudioBatch | FeatureBatch

# Where products are in float32 whatever the precision: below WavLM's layers, and in the gates of the bias.
STEM = {
    *(f"vox/wavlm/stem.py {name}" for name in ("ConvLayer.run_batch", "ConvLayer._multiply")),
    "vox/wavlm/stem.py FeatureProjection.forward",
    "vox/wavlm/encoder.py PositionalConvolution.convolve",
}
GATES = {"vox/wavlm/attention.py Attention._gates"}
STATISTICS = {"vox/wavlm/stem.py fold_group_norm", "vox/wavlm/stem.py fold_moments"}  # in float64


def make_recogniser(
    *, is_full: bool = False, unfreeze: tuple[int, ...] = (), is_mix_learning: bool = False
) -> Recogniser:
    """Build a recogniser on the fake GPU: of full size, or the tests' tiny one."""
    config = ModelConfig() if is_full else ModelConfig(**MODEL, resolution_blocks=2)
    with CUDA:
        wavlm = WavLM(WavLMConfig(**({} if is_full else tiny_wavlm_kwargs())), False)
        recogniser = Recogniser(config, FeatureExtractor(wavlm, LayerMix.mean_of((3, 4), wavlm.num_layers)))
    recogniser.requires_grad_(True)
    wavlm.freeze_except(unfreeze)
    recogniser.extractor.mix.requires_grad_(is_mix_learning)
    recogniser.extractor.mix.nonzero_layers()  # asked for once, where it is frozen
    return recogniser


def make_audio(count: int, seconds: float) -> AudioBatch:
    num_samples = int(seconds * 16_000) + 37
    ids = [str(row) for row in range(count)]
    return AudioBatch(ids, torch.zeros(count, num_samples), torch.full((count,), num_samples)).pin()


def make_features(count: int, seconds: float, channels: int) -> FeatureBatch:
    num_frames = samples_to_frames(int(seconds * 16_000) + 37)
    features_BTC = torch.zeros(count, num_frames, channels, dtype=torch.float16)
    ids = [str(row) for row in range(count)]
    return FeatureBatch(ids, features_BTC, torch.full((count,), num_frames)).pin()


def make_labels(count: int, length: int) -> LabelBatch:
    return make_label_batch([[7] * length] * count).pin()


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use attention in blocks of queries for recordings over 2 s, as for those over 30 s."""
    monkeypatch.setattr("vox.wavlm.attention.ONE_PASS_FRAMES", 100)
    monkeypatch.setattr("vox.wavlm.attention.QUERY_BLOCK_FRAMES", 100)


def extract(is_full: bool, count: int, seconds: float, precision: torch.dtype) -> None:
    """Run a batch of phase 1 and check its device, its dtypes, and that the host does not wait."""
    with fake_gpu() as gpu:
        extractor = make_recogniser(is_full=is_full).extractor.eval().requires_grad_(False)
        batch = make_audio(count, seconds)
        keys = [(0, row) for row in range(count)]
        gpu.start_again()
        with torch.inference_mode(), autocast(CUDA, precision):
            done = compute_batch(extractor, batch, keys, [], {}, CUDA)
    gpu.check_waits()
    assert done.copied is not None and done.features_BTC.dtype is torch.float16
    assert {each.device.type for each in (done.features_BTC, done.num_frames_B, done.is_finite_B)} == {"cpu"}
    assert gpu.products.pop(torch.float64) == STATISTICS
    if precision is torch.float16:
        assert gpu.products.pop(torch.float32) == STEM | GATES
    assert gpu.products.keys() == {precision}
    assert gpu.longest_sum <= 1000 and not gpu.strided_masks


@pytest.mark.parametrize("precision", [torch.float16, torch.float32], ids=str)
def test_extraction(precision: torch.dtype) -> None:
    extract(False, 2, 2, precision)


def test_extraction_of_a_long_recording(in_blocks: None) -> None:
    extract(False, 1, 4, torch.float16)


def test_extraction_at_full_size() -> None:
    extract(True, 10, 16, torch.float16)


def run_updates(
    gpu: Watch,
    recogniser: Recogniser,
    batches: Iterable[tuple[Batch, LabelBatch]],
    precision: torch.dtype,
    *,
    count: int = 1,
    cached_layer: int | None = None,
) -> None:
    """Run some updates and record the operations of the last one."""
    recogniser.train()
    optimizer = build_optimizer(recogniser, OptimizerConfig())
    scaler = torch.amp.GradScaler("cuda", enabled=precision is torch.float16)
    settings = StepSettings(CUDA, precision, 0.3, 0.1, 1.0, AugmentConfig(), cached_layer, True)
    ema = Ema(recogniser, 0.999)
    losses = wrap_losses(recogniser, Ranks())
    for update in range(count):
        gpu.start_again()
        set_learning_rate(optimizer, 1e-4)
        result = run_update(losses, optimizer, scaler, batches, LabelTotals(90, 98), settings, Ranks())
        ema.follow(update, result)
    learning = {name: p for name, p in recogniser.named_parameters() if p.requires_grad}
    assert not [name for name, p in learning.items() if p.grad is None or p.grad.dtype is not torch.float32]
    results = (result.sums_5, result.grad_norm, result.has_changed)
    assert {each.device.type for each in results} == {"cuda"}


# With float16's scaled losses the host asks whether the gradient is finite.
ALLOWED = {torch.bfloat16: [], torch.float16: [("train/update/step.py", "if bool(is_wanted):")]}
HALF = pytest.mark.parametrize("precision", list(ALLOWED), ids=str)


@HALF
def test_cached_update(precision: torch.dtype) -> None:
    """The second update, for which the optimizer's moments exist."""
    with fake_gpu() as gpu:
        batches = [(make_features(3, 4, 32), make_labels(3, 9))]
        run_updates(gpu, make_recogniser(), batches, precision, count=2)
    gpu.check_waits(*ALLOWED[precision])
    assert gpu.products.keys() == {precision}


def test_cached_update_at_full_size() -> None:
    with fake_gpu() as gpu:
        batches = [(make_features(8, 12, 768), make_labels(8, 45))]
        run_updates(gpu, make_recogniser(is_full=True), batches, torch.bfloat16)
    gpu.check_waits()
    assert gpu.products.keys() == {torch.bfloat16}


def update_stage_2(batch: Batch, recogniser: Recogniser, gpu: Watch, precision: torch.dtype) -> None:
    """Update WavLM's layers from live audio, and check the precision of each computation."""
    run_updates(gpu, recogniser, [(batch, make_labels(len(batch.ids), 9))], precision)
    gpu.check_waits(*ALLOWED[precision])
    assert gpu.products.pop(torch.float64) == STATISTICS
    assert gpu.products.keys() == {torch.float32, torch.float16, precision}  # what is frozen is in float16
    assert gpu.products[torch.float32] >= STEM | GATES and not gpu.strided_masks


@HALF
def test_live_update_of_stage_2(precision: torch.dtype) -> None:
    with fake_gpu() as gpu:
        recogniser = make_recogniser(unfreeze=(2, 3), is_mix_learning=True)
        update_stage_2(make_audio(3, 2), recogniser, gpu, precision)


def test_live_update_of_stage_2_from_a_long_recording(in_blocks: None) -> None:
    with fake_gpu() as gpu:
        recogniser = make_recogniser(unfreeze=(0, 3), is_mix_learning=True)  # 0: the table of positions
        update_stage_2(make_audio(1, 4), recogniser, gpu, torch.bfloat16)


def test_live_update_of_stage_2_at_full_size() -> None:
    with fake_gpu() as gpu:
        recogniser = make_recogniser(is_full=True, unfreeze=(9, 10, 11), is_mix_learning=True)
        update_stage_2(make_audio(8, 12), recogniser, gpu, torch.bfloat16)


@HALF
def test_cached_update_of_stage_2(precision: torch.dtype) -> None:
    with fake_gpu() as gpu:
        batches = [(make_features(3, 4, 32), make_labels(3, 9))]
        run_updates(gpu, make_recogniser(unfreeze=(3,)), batches, precision, cached_layer=3)
    gpu.check_waits(*ALLOWED[precision])
    assert gpu.products.keys() == {torch.float32, precision} and gpu.products[torch.float32] >= GATES


def test_an_update_of_which_nothing_was_read() -> None:
    with fake_gpu() as gpu:
        run_updates(gpu, make_recogniser(), [], torch.bfloat16)
    assert {file for file, _ in gpu.waits} == {"vox/data/batch.py"}  # copies of a made batch


def test_the_copy_for_a_checkpoint() -> None:
    with fake_gpu() as gpu:
        recogniser = make_recogniser()
        optimizer = build_optimizer(recogniser, OptimizerConfig())
        for parameter in recogniser.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        gpu.start_again()
        copied = copy_to_host({"weights": recogniser.state_dict(), "optimizer": optimizer.state_dict()})
    gpu.check_waits()
    tensors = [leaf for leaf in tree_leaves(copied) if isinstance(leaf, torch.Tensor)]
    assert len(tensors) > 3 * len(optimizer.state) and {each.device.type for each in tensors} == {"cpu"}


CTC_WAITS = [
    ("vox/decode/ctc.py", "best_BT = scores_BTV.argmax(dim=-1).cpu()"),
    ("vox/decode/ctc.py", "for best_T, num_frames in zip(best_BT, num_frames_B.tolist(), strict=True)"),
]
ATTENTION_WAITS = [
    ("vox/decode/attention.py", "limits = max_labels_B.tolist()"),
    # One a step: which rows have ended. One more where some have.
    (
        "vox/decode/attention.py",
        "for position, (row, token) in enumerate(zip(rows, token_B.tolist(), strict=True)):",
    ),
    (
        "vox/decode/attention.py",
        "index_B = torch.tensor(kept, dtype=torch.int64, device=token_B.device)",
    ),
]
# None for a frame: what a search does there, it does on the GPU.
CTC_BEAM_WAITS = [
    ("vox/decode/ctc_beam.py", "lengths = num_frames_B.tolist()"),
    (
        "vox/decode/ctc_beam.py",
        "yield rows[position], beam.select(torch.tensor([position], device=log_probs_BTV.device))",
    ),
    (
        "vox/decode/ctc_beam.py",
        "is_live = (torch.logaddexp(beam.blank_BK[0], beam.label_BK[0]) > NEVER).tolist()",
    ),
    (
        "vox/decode/ctc_beam.py",
        "row[:n] for row, n in zip(beam.labels_BKU[0].tolist(), beam.num_labels_BK[0].tolist(), strict=True)",
    ),
    ("vox/decode/ctc_beam.py", "padded_NU.to(log_probs_TV.device),"),
    ("vox/decode/ctc_beam.py", "return (-loss_N).tolist()"),
]
NO_TOKENIZER = Tokenizer.__new__(Tokenizer)  # only a length bonus asks for its size
DECODING_WAITS = {"ctc": CTC_WAITS, "attention": ATTENTION_WAITS, "ctc_beam": CTC_BEAM_WAITS}


@pytest.mark.parametrize("name", DECODING_WAITS)
def test_decoding(name: str) -> None:
    with fake_gpu() as gpu:
        recogniser = make_recogniser().eval()
        batch = make_features(3, 4, 32).to(CUDA)
        with torch.no_grad(), autocast(CUDA, torch.bfloat16):
            encoded = recogniser.encode(batch.features_BTC, batch.num_frames_B)
            gpu.start_again()
            found = make_search(name, SearchOptions(), NO_TOKENIZER)(recogniser, encoded)
    hypotheses = [best for best, *_ in found]
    assert len(hypotheses) == 3 and all(hypothesis.ids for hypothesis in hypotheses)
    gpu.check_waits(*DECODING_WAITS[name])
    assert gpu.products.keys() == ({torch.bfloat16} if name == "attention" else set())


@pytest.mark.parametrize("name", VALIDATION_DECODERS)
def test_transcribe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the times of words: an alignment looks at its labels, and fake ones have no value."""
    monkeypatch.setattr("vox.transcribe.time_labels", lambda *arguments: [])
    monkeypatch.setattr("vox.transcribe.silence_confidence", lambda *arguments: 0.0)
    with fake_gpu() as gpu:
        recogniser = make_recogniser().eval()
        gpu.start_again()
        # In inference mode torch takes a number to the GPU past the fake one.
        with torch.no_grad(), autocast(CUDA, pick_precision("auto", CUDA)):
            search = None if name == "ctc" else make_search(name, SearchOptions(), NO_TOKENIZER)
            recognised = _recognise_whole(recogniser, torch.zeros(3 * 16_000), search, 1.0)
    assert recognised.hypotheses[0].ids and recognised.ctc.ids
    copies = ["waveforms_BS = waveform_S[None].to(device_of(recogniser))"]
    copies += ["num_samples_B = torch.tensor([len(waveform_S)], device=waveforms_BS.device)"]
    waits = {*DECODING_WAITS[name], *CTC_WAITS, *(("vox/transcribe.py", line) for line in copies)}
    gpu.check_waits(*waits)
    assert gpu.products.pop(torch.float64) == STATISTICS
    assert gpu.products.pop(torch.float32) == STEM | GATES
    assert gpu.products.keys() == {torch.float16, torch.bfloat16}


@pytest.mark.parametrize("kind", ["cached", "live"])
def test_validation(kind: str) -> None:
    with fake_gpu() as gpu:
        recogniser = make_recogniser(unfreeze=(3,), is_mix_learning=True)
        batch = make_features(3, 4, 32) if kind == "cached" else make_audio(3, 4)
        split = SimpleNamespace(
            name="dev",
            ids=batch.ids,
            lengths=[64_000] * 3,
            utterances=[SimpleNamespace(id=name, text="go", split="dev") for name in batch.ids],
            source=SimpleNamespace(read=lambda plan: iter([batch])),
            label_batch=lambda ids: make_labels(len(ids), 9),
            digest=lambda ids: "",
        )
        tokenizer = SimpleNamespace(has_words=True, rate="WER", decode=lambda ids: "go")
        gpu.start_again()
        result = validate(recogniser, split, tokenizer, device=CUDA, precision=torch.bfloat16, ranks=Ranks())  # type: ignore[arg-type]
    assert result.wer == {"ctc": 0.0, "attention": 0.0}
    losses = ["sums.ctc += float(losses.ctc)", "sums.attention += float(losses.attention)"]
    waits = [*CTC_WAITS, *ATTENTION_WAITS, *(("train/judge/validate.py", line) for line in losses)]
    if kind == "live":  # nothing is kept of weights that learn: asked again for each batch
        weights = (
            "[self.weights], lambda: [i for i, weight in enumerate(self.weights.tolist()) if weight != 0.0]"
        )
        waits.append(("vox/wavlm/mix.py", weights))
    gpu.check_waits(*waits)
    if kind == "live":
        # Learning layers too: the cache that would hold these features is made in float16.
        assert {place.split()[0] for place in gpu.products[torch.float16]} >= {"vox/wavlm/attention.py"}
        assert not any("wavlm" in place for place in gpu.products[torch.bfloat16])
    assert torch.bfloat16 in gpu.products and not gpu.strided_masks

"""The recogniser above WavLM: against slow references, and independent of the batch."""

import cmath
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.tiny_model import FEATURE_DIM, TINY, ShapeOnlyExtractor, make_recogniser, pad
from vox.config import ModelConfig
from vox.errors import ConfigError
from vox.masks import keys_to_mask, lengths_to_mask
from vox.model.adapter import normalise_utterances
from vox.model.attention import SelfAttention
from vox.model.conformer import ConvolutionModule
from vox.model.feedforward import SwiGLU
from vox.model.recogniser import Recogniser
from vox.model.rotary import rotary_table
from vox.text import BOS_ID

TOLERANCE = 1e-4  # max abs difference of logits, fp32
LENGTHS = st.lists(st.one_of(st.integers(1, 5), st.integers(6, 60)), min_size=1, max_size=4)
# In training mode, where a statistic over the batch would show.
RECOGNISERS = {
    "none": make_recogniser(dropout=0.0).train(),
    "utterance": make_recogniser(feature_norm="utterance", dropout=0.0).train(),
    "short_context": make_recogniser(decoder_context=3, dropout=0.0).train(),
}


def random_rows(lengths: list[int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, FEATURE_DIM, generator=generator) * 2 + 1 for length in lengths]


def random_tokens(lengths: list[int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.cat([torch.tensor([BOS_ID]), torch.randint(3, TINY["vocab_size"], (n,), generator=generator)])
        for n in lengths
    ]


@pytest.mark.parametrize("kind", ["none", "utterance", "short_context"])
@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, label_seed=st.integers(0, 99), extra=st.integers(0, 9))
@example(lengths=[1, 2, 3, 4, 5, 57], label_seed=0, extra=0)
@example(lengths=[60, 1, 1], label_seed=1, extra=3)
@torch.no_grad()
def test_logits_do_not_depend_on_the_batch(
    kind: str, lengths: list[int], label_seed: int, extra: int
) -> None:
    recogniser = RECOGNISERS[kind]
    features = random_rows(lengths, seed=sum(lengths))
    tokens = random_tokens([(label_seed * (index + 3)) % 7 for index in range(len(lengths))], label_seed)
    num_frames_B = torch.tensor(lengths)
    features_BTC = pad(features, max(lengths) + extra, float("nan"))
    tokens_BU = pad(tokens, max(map(len, tokens)) + extra, 5)

    encoded = recogniser.encode(features_BTC, num_frames_B)
    decoder_BUV = recogniser.decoder(tokens_BU, encoded)

    for row, (num_frames, alone) in enumerate(zip(lengths, features, strict=True)):
        encoded_alone = recogniser.encode(alone[None], num_frames_B[row : row + 1])
        assert (encoded.hidden_BTD[row, num_frames:] == 0).all()
        ctc_TV = encoded.ctc_log_probs_BTV[row, :num_frames]
        assert (ctc_TV - encoded_alone.ctc_log_probs_BTV[0]).abs().max() <= TOLERANCE
        decoder_1UV = recogniser.decoder(tokens[row][None], encoded_alone)
        assert (decoder_BUV[row, : len(tokens[row])] - decoder_1UV[0]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("resolution_blocks", [1, 2, 4])
@torch.no_grad()
def test_any_number_of_resolutions_keeps_the_frame_rate_and_hears_every_frame(resolution_blocks: int) -> None:
    recogniser = make_recogniser(resolution_blocks=resolution_blocks)
    assert len(recogniser.encoder.descending) == len(recogniser.encoder.ascending) == resolution_blocks - 1
    for num_frames in (1, 2, 3, 8, 9, 17):
        features_1TC = random_rows([num_frames], num_frames)[0][None]
        num_frames_1 = torch.tensor([num_frames])
        hidden_1TD = recogniser.encode(features_1TC, num_frames_1).hidden_BTD
        assert hidden_1TD.shape == (1, num_frames, TINY["d_model"])
        changed_1TC = features_1TC.clone()
        changed_1TC[0, -1, 0] += 1
        is_moved_T = (recogniser.encode(changed_1TC, num_frames_1).hidden_BTD != hidden_1TD)[0].any(-1)
        assert is_moved_T.all()


@torch.no_grad()
def test_each_resolution_runs_at_half_the_frames_of_the_one_above() -> None:
    recogniser = make_recogniser()
    lengths = []
    encoder = recogniser.encoder
    for block in (*encoder.descending, encoder.lowest, *encoder.ascending):
        block.register_forward_hook(lambda _, inputs, __: lengths.append(tuple(inputs[1].sum(1).tolist())))
    recogniser.encode(torch.zeros(3, 11, FEATURE_DIM), torch.tensor([11, 2, 5]))
    assert lengths == [(11, 2, 5), (6, 1, 3), (3, 1, 2), (6, 1, 3), (11, 2, 5)]


def rotary_attention_by_hand(
    module: SelfAttention, x_TD: torch.Tensor, num_keys: int, is_causal: bool
) -> torch.Tensor:
    """Loop over heads, queries and keys; positions turn complex numbers (RoFormer, equation 12)."""
    num_positions, width = x_TD.shape
    half = width // module.num_heads // 2
    query_TD, key_TD, value_TD = (
        x_TD @ part_DD.T for part_DD in module.query_key_value.weight.chunk(3, dim=0)
    )
    mixed_TD = torch.zeros(num_positions, width)
    for head in range(module.num_heads):
        start = head * 2 * half
        for query in range(num_positions):
            scores = []
            for key in range(min(num_keys, query + 1) if is_causal else num_keys):
                score = 0.0
                for pair in range(half):
                    angle = 10_000 ** (-2 * pair / (2 * half))
                    first, second = start + pair, start + pair + half
                    q = complex(query_TD[query, first], query_TD[query, second]) * cmath.exp(
                        1j * query * angle
                    )
                    k = complex(key_TD[key, first], key_TD[key, second]) * cmath.exp(1j * key * angle)
                    score += (q * k.conjugate()).real
                scores.append(score / math.sqrt(2 * half))
            total = sum(math.exp(score) for score in scores)
            for key, score in enumerate(scores):
                weight = math.exp(score) / total
                mixed_TD[query, start : start + 2 * half] += weight * value_TD[key, start : start + 2 * half]
    return mixed_TD @ module.output.weight.T


@pytest.mark.parametrize(("num_keys", "is_causal"), [(7, True), (4, False), (7, False)])
@torch.no_grad()
def test_self_attention_equals_loops_over_complex_numbers(num_keys: int, is_causal: bool) -> None:
    torch.manual_seed(1)
    module = SelfAttention(16, 2, dropout=0.3).eval()
    module.query_key_value.weight.mul_(4)
    x_TD = torch.randn(7, 16)
    is_key_seen_B11T = keys_to_mask(lengths_to_mask(torch.tensor([num_keys]), 7))
    rotary = rotary_table(torch.arange(7), 8)
    found_TD = module(x_TD[None], rotary, None if is_causal else is_key_seen_B11T, is_causal)[0]
    expected_TD = rotary_attention_by_hand(module, x_TD, num_keys, is_causal)
    torch.testing.assert_close(found_TD, expected_TD, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_swiglu_equals_its_equation() -> None:
    torch.manual_seed(2)
    module = SwiGLU(6, 10, dropout=0.5).eval()
    x_BTD = torch.randn(2, 3, 6)
    gate, value = x_BTD @ module.gate.weight.T, x_BTD @ module.value.weight.T
    expected_BTD = (gate / (1 + torch.exp(-gate)) * value) @ module.output.weight.T
    torch.testing.assert_close(module(x_BTD), expected_BTD)


@torch.no_grad()
def test_convolution_module_equals_loops_over_frames_and_taps() -> None:
    torch.manual_seed(3)
    module = ConvolutionModule(4, kernel=5, dropout=0.5).eval()
    module.norm.weight.normal_()
    module.norm.bias.normal_()
    x_TD = torch.randn(6, 4)
    num_frames = 4
    found_TD = module(x_TD[None], torch.arange(6)[None] < num_frames)[0, :num_frames]

    projected = x_TD @ module.input.weight.T
    gated_TD = projected[:, :4] * torch.sigmoid(projected[:, 4:])
    for frame in range(num_frames):
        summed_D = torch.zeros(4)
        for tap in range(5):
            source = frame + tap - 2
            if 0 <= source < num_frames:
                summed_D += gated_TD[source] * module.depthwise.weight[:, 0, tap]
        normed_D = (summed_D - summed_D.mean()) / torch.sqrt(summed_D.var(correction=0) + 1e-5)
        normed_D = normed_D * module.norm.weight + module.norm.bias
        expected_D = module.output.weight @ (normed_D * torch.sigmoid(normed_D))
        torch.testing.assert_close(found_TD[frame], expected_D, atol=1e-5, rtol=1e-5)


def test_utterance_norm_is_over_real_frames_only() -> None:
    rows = random_rows([9, 1, 4], seed=4)
    is_valid_BT = lengths_to_mask(torch.tensor([9, 1, 4]), 11)
    normed_BTC = normalise_utterances(pad(rows, 11, 0.0), is_valid_BT)
    for row, alone_TC in enumerate(rows):
        expected_TC = (alone_TC - alone_TC.mean(0)) / torch.sqrt(alone_TC.var(0, correction=0) + 1e-5)
        torch.testing.assert_close(normed_BTC[row, : len(alone_TC)], expected_TC, atol=1e-5, rtol=1e-5)
        assert (normed_BTC[row, len(alone_TC) :] == 0).all()


@torch.no_grad()
def test_no_logits_depend_on_later_labels() -> None:
    recogniser = RECOGNISERS["none"]
    encoded = recogniser.encode(torch.randn(1, 9, FEATURE_DIM), torch.tensor([9]))
    tokens_BU = random_tokens([7], seed=5)[0][None]
    before_UV = recogniser.decoder(tokens_BU, encoded)[0]
    for changed in range(1, 8):
        other_BU = tokens_BU.clone()
        other_BU[0, changed] = 3 + (other_BU[0, changed] - 2) % 10
        after_UV = recogniser.decoder(other_BU, encoded)[0]
        is_moved_U = ((after_UV - before_UV).abs() > 1e-6).any(-1)
        assert is_moved_U.tolist() == [position >= changed for position in range(8)]


@torch.no_grad()
def test_a_context_hides_the_labels_before_it() -> None:
    """Two layers with a context of 3 reach 4 labels back."""
    recogniser = make_recogniser(seed=4, decoder_context=3, cross_attention="plain")
    encoded = recogniser.encode(torch.randn(1, 9, FEATURE_DIM), torch.tensor([9]))
    tokens_BU = random_tokens([9], seed=5)[0][None]
    before_UV = recogniser.decoder(tokens_BU, encoded)[0]
    tokens_BU[0, 2] = 3 + (tokens_BU[0, 2] - 2) % 10
    is_moved_U = ((recogniser.decoder(tokens_BU, encoded)[0] - before_UV).abs() > 1e-6).any(-1)
    assert is_moved_U.tolist() == [2 <= position <= 6 for position in range(10)]


def test_gradient_reaches_every_parameter() -> None:
    recogniser = make_recogniser().train()
    encoded = recogniser.encode(torch.randn(2, 13, FEATURE_DIM), torch.tensor([13, 6]))
    tokens_BU = torch.arange(TINY["vocab_size"]).repeat(2, 1)
    decoder_BUV = recogniser.decoder(tokens_BU, encoded)
    (encoded.ctc_log_probs_BTV.square().sum() + decoder_BUV.square().sum()).backward()
    without = [name for name, p in recogniser.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_training_mode_differs_by_dropout_only() -> None:
    recogniser = make_recogniser(dropout=0.0)
    num_frames_B = torch.tensor([13, 6])
    features_BTC = torch.randn(2, 13, FEATURE_DIM)
    tokens_BU = torch.stack(random_tokens([6, 6], seed=6))

    def logits() -> tuple[torch.Tensor, torch.Tensor]:
        encoded = recogniser.encode(features_BTC, num_frames_B)
        return encoded.ctc_log_probs_BTV, recogniser.decoder(tokens_BU, encoded)

    in_eval, in_training = logits(), (recogniser.train(), logits())[1]
    for eval_logits, training_logits in zip(in_eval, in_training, strict=True):
        torch.testing.assert_close(training_logits, eval_logits)
    assert list(recogniser.buffers()) == []  # no running statistics


def test_dropout_of_the_config_is_everywhere() -> None:
    recogniser = make_recogniser(dropout=0.25)
    rates = {
        name: getattr(module, "p", None) or getattr(module, "dropout", None)
        for name, module in recogniser.named_modules()
        if isinstance(module, torch.nn.Dropout) or name.endswith("attention")
    }
    assert set(rates.values()) == {0.25}
    # adapter 1; Conformer layer: residuals, 2 SwiGLU, attention, convolution; decoder: embedding, and a
    # layer's residuals, SwiGLU and 2 attentions.
    assert len(rates) == 1 + 5 * 5 + 1 + 2 * 4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_other_precisions_give_nearly_the_same(dtype: torch.dtype, tolerance: float) -> None:
    num_frames_B = torch.tensor([40, 7])
    features_BTC = torch.randn(2, 40, FEATURE_DIM, generator=torch.Generator().manual_seed(7))
    tokens_BU = torch.stack(random_tokens([6, 6], seed=7))
    expected = (recogniser := make_recogniser()).encode(features_BTC, num_frames_B)
    expected_BUV = recogniser.decoder(tokens_BU, expected)
    if dtype == torch.float64:
        recogniser.double()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = recogniser.encode(features_BTC, num_frames_B)
        found_BUV = recogniser.decoder(tokens_BU, found)
    for tensor, wanted in ((found.hidden_BTD, expected.hidden_BTD), (found_BUV, expected_BUV)):
        assert (tensor - wanted).norm() / wanted.norm() < tolerance


def test_a_seed_gives_the_same_weights_again() -> None:
    first, again, other = (make_recogniser(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["encoder.downs.0.convolution.weight"], other["encoder.downs.0.convolution.weight"]
    )


@torch.no_grad()
def test_full_size_starts_at_the_loss_of_equal_scores() -> None:
    torch.manual_seed(0)
    recogniser = Recogniser(ModelConfig(), ShapeOnlyExtractor(768, 12)).eval()
    num_frames, labels_BU = 60, torch.arange(3, 9)[None]
    num_frames_B = torch.tensor([num_frames])
    encoded = recogniser.encode(torch.randn(1, num_frames, 768), num_frames_B)
    log_probs_TBV = encoded.ctc_log_probs_BTV.transpose(0, 1)
    loss = F.ctc_loss(log_probs_TBV, labels_BU, num_frames_B, torch.tensor([6]), reduction="sum").item()
    # With equal scores every alignment has probability V**-T, and without repeats there are C(T + U, 2 U).
    expected = num_frames * math.log(2000) - math.log(math.comb(num_frames + 6, 12))
    assert loss == pytest.approx(expected, rel=0.03)
    decoder_V = recogniser.decoder(labels_BU, encoded)[0].log_softmax(-1).mean(0)
    assert -decoder_V.mean().item() == pytest.approx(math.log(2000), rel=0.15)


@pytest.mark.parametrize(("key", "size"), [("feature_dim", 99), ("num_wavlm_layers", 24)])
def test_another_wavlm_is_refused_with_the_option_that_mends_it(key: str, size: int) -> None:
    sizes = {"feature_dim": FEATURE_DIM, "num_wavlm_layers": 4} | {key: size}
    extractor = ShapeOnlyExtractor(sizes["feature_dim"], sizes["num_wavlm_layers"])
    with pytest.raises(ConfigError, match=f"--set model.{key}={size}"):
        Recogniser(ModelConfig(**TINY), extractor)

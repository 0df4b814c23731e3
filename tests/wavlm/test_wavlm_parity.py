"""Our WavLM is WavLM: every hidden state, gradient and parameter equals that of two other libraries."""

import pytest
import torch
from torchaudio.models.wav2vec2.utils import import_huggingface_model
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig

from tests.support.wavlm_models import (
    SHAPES,
    copy_to_ours,
    make_reference,
    make_reference_of,
    make_waveform,
    relative_l2,
    run_reference,
)
from vox.wavlm.model import WavLM

LIMIT = 1e-5

# One frame, two frames, an odd count, and more frames (124) than the position table tells apart (80).
LENGTHS = (400, 719, 7001, 40_000)


def assert_states_equal(actual: list, expected: list) -> None:
    errors = [relative_l2(a, e) for a, e in zip(actual, expected, strict=True)]
    assert max(errors) <= LIMIT, errors


@pytest.mark.parametrize("num_samples", LENGTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_hidden_state_equals_hugging_face(shape: str, num_samples: int) -> None:
    reference = make_reference(shape)
    waveform_1S = make_waveform(num_samples)
    states, num_frames_B = copy_to_ours(reference)(waveform_1S, torch.tensor([num_samples]))
    expected = run_reference(reference, waveform_1S)
    assert num_frames_B.tolist() == [len(expected[0])]
    assert_states_equal([state[0] for state in states], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_hidden_state_equals_torchaudio(shape: str) -> None:
    reference = make_reference(shape)
    torchaudio_model = import_huggingface_model(reference).eval()
    waveform_1S = make_waveform(16_000)
    with torch.no_grad():
        frames_1TC, _ = torchaudio_model.feature_extractor(waveform_1S, None)
        first_1TD = torchaudio_model.encoder.transformer._preprocess(
            torchaudio_model.encoder.feature_projection(frames_1TC)
        )
        outputs, _ = torchaudio_model.extract_features(waveform_1S)
    states, _ = copy_to_ours(reference)(waveform_1S, torch.tensor([16_000]))
    assert_states_equal(states, [first_1TD, *outputs])


def test_full_size_base_equals_both_libraries() -> None:
    reference = make_reference_of(WavLMConfig())
    waveform_1S = make_waveform(16_000)
    states, _ = copy_to_ours(reference)(waveform_1S, torch.tensor([16_000]))
    assert_states_equal([state[0] for state in states], run_reference(reference, waveform_1S))
    with torch.no_grad():
        outputs, _ = import_huggingface_model(reference).eval().extract_features(waveform_1S)
    assert_states_equal(states[1:], outputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_normalisation_equals_the_feature_extractor(shape: str) -> None:
    reference = make_reference(shape)
    waveform_1S = 0.1 * make_waveform(9_000) + 0.05  # an offset, so that the mean matters
    extract = Wav2Vec2FeatureExtractor(do_normalize=True)
    normalised_1S = extract(waveform_1S[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    states, _ = copy_to_ours(reference, do_normalize=True)(waveform_1S, torch.tensor([9_000]))
    assert_states_equal([state[0] for state in states], run_reference(reference, normalised_1S))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers", [(1, 3), (0,)], ids=str)
def test_gradients_equal_hugging_face(shape: str, layers: tuple[int, ...]) -> None:
    """Layers above a trainable one are frozen here, and must still propagate its gradient.

    In float64: in float32, gradients of queries and keys cancel so much that Hugging Face's own are 3e-5 off.
    """
    reference = make_reference(shape).double()
    ours = copy_to_ours(reference)
    ours.freeze_except(layers)
    reference.requires_grad_(False)
    for layer in layers:
        reference.encoder.layers[layer].requires_grad_(True)
    waveform_1S = make_waveform(8_000).double()
    expected = reference(waveform_1S, output_hidden_states=True).hidden_states
    actual, _ = ours(waveform_1S, torch.tensor([8_000]))
    torch.manual_seed(2)
    for target, states in zip((torch.randn_like(expected[0]),) * 2, (expected, actual), strict=True):
        sum((state * target * (1 + index)).sum() for index, state in enumerate(states)).backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    references = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert gradients.keys() == references.keys()
    assert {int(name.split(".")[2]) for name in gradients} == set(layers)
    # The gradient of a key's bias is zero in exact arithmetic: a softmax ignores what all keys share.
    names = [name for name in gradients if not name.endswith("k_proj.bias")]
    errors = {name: relative_l2(gradients[name], references[name]) for name in names}
    assert max(errors.values()) <= 1e-10, errors


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_have_hugging_face_names(shape: str) -> None:
    reference = make_reference(shape)
    ours = copy_to_ours(reference)
    assert {n: p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in reference.named_parameters()
    }
    reference.load_state_dict(ours.state_dict(), strict=True)


def test_base_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        wavlm = WavLM(WavLMConfig(), do_normalize=False)
    assert sum(parameter.numel() for parameter in wavlm.parameters()) == 94_381_936

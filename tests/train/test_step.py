"""One update: losses against a slow reference, and the same step for any division into batches (T6)."""

import itertools
import math

import pytest
import torch

from tests.support.gradients import NUM_UTTERANCES, gradient_of, make_batch, make_split
from tests.support.tiny_model import take_rows
from tests.support.training import tiny_recogniser
from train.ranks import Ranks
from train.update.l2_sp import L2Sp
from train.update.schedule import build_optimizer
from train.update.step import (
    LabelTotals,
    StepSettings,
    compute_losses,
    run_update,
    wrap_losses,
)
from vox.config import OptimizerConfig
from vox.data.batch import AudioBatch, round_up_length
from vox.data.plan import plan_epoch
from vox.text import BLANK_ID, BOS_ID, EOS_ID
from vox.units import samples_to_frames


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_gradient_does_not_depend_on_the_cut(tiny_wavlm_dir, dtype, tolerance):
    """32 utterances as one batch, as 4 x 8, and as micro-batches of unequal size (limited by length)."""
    recogniser = tiny_recogniser(tiny_wavlm_dir, dropout=0.0).to(dtype).eval()
    features, labels = make_split()
    num_labels = sum(map(len, labels))
    totals = LabelTotals(num_labels, num_labels + NUM_UTTERANCES)
    lengths = [len(frames) for frames in features]

    def cut(micro: int, limit: int | None = None) -> torch.Tensor:
        plan = plan_epoch(
            lengths,
            seed=0,
            epoch=0,
            utterances_per_update=NUM_UTTERANCES,
            micro_batch_utterances=micro,
            micro_batch_length=limit,
        )
        groups = plan[0][0]
        sizes.append(sorted(map(len, groups)))
        return gradient_of(recogniser, (make_batch(features, labels, g, dtype) for g in groups), totals)

    sizes: list[list[int]] = []
    whole, others = cut(32), [cut(8), cut(32, limit=300)]
    assert sizes[:2] == [[32], [8] * 4]
    assert len(sizes[2]) > 4
    for other in others:
        assert torch.linalg.norm(other - whole) <= tolerance * torch.linalg.norm(whole)


@pytest.mark.parametrize("is_live", [False, True])
def test_padding_to_few_shapes_changes_no_gradient(tiny_wavlm_dir, monkeypatch, is_live):
    """T1 and T6: frames, waveforms and labels are padded to powers of two, so every batch has padding."""
    monkeypatch.setattr("vox.data.batch.SHAPES_AN_OCTAVE", 1)
    recogniser = tiny_recogniser(tiny_wavlm_dir, dropout=0.0).double().eval()
    features, labels = make_split()
    batch, label_batch = make_batch(features, labels, range(NUM_UTTERANCES), torch.float64)
    if is_live:
        num_samples_B = batch.num_frames_B * 320 + 80
        waveforms_BS = torch.randn(NUM_UTTERANCES, int(num_samples_B.max())).double()
        batch = AudioBatch(batch.ids, waveforms_BS, num_samples_B)
    padded, padded_labels = batch.pad_to_few_shapes(), label_batch.pad_to_few_shapes()
    frames = padded.waveforms_BS if is_live else padded.features_BTC
    assert samples_to_frames(frames.shape[1]) == 64 if is_live else frames.shape[1] == 64
    assert (label_batch.inputs_BU.shape[1], padded_labels.inputs_BU.shape[1]) == (6, 8)
    totals = LabelTotals(90, 122)
    expected = gradient_of(recogniser, [(batch, label_batch)], totals)
    found = gradient_of(recogniser, [(batch, label_batch)], totals, is_padded_to_few_shapes=True)
    assert torch.linalg.norm(found - expected) <= 1e-10 * torch.linalg.norm(expected)
    assert not torch.equal(found, expected)


@pytest.mark.parametrize(("totals", "divisor"), [((90, 122), 90), ((0, 4), 4), ((1, 9), 8), ((0, 0), 1)])
def test_an_update_that_is_nearly_without_speech_weighs_no_more_than_its_utterances(totals, divisor):
    assert LabelTotals(*totals).ctc_divisor == divisor


def test_lengths_are_rounded_up_to_few_by_little():
    rounded = [round_up_length(length) for length in range(4097)]
    assert rounded[:65] == list(range(65))
    assert all(length <= up <= length * (1 + 1 / 32) for length, up in enumerate(rounded))
    assert len(set(rounded[1025:2049])) == 32
    costs = [up / length - 1 for length, up in enumerate(rounded[1025:2049], 1025)]
    assert sum(costs) / len(costs) < 0.012


@torch.no_grad()
def test_losses_are_the_sums_of_slow_references(tiny_wavlm_dir):
    """CTC by summing every alignment of two labels, attention by -log p label by label."""
    recogniser = tiny_recogniser(tiny_wavlm_dir, dropout=0.0).double().eval()
    lengths = (5, 3, 4)
    features = [torch.randn(length, 32).double() for length in lengths]
    labels: list[list[int]] = [[7, 9], [4], []]  # nothing is spoken in the last
    batch, label_batch = make_batch(features, labels, [0, 1, 2], torch.float64)
    encoded = recogniser.encode(batch.features_BTC, batch.num_frames_B)
    sums = compute_losses(recogniser, encoded, label_batch)
    log_probs_BTV = encoded.ctc_log_probs_BTV
    ctc = attention = 0.0
    for row, (target, num_frames) in enumerate(zip(labels, lengths, strict=True)):
        total = 0.0
        for path in itertools.product([BLANK_ID, *target], repeat=num_frames):
            if [k for k, _ in itertools.groupby(path) if k != BLANK_ID] == target:
                total += math.exp(sum(float(log_probs_BTV[row, t, k]) for t, k in enumerate(path)))
        ctc -= math.log(total)
        tokens = torch.tensor([[BOS_ID, *target]])
        logits = recogniser.decoder(tokens, take_rows(encoded, torch.tensor([row])))
        for position, label in enumerate([*target, EOS_ID]):
            attention -= float(logits.log_softmax(2)[0, position, label])
    assert float(sums.ctc) == pytest.approx(ctc, rel=1e-9)
    assert float(sums.attention) == pytest.approx(attention, rel=1e-9)


def test_an_update_that_is_not_finite_changes_nothing(tiny_wavlm_dir):
    recogniser = tiny_recogniser(tiny_wavlm_dir)
    optimizer = build_optimizer(recogniser, OptimizerConfig(learning_rate=0.1))
    before = {name: tensor.clone() for name, tensor in recogniser.state_dict().items()}
    features, labels = make_split()
    features[0][3, 5] = float("nan")
    settings = StepSettings(torch.device("cpu"), torch.float32, 0.3, 0.1, 1.0, augment=None)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    batch = make_batch(features, labels, [0, 1], torch.float32)
    losses, totals = wrap_losses(recogniser, Ranks()), LabelTotals(9, 11)
    result = run_update(losses, optimizer, scaler, [batch], totals, settings, Ranks()).read()
    assert not result.is_finite
    for name, tensor in recogniser.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_l2_sp_is_a_loss_on_the_way_from_the_start_weights(tiny_wavlm_dir):
    """The gradient is that of the sum of all losses, written out; no distance, no gradient."""
    recogniser = tiny_recogniser(tiny_wavlm_dir, dropout=0.0).double()
    recogniser.extractor.requires_grad_(False)
    learning = {name: p for name, p in recogniser.named_parameters() if p.requires_grad}
    start = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in learning.items()}
    features, labels = make_split()
    batch, totals = make_batch(features, labels, [0, 1], torch.float64), LabelTotals(9, 11)
    settings = StepSettings(torch.device("cpu"), torch.float32, 0.3, 0.1, math.inf, augment=None)  # not mixed
    losses, scaler = wrap_losses(recogniser, Ranks()), torch.amp.GradScaler("cpu", enabled=False)

    def gradient_with(l2_sp: L2Sp | None) -> torch.Tensor:
        optimizer = build_optimizer(recogniser, OptimizerConfig(learning_rate=1e-300))
        result = run_update(losses, optimizer, scaler, [batch], totals, settings, Ranks(), l2_sp)
        gradient = torch.cat([p.grad.flatten() for p in learning.values()])
        assert float(result.grad_norm) == pytest.approx(float(gradient.norm()))  # clipped with it
        return gradient

    sums = losses(*batch, settings)
    loss = 0.3 * sums.ctc / 9 + 0.7 * sums.attention / 11
    loss = loss + 0.25 * sum((p - start[name]).square().sum() for name, p in learning.items()) / 2
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(learning.values()))])
    torch.testing.assert_close(gradient_with(L2Sp(learning, 0.25, start)), wanted)
    assert torch.equal(gradient_with(L2Sp(learning, 0.25)), gradient_with(None))


def test_what_was_not_read_is_not_in_the_logged_loss(tiny_wavlm_dir):
    """The gradient is divided by the planned labels, the logged loss by those read; without any, no step."""
    recogniser = tiny_recogniser(tiny_wavlm_dir, dropout=0.0).eval()
    optimizer = build_optimizer(recogniser, OptimizerConfig(learning_rate=0.1))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    settings = StepSettings(torch.device("cpu"), torch.float32, 0.3, 0.0, 1.0, augment=None)
    features, labels = make_split()
    before = {name: tensor.clone() for name, tensor in recogniser.state_dict().items()}
    totals = LabelTotals(1000, 1032)
    losses = wrap_losses(recogniser, Ranks())
    result = run_update(losses, optimizer, scaler, [], totals, settings, Ranks()).read()
    assert result.num_targets == 0 and result.is_finite
    for name, tensor in recogniser.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    batch = make_batch(features, labels, [0, 1], torch.float32)
    with torch.no_grad():
        encoded = recogniser.encode(batch[0].features_BTC, batch[0].num_frames_B)
        sums = compute_losses(recogniser, encoded, batch[1])
    result = run_update(losses, optimizer, scaler, [batch], totals, settings, Ranks()).read()
    num_labels = len(labels[0]) + len(labels[1])
    assert result.ctc == pytest.approx(float(sums.ctc) / num_labels, rel=1e-5)
    assert result.attention == pytest.approx(float(sums.attention) / (num_labels + 2), rel=1e-5)


@torch.no_grad()
def test_labels_that_do_not_fit_their_frames_have_an_infinite_loss(tiny_wavlm_dir):
    """T4: five labels on three frames; a zero loss would have no gradient and stay unnoticed."""
    recogniser = tiny_recogniser(tiny_wavlm_dir).eval()
    batch, labels = make_batch([torch.randn(3, 32)], [[4, 5, 6, 7, 8]], [0], torch.float32)
    encoded = recogniser.encode(batch.features_BTC, batch.num_frames_B)
    assert math.isinf(float(compute_losses(recogniser, encoded, labels).ctc))


def run_with_scaler(wavlm_dir, scaler, max_grad_norm: float, num_updates: int = 3):
    """Run updates with and without readable utterances; return the recogniser and the last result."""
    recogniser = tiny_recogniser(wavlm_dir, dropout=0.0)
    optimizer = build_optimizer(recogniser, OptimizerConfig(learning_rate=0.01))
    features, labels = make_split()
    settings = StepSettings(torch.device("cpu"), torch.float32, 0.3, 0.1, max_grad_norm, augment=None)
    batch = make_batch(features, labels, [0, 1], torch.float32)
    totals = LabelTotals(len(labels[0]) + len(labels[1]), len(labels[0]) + len(labels[1]) + 2)
    losses = wrap_losses(recogniser, Ranks())
    for _ in range(num_updates):
        result = run_update(losses, optimizer, scaler, [batch], totals, settings, Ranks()).read()
    run_update(losses, optimizer, scaler, [], totals, settings, Ranks())  # must not even decay the weights
    return recogniser, result


def test_float16_scales_the_loss_and_nothing_else(tiny_wavlm_dir):
    """Powers of two are exact: if unscaled before clipping, the gradient equals the one without a scale."""
    plain = torch.amp.GradScaler("cpu", enabled=False)
    scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**10, growth_interval=2)
    expected, unscaled = run_with_scaler(tiny_wavlm_dir, plain, max_grad_norm=0.5)
    found, result = run_with_scaler(tiny_wavlm_dir, scaler, max_grad_norm=0.5)
    assert unscaled.grad_norm > 0.5  # it was clipped
    assert result.grad_norm == pytest.approx(unscaled.grad_norm, rel=1e-5)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert scaler.get_scale() > 2.0**10  # it grows while all goes well


def test_float16_lowers_the_scale_when_it_overflows(tiny_wavlm_dir):
    recogniser = tiny_recogniser(tiny_wavlm_dir)
    optimizer = build_optimizer(recogniser, OptimizerConfig(learning_rate=0.1))
    before = {name: tensor.clone() for name, tensor in recogniser.state_dict().items()}
    features, labels = make_split()
    features[0][3, 5] = float("inf")
    batch = make_batch(features, labels, [0, 1], torch.float32)
    settings = StepSettings(torch.device("cpu"), torch.float32, 0.3, 0.1, 1.0, augment=None)
    scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=1024.0)
    losses = wrap_losses(recogniser, Ranks())
    result = run_update(losses, optimizer, scaler, [batch], LabelTotals(9, 11), settings, Ranks()).read()
    assert not result.is_finite and scaler.get_scale() == 512.0
    for name, tensor in recogniser.state_dict().items():
        assert torch.equal(tensor, before[name]), name

"""Learning rate and CTC weight over a run."""

import pytest
import torch

from train.update.schedule import build_optimizer, ctc_weight_at, learning_rate_at, set_learning_rate
from vox.config import OptimizerConfig, TrainConfig


@pytest.mark.parametrize("total", [20, 97, 1000])
def test_learning_rate_is_onecycle(total):
    config = OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.15)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=total, pct_start=0.15, cycle_momentum=False
    )
    for update in range(total):
        assert learning_rate_at(update, total, config) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("total", [1, 2, 9, 10])
def test_a_few_updates_have_a_rate_too(total):
    """torch's OneCycleLR divides by zero when the warm-up is one update long."""
    rates = [learning_rate_at(update, total, OptimizerConfig(warmup_fraction=0.1)) for update in range(total)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0


def test_ctc_weight_moves_over_the_first_half():
    config = TrainConfig(ctc_weight=0.5, ctc_weight_start=0.9)
    weights = [ctc_weight_at(update, 100, config) for update in (0, 25, 50, 99)]
    assert weights == pytest.approx([0.9, 0.7, 0.5, 0.5])
    assert ctc_weight_at(7, 100, TrainConfig(ctc_weight=0.3)) == 0.3


def test_unfrozen_wavlm_layers_may_have_a_peak_of_their_own():
    module = torch.nn.Module()
    module.extractor = torch.nn.ModuleDict({"wavlm": torch.nn.Linear(3, 4)})
    module.encoder = torch.nn.Linear(4, 5)
    config = OptimizerConfig(learning_rate=1e-3, wavlm_learning_rate=1e-5)
    optimizer = build_optimizer(module, config)
    set_learning_rate(optimizer, 5e-4)  # half of the peak
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in module.extractor.parameters():
        assert rates.pop(id(parameter)) == pytest.approx(5e-6)
    assert list(rates.values()) == pytest.approx([5e-4, 5e-4])


def test_vectors_are_not_decayed():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    module[0].weight.requires_grad_(True)
    decayed, rest = build_optimizer(module, OptimizerConfig(weight_decay=0.01)).param_groups
    assert decayed["weight_decay"] == 0.01
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert rest["weight_decay"] == 0.0
    assert len(rest["params"]) == 3

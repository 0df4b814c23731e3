"""What changes from update to update: the learning rate and the CTC weight."""

import math

import torch

from vox.config import Config, OptimizerConfig, TrainConfig

START_DIVISOR = 25.0
END_DIVISOR = 1e4

WAVLM = "extractor.wavlm."  # what the names of WavLM's parameters begin with


def build_optimizer(module: torch.nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW over what is trainable; no weight decay on biases, norms and other vectors.

    Groups differ by weight decay and by peak: WavLM's unfrozen layers may have one of their own. A group's
    `scale` is its peak as a share of the config's learning rate.
    """
    wavlm_scale = (config.wavlm_learning_rate or config.learning_rate) / config.learning_rate
    members: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_vector = parameter.squeeze().ndim < 2
            key = (0.0 if is_vector else config.weight_decay, wavlm_scale if WAVLM in name else 1.0)
            members.setdefault(key, []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "scale": scale}
        for (decay, scale), parameters in members.items()
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def learning_rate_at(update: int, total_updates: int, config: OptimizerConfig) -> float:
    """Return OneCycle's learning rate (Smith and Topin 2017), counting updates from 0.

    Cosine up from 1/25 of the peak over the warm-up, then cosine down to 1/250,000 of it. Equal to torch's
    OneCycleLR with its defaults, but a pure function: resuming needs no state, and a run of a few updates,
    in which torch's divides by zero, has a rate too.
    """
    first, last = config.learning_rate / START_DIVISOR, config.learning_rate / START_DIVISOR / END_DIVISOR
    turn = max(0.0, config.warmup_fraction * total_updates - 1)
    if update <= turn:
        return _cosine(first, config.learning_rate, update / turn if turn else 1.0)
    return _cosine(config.learning_rate, last, (update - turn) / (total_updates - 1 - turn))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group, by its scale."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


def ctc_weight_at(update: int, total_updates: int, config: TrainConfig) -> float:
    """Return CTC's share of the loss: constant, or moving to its value over the first half of the run."""
    if config.ctc_weight_start is None:
        return config.ctc_weight
    passed = min(1.0, update / max(1, total_updates / 2))
    return config.ctc_weight_start + passed * (config.ctc_weight - config.ctc_weight_start)


def count_updates(updates_per_epoch: int, config: Config) -> int:
    """Count the updates of the whole run."""
    planned = updates_per_epoch * config.train.epochs
    return min(planned, config.train.max_updates or planned)


def _cosine(start: float, end: float, passed: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * passed)) / 2

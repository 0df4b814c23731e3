"""What an epoch of a run reads, in which rows, micro-batches and updates."""

from typing import Any

from train.build import Parts
from vox.data.concatenate import RowUpdate, concatenate, keep_apart
from vox.data.plan import plan_epoch, plan_mixed_epoch
from vox.units import seconds_to_samples


def plan_run_epoch(
    parts: Parts, epoch: int, *, micro_batch_utterances: int, world_size: int
) -> list[RowUpdate]:
    """Plan an epoch as the config says, with what is replayed (stage 3) and concatenated."""
    data, split = parts.config.data, parts.train
    limits: dict[str, Any] = {
        "micro_batch_utterances": micro_batch_utterances,
        "micro_batch_length": (
            None if data.micro_batch_seconds is None else seconds_to_samples(data.micro_batch_seconds)
        ),
        "world_size": world_size,
    }
    order: dict[str, Any] = {"seed": parts.config.train.seed, "epoch": epoch}
    target_lengths = split.lengths[: split.num_target]
    if split.num_replayed:
        source_lengths, ratio = split.lengths[split.num_target :], parts.config.adapt.replay
        plan = plan_mixed_epoch(
            target_lengths,
            source_lengths,
            ratio=ratio,
            utterances_per_update=data.utterances_per_update,
            **order,
            **limits,
        )
    else:
        plan = plan_epoch(target_lengths, utterances_per_update=data.utterances_per_update, **order, **limits)
    if not data.concatenate:
        return keep_apart(plan)
    return concatenate(
        plan,
        split.lengths,
        share=data.concatenate,
        max_length=seconds_to_samples(data.concatenate_seconds),
        **order,
        **limits,
    )

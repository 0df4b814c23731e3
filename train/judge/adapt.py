"""Start and end of stage 3: validate and keep the old weights; at the end, interpolate old and new weights.

Weights interpolated between before and after fine-tuning are often better on both domains than either
(WiSE-FT, Wortsman et al., CVPR 2022).
"""

import logging

import torch
from safetensors.torch import load_file

from train.judge.best import record
from train.judge.promise import keeps_promise, make_promise
from train.judge.validate import DevResult, validate_unless_stopped
from train.state import Run
from train.update.ema import find_learning
from train.update.l2_sp import L2Sp
from vox.checkpoint.integrity import find_damage
from vox.disk import replace_link
from vox.errors import CheckpointError
from vox.runs.layout import BEFORE, MODEL, checkpoint_name

log = logging.getLogger(__name__)

NUM_STEPS = 10  # of alpha, from 0 (the old weights) to 1 (the new ones)


def begin_adaptation(run: Run) -> None:
    """Validate the old weights on both dev splits, set the source's limit, and keep them as `before`."""
    result = validate_unless_stopped(run)
    assert result.source is not None
    run.progress.promise = make_promise(result.source, run.parts.config.adapt.tolerance)
    log.info(
        "before training: %s %s %.2f %%; it may rise to %.2f %%",
        result.source.split,
        result.rate,
        100 * run.progress.promise["wer"],
        100 * run.progress.promise["limit"],
    )
    record(run, {"raw": result})
    run.writer.wait()
    link_before(run)


def link_before(run: Run) -> None:
    """Link `before` to the checkpoint of the old weights, so that it stays; call this on every rank."""
    folder = run.checkpoints_dir / checkpoint_name(0, "validated")
    if run.ranks.is_first and folder.exists():
        replace_link(run.run_dir / BEFORE, folder)
    run.ranks.wait()


def start_l2_sp(run: Run, *, is_resumed: bool) -> L2Sp | None:
    """Make the pull towards the old weights (adapt.l2_sp), if the config asks for it.

    A resumed run reads the old weights from `before`, which has them to the bit. Raises CheckpointError if
    that is missing or damaged.
    """
    strength = run.parts.config.adapt.l2_sp
    if run.parts.source_dev is None or strength == 0:
        return None
    learning = find_learning(run.parts.recogniser)
    if not is_resumed:
        if run.backup is not None:
            log.warning(
                "adapt.l2_sp: a backup has no old weights (%s): no run can be resumed from it",
                BEFORE,
            )
        return L2Sp(learning, strength)
    before = run.run_dir / BEFORE
    damage = find_damage(before) if before.exists() else "a backup has none"
    if damage is not None:
        raise CheckpointError(
            f"the old weights, which adapt.l2_sp pulls towards, are missing or damaged ({damage})",
            where=before,
            remedy="start another run",
        )
    return L2Sp(learning, strength, load_file(before / MODEL))


def interpolate_at_the_end(run: Run) -> None:
    """Validate weights between old and new; the best of those within the limit may become `best`."""
    if run.parts.source_dev is None or run.progress.weights == "interpolated":  # done before the resume
        return
    before = run.run_dir / BEFORE / MODEL
    if not before.exists():
        log.warning("%s is missing (a backup does not keep it): weights are not interpolated", before.parent)
        return
    learning = find_learning(run.parts.recogniser)
    stored = load_file(before)
    old = {name: stored[name] for name in learning}
    new = {name: parameter.detach().cpu().clone() for name, parameter in learning.items()}
    found: dict[float, DevResult] = {}
    for alpha in (step / NUM_STEPS for step in range(NUM_STEPS + 1)):
        put_between(learning, old, new, alpha)
        found[alpha] = validate_unless_stopped(run)
        _write_point(run, alpha, found[alpha])
    kept = {alpha: each for alpha, each in found.items() if keeps_promise(run.progress.promise, each)}
    best = min(kept, key=lambda alpha: kept[alpha].rank, default=None)
    if best is None:
        rate = run.parts.tokenizer.rate
        log.warning(
            "no weights between the old and the new ones are within the limit of the source's %s", rate
        )
        return
    log.info("the best weights between old (0) and new (1) are at alpha %.1f", best)
    put_between(learning, old, new, best)
    if not record(run, {"interpolated": found[best]}, can_be_worse=False):
        log.info("they are not better than the best checkpoint, which is kept")


def put_between(
    learning: dict[str, torch.nn.Parameter],
    old: dict[str, torch.Tensor],
    new: dict[str, torch.Tensor],
    alpha: float,
) -> None:
    """Set parameters to (1 - alpha) old + alpha new, in float64; at 0 and 1 that is exact."""
    with torch.no_grad():
        for name, parameter in learning.items():
            between = (1 - alpha) * old[name].double() + alpha * new[name].double()
            parameter.copy_(between.to(parameter.dtype))


def _write_point(run: Run, alpha: float, result: DevResult) -> None:
    assert result.source is not None
    target, source = min(result.wer.values()), min(result.source.wer.values())
    run.write("interpolation", run.progress.update, {"alpha": alpha, "wer": target, "source_wer": source})
    log.info("alpha %.1f: %s %.2f %%, source %.2f %%", alpha, result.rate, 100 * target, 100 * source)

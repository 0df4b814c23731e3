"""Record dev results, and decide which checkpoint is `best`."""

import json
import logging
import math
from collections.abc import Mapping

from train.judge.promise import keeps_promise
from train.judge.validate import DevResult
from train.save import save_run
from train.state import Run
from vox.runs.layout import Kind, Weights, checkpoint_name

log = logging.getLogger(__name__)


def record(run: Run, results: Mapping[Weights, DevResult], *, can_be_worse: bool = True) -> bool:
    """Log dev results, keyed by the weights they belong to; save a checkpoint, as `best` if it is the best.

    The better of the results represents the checkpoint. In stage 3, a result within the limit of the source's
    WER (T15) ranks before one above it, and a result above the limit is never `best`. can_be_worse: save the
    checkpoint even if it is not the best. Returns whether it is.
    """
    progress = run.progress
    weights, result = min(
        results.items(), key=lambda item: (not keeps_promise(progress.promise, item[1]), item[1].rank)
    )
    is_kept = keeps_promise(progress.promise, result)
    rank = list(result.rank)
    is_best = is_kept and math.isfinite(rank[1]) and (progress.best is None or rank < progress.best)
    for name, each in results.items():
        event = "dev" if name == "raw" else f"dev_{name}"
        figures = {"epoch": progress.epoch, "is_best": is_best and name == weights} | each.scalars()
        run.write(event, progress.update, figures)
        _log_result(run, name, each, is_best=is_best and name == weights)
    for example in result.examples:
        run.write_text(f"dev/{example['id']}", progress.update, json.dumps(example, indent=1))
    if is_best:
        progress.best = rank
    if is_best or can_be_worse:
        progress.dev = result.to_dict() | {"rank": rank, "update": progress.update}
        progress.weights = weights
        kind: Kind = "validated" if weights == "raw" or weights == "ema" else weights
        save_run(run, checkpoint_name(progress.update, kind), is_best=is_best)
    return is_best


def _log_result(run: Run, weights: str, result: DevResult, *, is_best: bool) -> None:
    log.info(
        "epoch %d of %d%s: dev CTC %.4f, attention %.4f a label; %s %s%s%s",
        run.progress.epoch,
        run.parts.config.train.epochs,
        "" if weights == "raw" else f", {weights} weights",
        result.ctc,
        result.attention,
        result.rate,
        ", ".join(f"{name} {100 * wer:.2f} %" for name, wer in result.wer.items()),
        f"; {result.num_truncated} hypotheses cut at the length limit" if result.num_truncated else "",
        "; best so far" if is_best else "",
    )
    for split, wers in result.wer_by_split.items():
        rates = ", ".join(f"{name} {100 * wer:.2f} %" for name, wer in wers.items())
        log.info("%s: %s %s", split, result.rate, rates)
    if result.source is not None and run.progress.promise is not None:
        log.info(
            "source %s: %s %s%s",
            result.source.split,
            result.rate,
            ", ".join(f"{name} {100 * wer:.2f} %" for name, wer in result.source.wer.items()),
            ""
            if keeps_promise(run.progress.promise, result)
            else f"; above {100 * run.progress.promise['limit']:.2f} %: forgotten, so this cannot be best",
        )

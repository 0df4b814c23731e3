"""Record dev results, and decide which checkpoint is `best`."""

import json
import logging
import math
from collections.abc import Mapping

from train.judge.promise import keeps_promise
from train.judge.validate import UNDECIDED_WER, DevResult
from train.progress import Progress
from train.save import save_run
from train.state import Run
from vox.bootstrap import compare_rates, measure_rates
from vox.runs.layout import Kind, Weights, checkpoint_name

log = logging.getLogger(__name__)


def judge(progress: Progress, result: DevResult, *, must_be_lowest: bool = False) -> str:
    """Say why a result's weights are the best so far, in words for the log; "" if they are not.

    `best` is the newest checkpoint that is not clearly worse than the lowest. The lowest of many WERs is low
    by luck too, and the newest weights have the lowest learning rate (docs/training.md). Weights from before
    the first update have to be improved on. In stage 3, a result above the limit of the source's WER (T15) is
    never `best`.

    Keeps in `progress` what later results are compared with.
    """
    rank = list(result.rank)
    if not (keeps_promise(progress.promise, result) and math.isfinite(rank[1])):
        return ""
    if progress.best is None or rank < progress.best:
        if progress.update == 0:
            progress.start_wer = rank[0]
        if progress.best is None or progress.best_limit is not None:
            progress.best_limit = result.noise_end
        progress.best, progress.lowest_digest = rank, result.split_digest
        progress.lowest_errors = " ".join(map(str, result.errors[result.better]))
        return "best so far"
    below = UNDECIDED_WER if progress.start_wer is None else min(UNDECIDED_WER, progress.start_wer)
    if must_be_lowest or rank[0] >= below or progress.best_limit is None:
        return ""
    if rank[0] > progress.best_limit or _is_clearly_worse(progress, result):
        return ""
    return f"best now: newer, and not clearly worse than {100 * progress.best[0]:.2f} %"


def _is_clearly_worse(progress: Progress, result: DevResult) -> bool:
    """Say whether the 95 % interval of the difference from the lowest result excludes 0 (paired bootstrap).

    Where other utterances could be read this time, it cannot be said.
    """
    if progress.lowest_digest != result.split_digest:
        return True
    before, now = list(map(int, progress.lowest_errors.split())), result.errors[result.better]
    rates = measure_rates({"before": before, "now": now}, result.num_words, range(len(now)))
    return compare_rates(rates["before"], rates["now"]).interval[0] > 0


def record(run: Run, results: Mapping[Weights, DevResult], *, can_be_worse: bool = True) -> bool:
    """Log dev results, keyed by the weights they belong to; save a checkpoint, as `best` if it is the best.

    The better of the results represents the checkpoint. In stage 3, a result within the limit of the source's
    WER ranks before one above it. can_be_worse: save the checkpoint even if it is not the best; False: it
    must be the lowest to be saved. Returns whether it is the best.
    """
    progress = run.progress
    weights, result = min(
        results.items(), key=lambda item: (not keeps_promise(progress.promise, item[1]), item[1].rank)
    )
    verdict = judge(progress, result, must_be_lowest=not can_be_worse)
    is_best = bool(verdict)
    for name, each in results.items():
        event = "dev" if name == "raw" else f"dev_{name}"
        figures = {"epoch": progress.epoch, "is_best": is_best and name == weights} | each.scalars()
        run.write(event, progress.update, figures)
        _log_result(run, name, each, verdict if name == weights else "")
    for example in result.examples:
        run.write_text(f"dev/{example['id']}", progress.update, json.dumps(example, indent=1))
    if is_best or can_be_worse:
        progress.dev = result.to_dict() | {"update": progress.update}
        progress.weights = weights
        kind: Kind = "validated" if weights == "raw" or weights == "ema" else weights
        save_run(run, checkpoint_name(progress.update, kind), is_best=is_best)
    return is_best


def _log_result(run: Run, weights: str, result: DevResult, verdict: str) -> None:
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
        f"; {verdict}" if verdict else "",
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

"""The promise of adaptation (T15): the source's dev WER must not rise above a limit."""

import logging

from train.judge.validate import DevResult

log = logging.getLogger(__name__)

Promise = dict[str, float]  # "wer": of the source's dev split before training; "limit": its maximum after


def make_promise(before: DevResult, tolerance: float | None) -> Promise:
    """Return the source's dev WER before training and its limit from now on.

    before: of the source's dev split, with intervals. The better decoder counts, as in `rank_result`.
    tolerance: how much the WER may rise; None: up to the upper end of its 95 % confidence interval.
    """
    decoder = min(before.wer, key=lambda name: before.wer[name])
    wer = before.wer[decoder]
    limit = before.wer_upper[decoder] if tolerance is None else wer + tolerance
    return {"wer": wer, "limit": limit}


def keeps_promise(promise: Promise | None, result: DevResult) -> bool:
    """Return whether the source's WER with these weights is within the limit; True without a promise."""
    if promise is None:
        return True
    assert result.source is not None
    return min(result.source.wer.values()) <= promise["limit"]

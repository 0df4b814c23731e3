"""The promise of adaptation (T15) for dev results: the source's WER must not rise above a limit."""

from train.judge.validate import DevResult
from vox.promise import Promise, is_kept
from vox.promise import make_promise as make_promise_of_rates


def make_promise(before: DevResult, tolerance: float | None) -> Promise:
    """Return the source's dev WER before training and its limit from now on.

    before: of the source's dev split, with intervals. The better decoder counts, as in `rank_result`.
    tolerance: how much the WER may rise; None: up to the upper end of its 95 % confidence interval.
    """
    return make_promise_of_rates(before.wer, before.wer_upper, tolerance)


def keeps_promise(promise: Promise | None, result: DevResult) -> bool:
    """Return whether the source's WER with these weights is within the limit; True without a promise."""
    if promise is None:
        return True
    assert result.source is not None
    return is_kept(promise, min(result.source.wer.values()))

"""The rule of adaptation (T15): the source's dev WER must not rise above a limit."""

from collections.abc import Mapping

Promise = dict[str, float]  # "wer": of the source's dev split before adaptation; "limit": its maximum after


def make_promise(
    wer: Mapping[str, float], wer_upper: Mapping[str, float], tolerance: float | None
) -> Promise:
    """Return the source's dev WER before adaptation and its limit from now on.

    wer: by decoder; the lowest counts. wer_upper: the upper ends of their 95 % confidence intervals.
    tolerance: how much the WER may rise; None: up to the upper end of its interval.
    """
    decoder = min(wer, key=lambda name: wer[name])
    return {
        "wer": wer[decoder],
        "limit": wer_upper[decoder] if tolerance is None else wer[decoder] + tolerance,
    }


def is_kept(promise: Promise, wer: float) -> bool:
    """Return whether a WER of the source after adaptation is within the limit."""
    return wer <= promise["limit"]

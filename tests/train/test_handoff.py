"""The handoff check itself (T8)."""

import math

import pytest

from train.judge.handoff import check_handoff
from train.judge.validate import DevResult
from vox.errors import HandoffError

RECORDED = {"split": "dev", "split_digest": "aa", "ctc": 1.0, "attention": 1.0}


def measure(ctc: float, attention: float) -> DevResult:
    return DevResult("dev", "aa", ctc, attention, {"ctc": 0.1, "attention": 0.1}, 0, 1.0, [])


def test_the_same_loss_passes_and_is_told():
    assert check_handoff(RECORDED, measure(1.004, 0.999), 0.3, "best") == pytest.approx(0.0005, abs=1e-9)
    assert check_handoff(RECORDED, measure(1.03, 0.98), 0.3, "best") < 0.01  # the weighted sum counts


@pytest.mark.parametrize(
    ("ctc", "attention", "cause"),
    [
        (3.9, 3.9, "frozen layers in training mode"),  # what the replaced system called expected
        (1.02, 1.02, "frozen layers in training mode"),
        (0.9, 0.9, "not those that were validated"),
        (1.0, 2.0, "not those that were validated"),
        (math.nan, math.nan, "not those that were validated"),
        (math.inf, 1.0, "not those that were validated"),
    ],
)
def test_another_loss_is_refused_with_its_likely_cause(ctc, attention, cause):
    with pytest.raises(HandoffError, match=cause):
        check_handoff(RECORDED, measure(ctc, attention), 0.3, "best")


def test_other_dev_splits_are_refused_with_those_to_name():
    with pytest.raises(HandoffError, match="pass --dev-split dev --dev-split other"):
        check_handoff(RECORDED | {"split": "dev+other"}, measure(1.0, 1.0), 0.3, "best")

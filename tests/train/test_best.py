"""Which checkpoint is `best`."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from train.judge.best import judge, record
from train.judge.validate import DevResult
from train.progress import Progress

NUM_WORDS = [5] * 100  # of each utterance


def measure(wer: float, loss: float = 1.0, first: int = 0) -> DevResult:
    """Return a result whose attention decoder has this WER: one error in utterances from `first` on."""
    num_errors = round(sum(NUM_WORDS) * wer)
    errors = [1 if first <= k < first + num_errors else 0 for k in range(100)]
    if num_errors > 100:
        errors = [num_errors // 100] * 100
    wers, uppers = {"ctc": wer + 0.01, "attention": wer}, {"ctc": 9.9, "attention": 1.5 * wer}
    both = {"ctc": [99] * 100, "attention": errors}
    return DevResult(
        "dev", "aa", loss, loss, wers, 0, 1.0, [], wer_upper=uppers, errors=both, num_words=NUM_WORDS
    )


def judge_all(results: list[DevResult], progress: Progress | None = None) -> list[bool]:
    """Judge them one after the other, the first of them after an epoch; return which were best."""
    progress = progress or Progress()
    verdicts = []
    for result in results:
        progress.update += 1
        verdicts.append(bool(judge(progress, result)))
    return verdicts


def test_a_newer_one_is_best_unless_it_is_clearly_worse_than_the_lowest() -> None:
    """Errors in other utterances: 10 against 14 is luck, 10 against 30 is not."""
    lowest, luck, worse = measure(0.02), measure(0.028, first=50), measure(0.06, first=50)
    assert judge_all([measure(0.08), lowest, luck, worse, luck]) == [True, True, True, False, True]


def test_results_are_compared_utterance_by_utterance() -> None:
    """The same errors and a few more are clearly worse, where as many others are not."""
    lowest = measure(0.10)
    assert judge_all([lowest, measure(0.112)]) == [True, False]
    assert judge_all([lowest, measure(0.112, first=44)]) == [True, True]


def test_each_is_compared_with_the_lowest_and_not_with_the_last() -> None:
    second, third = measure(0.034, first=30), measure(0.046, first=60)
    assert judge_all([second, third]) == [True, True]
    assert judge_all([measure(0.02), second, third]) == [True, True, False]


def test_what_a_few_utterances_add_is_bounded() -> None:
    """A decoder that goes round in one of a hundred utterances: a bootstrap often leaves that one out."""
    lowest, looping = measure(0.1), measure(0.1)
    looping = replace(looping, wer={"attention": 0.3}, errors={"attention": [*[1] * 50, *[0] * 49, 100]})
    assert judge_all([lowest, looping]) == [True, False]
    wider = replace(lowest, wer_upper={"attention": 0.21})  # twice 0.11 above 0.1
    assert judge_all([wider, looping]) == [True, True]


def test_one_utterance_of_the_same_wer_is_not_clearly_worse() -> None:
    """Its interval has no width."""
    one = {"errors": {"attention": [1]}, "num_words": [5], "wer": {"attention": 0.2}}
    result = replace(measure(0.2), **one, wer_upper={"attention": 0.2})
    assert judge_all([result, replace(result, ctc=2.0)]) == [True, True]


def test_means_and_interpolations_have_to_be_the_lowest(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[bool] = []
    monkeypatch.setattr("train.judge.best.save_run", lambda run, name, *, is_best: saved.append(is_best))
    config = SimpleNamespace(train=SimpleNamespace(epochs=9))
    run: Any = SimpleNamespace(
        progress=Progress(update=1), parts=SimpleNamespace(config=config), write=lambda *_: None
    )
    assert record(run, {"raw": measure(0.02)})
    newer = measure(0.024, first=50)
    assert not record(run, {"average": newer}, can_be_worse=False) and saved == [True]
    assert record(run, {"raw": newer}) and saved == [True, True]
    assert record(run, {"interpolated": measure(0.018)}, can_be_worse=False)


def test_the_same_wer_with_other_losses_is_not_clearly_worse() -> None:
    assert judge_all([measure(0.1, 1.0), measure(0.1, 2.0), measure(0.1, 0.5)]) == [True] * 3


def test_where_other_utterances_were_read_only_a_lower_wer_is_better() -> None:
    other = replace(measure(0.02), split_digest="bb")
    assert judge_all([measure(0.02), other, measure(0.02)]) == [True, False, True]
    assert judge_all([measure(0.02), replace(other, wer={"attention": 0.01})]) == [True, True]


def test_a_run_of_a_version_that_chose_the_lowest_goes_on_so() -> None:
    progress = Progress(best=[0.02, 2.0], update=5)
    assert judge_all([measure(0.024, first=50), measure(0.01), measure(0.01, 2.0)], progress) == [
        False,
        True,
        False,
    ]


def test_where_the_best_checkpoint_is_lost_the_start_still_counts() -> None:
    progress = Progress(start_wer=0.1, update=5)
    assert judge_all([measure(0.08), measure(0.11, first=50)], progress) == [True, False]


def test_the_weights_that_a_stage_begins_with_have_to_be_improved_on() -> None:
    progress = Progress()
    assert judge(progress, measure(0.10))  # before the first update
    assert judge_all([measure(0.12), measure(0.10, 2.0)], progress) == [False, False]
    # A better one opens the way for newer ones, but never for one that is worse than the start.
    newer = [measure(0.094, first=50), measure(0.104, first=50)]
    assert judge_all([measure(0.09), *newer], progress) == [True, True, False]


def test_while_every_word_is_wrong_the_losses_decide_and_nothing_else() -> None:
    results = [measure(1.0, 5.0), measure(0.95, 6.0), measure(2.0, 4.0), measure(0.8, 9.0)]
    assert judge_all(results) == [True, False, True, True]


def test_a_loss_that_is_not_finite_is_never_best() -> None:
    assert judge_all([measure(0.5, math.nan), measure(0.5), measure(0.1, math.inf)]) == [False, True, False]


@pytest.mark.parametrize("source_wer", [0.2, 0.4])
def test_what_forgets_the_source_is_not_best_however_good(source_wer: float) -> None:
    progress = Progress(promise={"wer": 0.2, "limit": 0.3})
    result = replace(measure(0.1), source=measure(source_wer))
    assert judge_all([result], progress) == [source_wer <= 0.3]


def test_a_decoder_that_babbles_does_not_decide() -> None:
    """Early in training, attention may insert many times the words of the reference: then losses decide."""
    silent = replace(measure(1.0, 10.0), wer={"ctc": 1.0, "attention": 1.0})
    babbling = replace(measure(1.0, 4.0), wer={"ctc": 1.0, "attention": 4.0})
    learnt = replace(measure(1.0, 5.0), wer={"ctc": 0.89, "attention": 1.0})
    assert learnt.rank < babbling.rank < silent.rank


def test_the_better_decoder_decides_then_the_losses() -> None:
    attention_better = replace(measure(1.0, 1.0), wer={"ctc": 0.07, "attention": 0.003})
    ctc_better = replace(measure(1.0, 0.5), wer={"ctc": 0.01, "attention": 0.011})
    assert attention_better.rank < ctc_better.rank
    lower_loss = replace(measure(1.0, 0.9), wer={"ctc": 0.5, "attention": 0.003})
    assert lower_loss.rank < attention_better.rank


def test_where_only_the_decoder_learns_ctc_does_not_decide() -> None:
    first, second = (
        replace(measure(1.0), wer=wer)
        for wer in ({"ctc": 0.3, "attention": 0.6}, {"ctc": 0.4, "attention": 0.5})
    )
    assert first.rank < second.rank and first.better == "ctc"
    first, second = (replace(each, source=each.of_attention_alone()) for each in (first, second))
    assert first.rank > second.rank and first.better == "attention"

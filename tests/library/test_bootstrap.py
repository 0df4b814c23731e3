"""Bootstrap intervals: cases with a known distribution, and agreement with a slow implementation."""

import random
from math import comb

import numpy as np
import pytest

from vox.bootstrap import compare_rates, find_upper_end, measure_rates


def test_two_units_have_the_three_rates_that_they_can_have() -> None:
    # One word each, one of them wrong: both right, one of each, both wrong: 1/4, 1/2, 1/4.
    rate = measure_rates({"a": [0, 1]}, [1, 1], ["u", "v"], num_draws=4000)["a"]
    assert rate.value == 0.5
    assert rate.interval == (0.0, 1.0)
    shares = [float((rate.draws_R == value).mean()) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_the_interval_of_independent_words_is_the_binomial_one() -> None:
    num_words, num_errors = 400, 80
    errors = [1] * num_errors + [0] * (num_words - num_errors)
    low, high = measure_rates({"a": errors}, [1] * num_words, range(num_words), num_draws=4000)["a"].interval
    share = num_errors / num_words
    weights = [comb(num_words, k) * share**k * (1 - share) ** (num_words - k) for k in range(num_words + 1)]
    below = np.cumsum(weights)
    expected = (np.searchsorted(below, 0.025) / num_words, np.searchsorted(below, 0.975) / num_words)
    assert (low, high) == pytest.approx(expected, abs=0.005)


def test_a_rate_is_a_sum_over_a_sum_in_every_draw() -> None:
    # A word that is wrong and nine that are right: the mean of the two rates would be 0.5.
    rate = measure_rates({"a": [1, 0]}, [1, 9], ["short", "long"])["a"]
    assert rate.value == pytest.approx(0.1)
    assert set(rate.draws_R) == {0.0, 0.1, 1.0}


def test_a_draw_without_a_word_is_left_out() -> None:
    # Nothing was said, and a word inserted: that unit can be drawn alone, and then there is no rate.
    rates = measure_rates({"a": [1, 0], "b": [0, 1]}, [0, 2], ["silent", "spoken"])
    assert (rates["a"].value, rates["b"].value) == (0.5, 0.5)
    assert len(rates["a"].draws_R) == len(rates["b"].draws_R) < 1000
    assert set(rates["a"].draws_R) == {0.0, 0.5}


def test_a_speakers_utterances_are_drawn_together() -> None:
    errors, speakers = [0] * 50 + [1] * 50, ["right"] * 50 + ["wrong"] * 50
    by_speaker = measure_rates({"a": errors}, [1] * 100, speakers)["a"]
    by_utterance = measure_rates({"a": errors}, [1] * 100, range(100))["a"]
    assert by_speaker.interval == (0.0, 1.0)
    low, high = by_utterance.interval
    assert 0.35 < low < 0.45 and 0.55 < high < 0.65


def test_a_slow_draw_gives_the_same_interval() -> None:
    generator = random.Random(5)
    lengths = [generator.randint(1, 12) for _ in range(40)]
    errors = [generator.randint(0, length) for length in lengths]
    units = [generator.randint(0, 14) for _ in lengths]
    low, high = measure_rates({"a": errors}, lengths, units, num_draws=4000)["a"].interval

    rates = []
    for _ in range(4000):
        drawn = generator.choices(sorted(set(units)), k=len(set(units)))
        rows = [row for unit in drawn for row in zip(units, errors, lengths, strict=True) if row[0] == unit]
        rates.append(sum(row[1] for row in rows) / sum(row[2] for row in rows))
    rates.sort()
    assert (low, high) == pytest.approx((rates[100], rates[3900]), abs=0.01)


def test_systems_are_compared_on_the_same_draws() -> None:
    # Half of the utterances are hard for both; the second makes one error less in every utterance.
    first = [9, 1] * 50
    rates = measure_rates({"a": first, "b": [count - 1 for count in first]}, [10] * 100, range(100))
    difference = compare_rates(rates["a"], rates["b"])
    assert rates["a"].interval[0] < rates["b"].interval[1], "each alone is too uncertain to tell"
    assert difference.value == pytest.approx(-0.1)
    assert difference.interval == pytest.approx((-0.1, -0.1))
    assert difference.probability == 1.0
    assert compare_rates(rates["b"], rates["a"]).probability == 0.0
    assert compare_rates(rates["a"], rates["a"]).probability == 0.5


def test_the_same_counts_have_the_same_interval_whatever_stands_beside_them() -> None:
    alone = measure_rates({"a": [0, 1, 2]}, [3, 3, 3], range(3))
    beside = measure_rates({"b": [1, 1, 1], "a": [0, 1, 2]}, [3, 3, 3], range(3))
    assert np.array_equal(alone["a"].draws_R, beside["a"].draws_R)


def test_a_set_without_errors_has_an_upper_end() -> None:
    """The rule of three: with 300 words and no error, 1 % is still likely enough."""
    rates = measure_rates({"none": [0] * 10, "some": [3] + [0] * 9}, [30] * 10, range(10))
    assert find_upper_end(rates["none"], 300) == pytest.approx(0.01)
    assert find_upper_end(rates["some"], 300) == rates["some"].interval[1] > 0.01

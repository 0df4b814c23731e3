"""Confidence intervals of error rates by bootstrap (Bisani and Ney, ICASSP 2004).

An error rate is a sum over a sum: the errors of a set over its words. The units of the set are drawn with
replacement, as many as there are, again and again, and the rate is taken of each draw: its spread is the
uncertainty. A unit is a speaker where speakers are known, because a speaker's utterances have their errors in
common; else it is an utterance. Systems are compared on the same draws, so that what is hard for both of
them cancels out.

Shape suffixes: N utterances, U units, R draws.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NUM_DRAWS = 1000
LEVEL = 0.95
SEED = 0

Interval = tuple[float, float]


@dataclass(frozen=True)
class Rate:
    """An error rate (1.0 = as many errors as words) and the same rate of every draw."""

    value: float
    draws_R: np.ndarray  # float64

    @property
    def interval(self) -> Interval:
        """Return the bounds that LEVEL of the draws lie between."""
        return _find_interval(self.draws_R)


@dataclass(frozen=True)
class Difference:
    """How much lower the second of two rates is: below 0 where the second is better."""

    value: float  # second - first
    interval: Interval
    probability: float  # share of the draws in which the second is lower; a tie counts half


def measure_rates(
    errors: Mapping[str, Sequence[int]],
    lengths_N: Sequence[int],
    units_N: Sequence[Hashable],
    num_draws: int = NUM_DRAWS,
    seed: int = SEED,
) -> dict[str, Rate]:
    """Return every system's error rate with its draws; the draws are the same for all systems.

    errors: by system, the errors of each utterance. lengths_N: words (or characters) in each reference, at
    least 1 in all. units_N: the unit that each utterance belongs to. A draw without a word has no rate and is
    left out.
    """
    assert sum(lengths_N) > 0, "no word to measure a rate against"
    columns_NC = np.array([lengths_N, *errors.values()], dtype=np.float64).T
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units_N))}
    sums_UC = np.zeros((len(numbers), columns_NC.shape[1]))
    np.add.at(sums_UC, [numbers[unit] for unit in units_N], columns_NC)
    drawn_RC = _draw_sums(sums_UC, num_draws, seed)
    drawn_RC = drawn_RC[drawn_RC[:, 0] > 0]
    totals_C = sums_UC.sum(axis=0)
    return {
        name: Rate(float(totals_C[column] / totals_C[0]), drawn_RC[:, column] / drawn_RC[:, 0])
        for column, name in enumerate(errors, start=1)
    }


def find_upper_end(rate: Rate, num_words: int) -> float:
    """Return the upper end of a rate's 95 % interval; without any error 3 / words, the rule of three.

    Every draw of a set without errors is 0, which would be an interval without width.
    """
    return rate.interval[1] if rate.value > 0 else min(1.0, 3 / num_words)


def find_upper_ends(
    errors: Mapping[str, Sequence[int]], lengths_N: Sequence[int], units_N: Sequence[Hashable]
) -> dict[str, float]:
    """Return the upper end of every system's interval; arguments as in `measure_rates`."""
    rates = measure_rates(errors, lengths_N, units_N)
    return {name: find_upper_end(rate, sum(lengths_N)) for name, rate in rates.items()}


def compare_rates(first: Rate, second: Rate) -> Difference:
    """Compare two rates of one `measure_rates`."""
    differences_R = second.draws_R - first.draws_R
    lower, equal = (differences_R < 0).mean(), (differences_R == 0).mean()
    return Difference(second.value - first.value, _find_interval(differences_R), float(lower + equal / 2))


def _draw_sums(sums_UC: np.ndarray, num_draws: int, seed: int) -> np.ndarray:
    """Sum the columns over each draw of units: [R, C]."""
    generator = np.random.default_rng(seed)
    num_units = len(sums_UC)
    # A row at a time: 1,000 draws of 100,000 utterances at once would take a gigabyte.
    return np.stack(
        [
            np.bincount(generator.integers(num_units, size=num_units), minlength=num_units) @ sums_UC
            for _ in range(num_draws)
        ]
    )


def _find_interval(values_R: np.ndarray) -> Interval:
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)

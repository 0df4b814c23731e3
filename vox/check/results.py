"""What a check finds, and how checks run: one after the other, none stopped by another's error."""

import gc
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from tqdm import tqdm

log = logging.getLogger(__name__)

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Promise:
    """One promise, measured: kept while its figure is at most its bound."""

    name: str  # T1 to T15, as the README and docs name them; empty for what has no number
    what: str
    figure: float
    bound: float

    @property
    def is_kept(self) -> bool:
        """Say whether it is kept; a figure that is NaN breaks it."""
        return self.figure <= self.bound


@dataclass(frozen=True)
class Rate:
    """One measured speed or size. `key` names it for the plan and for scripts."""

    key: str
    what: str
    value: float
    unit: str
    share: float | None = None  # of the measured matrix rate
    note: str = ""


@dataclass(frozen=True)
class Failure:
    """A step that raised an error instead of finding anything."""

    title: str
    error: str


Finding = Promise | Rate | Failure


@dataclass(frozen=True)
class Step(Generic[Subject]):
    """Something to check: its name while it runs, and the function that does it."""

    title: str
    run: Callable[[Subject], Iterable[Promise | Rate]]


@dataclass
class Findings:
    """Everything found, in order, and the seconds that each step took."""

    promises: list[Promise] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Say whether every promise is kept and every step came to its end."""
        return not self.failures and all(promise.is_kept for promise in self.promises)

    def value(self, key: str) -> float | None:
        """Return a rate by its key; None where it was not measured, or is not finite."""
        for rate in self.rates:
            if rate.key == key and math.isfinite(rate.value):
                return rate.value
        return None

    def add(self, finding: Finding) -> None:
        """Add one finding."""
        match finding:
            case Promise():
                self.promises.append(finding)
            case Rate():
                self.rates.append(finding)
            case Failure():
                self.failures.append(finding)


def run_steps(
    steps: Sequence[Step[Subject]],
    subject: Subject,
    findings: Findings,
    show: Callable[[Finding], None] = lambda _: None,
) -> None:
    """Run each step, add what it finds, and show it at once.

    An error ends its own step only: on a new machine everything else is still worth knowing.
    """
    bar = tqdm(steps, unit="step", leave=False, disable=None)
    for step in bar:
        bar.set_description(step.title)
        if bar.disable:
            log.info("checking: %s", step.title)
        start = time.perf_counter()
        try:
            for finding in step.run(subject):
                findings.add(finding)
                show(finding)
        except Exception as error:  # a device raises kinds of its own
            failure = Failure(step.title, f"{type(error).__name__}: {' '.join(str(error).split())}")
            findings.add(failure)
            show(failure)
            log.debug("%s", step.title, exc_info=True)
        findings.seconds[step.title] = time.perf_counter() - start
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()

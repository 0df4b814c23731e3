"""Progress: lines where there is no terminal, a bar where there is one."""

import io
import sys
from collections.abc import Callable

import pytest

from vox import progress
from vox.progress import MEGABYTES, ProgressBar, format_duration

Wait = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Return what moves the clock on, by seconds."""
    now = 100.0

    def move_on(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    return move_on


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what takes the lines that were logged since."""
    caplog.set_level("INFO", "vox.progress")

    def take() -> list[str]:
        messages = [record.message for record in caplog.records]
        caplog.clear()
        return messages

    return take


def test_lines_come_early_then_seldom_and_at_the_end(wait: Wait, lines: Callable[[], list[str]]) -> None:
    with ProgressBar(1000.0, "dev") as bar:
        wait(4.9)
        bar.add(49.0)
        assert lines() == []
        wait(0.1)
        bar.add(51.0)
        assert lines() == ["dev: 100 of 1000 s of audio, 20.0 times real time, 45.0 s left"]
        wait(29.9)
        bar.add(0.0)
        assert lines() == []
        wait(0.1)
        bar.add(600.0)
        assert lines() == ["dev: 700 of 1000 s of audio, 20.0 times real time, 15.0 s left"]
        wait(30.0)
        bar.add(600.0)  # more than was expected
        assert lines() == ["dev: 1300 of 1000 s of audio, 20.0 times real time, 0.0 s left"]
    assert lines() == ["dev: 1300 s of audio in 1 min 05 s, 20.0 times real time"]


def test_a_rate_is_of_this_process_and_a_total_need_not_be_known(
    wait: Wait, lines: Callable[[], list[str]]
) -> None:
    for total, expected in (
        (100e6, "fetched: 50 of 100 MB, 2.0 MB/s, 25.0 s left"),
        (None, "fetched: 50 MB, 2.0 MB/s"),
    ):
        with ProgressBar(total, "fetched", MEGABYTES, done=40e6) as bar:
            wait(5.0)
            bar.add(10e6)
        assert lines() == [expected, "fetched: 50 MB in 5.0 s, 2.0 MB/s"]


def test_before_anything_is_done_no_time_left_is_known(wait: Wait, lines: Callable[[], list[str]]) -> None:
    with ProgressBar(10.0, "dev") as bar:
        wait(5.0)
        bar.add(0.0)
    assert lines()[0] == "dev: 0 of 10 s of audio, 0.0 times real time"


def test_after_an_error_nothing_is_said_to_be_done(wait: Wait, lines: Callable[[], list[str]]) -> None:
    with pytest.raises(OSError), ProgressBar(10.0, "dev") as bar:
        wait(1.0)
        bar.add(10.0)
        raise OSError
    assert lines() == []


def test_work_with_a_result_of_its_own_logs_a_line_only_if_it_is_long(
    wait: Wait, lines: Callable[[], list[str]]
) -> None:
    with ProgressBar(1000.0, "dev", has_result=True) as bar:
        wait(29.9)
        bar.add(100.0)
        assert lines() == []
        wait(0.1)
        bar.add(500.0)
        assert lines() == ["dev: 600 of 1000 s of audio, 20.0 times real time, 20.0 s left"]
    assert lines() == []


def test_a_terminal_shows_a_bar_of_whole_units_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.0)
    with ProgressBar(3e6, "fetched", MEGABYTES, done=1.2e6) as bar:
        for _ in range(3):  # each less than half a unit
            bar.add(0.45e6)
        assert lines() == []
    assert "fetched:" in terminal.getvalue() and " 3/3 " in terminal.getvalue().replace("<", " ")
    (line,) = lines()
    assert line.startswith("fetched: 3 MB in ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.24, "8.2 s"),
        (60.0, "1 min 00 s"),
        (250.9, "4 min 10 s"),
        (3600.0, "1 h 00 min"),
        (3 * 3600 + 5 * 60 + 59, "3 h 05 min"),
    ],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text

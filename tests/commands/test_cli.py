"""The command line: exit statuses, one-line errors, logging."""

import errno
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import click
import pytest
import torch
from tqdm import tqdm

import vox
from vox.cli import COMMANDS, LOGGER_NAMES, cli, main
from vox.errors import CorpusError

CHECKOUT = Path(__file__).resolve().parents[2]
Act = Callable[[Callable[[], None]], None]


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Restore the loggers for other tests."""
    before = {
        name: (logging.getLogger(name).handlers[:], logging.getLogger(name).level) for name in LOGGER_NAMES
    }
    yield
    for name, (handlers, level) in before.items():
        logging.getLogger(name).handlers = handlers
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def let_vox_act() -> Iterator[Act]:
    """Return a function that makes `vox act` do something."""

    def register(action: Callable[[], None]) -> None:
        cli.add_command(click.Command("act", callback=action))

    yield register
    cli.commands.pop("act", None)


def raiser(error: BaseException) -> Callable[[], None]:
    """Make a function that raises an error."""

    def action() -> None:
        raise error

    return action


def test_help_lists_every_command_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, command in COMMANDS.items():
        assert f"{name} {command.help}" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vox {vox.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--foo"], r"vox train: error: no such option.*--foo.*; see vox train --help"),
        (["train"], r"vox train: error: missing option '--stage'.*; see vox train --help"),
        (["evaluate", "--split", "x", "--workers", "many"], r"vox evaluate: error: .*'many'.*"),
        (["nonsense"], r"vox: error: no such command 'nonsense'.*; see vox --help"),
        (["--nonsense"], r"vox: error: no such option.*--nonsense.*; see vox --help"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(line + "\n", captured.err)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            CorpusError("no such split", where="data/x", remedy="run `vox download --split x`"),
            2,
            "vox: error: no such split: data/x; run `vox download --split x`",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a"),
            2,
            "vox: error: no space left on device: runs/a; free some space, then run the same command again",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            2,
            "vox: error: disk quota exceeded; free some space, then run the same command again",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "vox: error: permission denied: /x"),
        (OSError(errno.EROFS, "Read-only file system", b"/x"), 2, "vox: error: read-only file system: /x"),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "a", None, "b"),
            2,
            "vox: error: not a directory: a -> b",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB."),
            2,
            "vox: error: the GPU ran out of memory; lower --batch-seconds, or for training "
            "--set data.micro_batch_utterances=N (or data.micro_batch_seconds)",
        ),
        (KeyboardInterrupt(), 130, "vox: interrupted"),
        (click.Abort(), 130, "vox: interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, status: int, line: str, let_vox_act: Act, capsys: pytest.CaptureFixture[str]
) -> None:
    let_vox_act(raiser(error))
    assert main(["act"]) == status
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a defect"),
        OSError(errno.EIO, "no file name, so no user's doing"),
        BrokenPipeError(errno.EPIPE, "a worker died; stdout is fine"),
    ],
)
def test_a_defect_keeps_its_traceback(error: Exception, let_vox_act: Act) -> None:
    let_vox_act(raiser(error))
    with pytest.raises(type(error), match=re.escape(str(error))):
        main(["act"])


def test_traceback_on_request(let_vox_act: Act, capsys: pytest.CaptureFixture[str]) -> None:
    let_vox_act(raiser(CorpusError("no such split")))
    assert main(["--traceback", "act"]) == 2
    shown = capsys.readouterr().err
    assert "vox: error: no such split" in shown
    assert "in action" in shown


def run_vox(*arguments: str, stdout: IO[Any] | None) -> subprocess.CompletedProcess[str]:
    """Run `python -m vox` in a process of its own."""
    command = [sys.executable, "-m", "vox", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, text=True, stdout=stdout, stderr=subprocess.PIPE)


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    result = run_vox("--help", stdout=reader.stdin)
    assert (result.returncode, result.stderr) == (141, "")


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        result = run_vox("--help", stdout=full)
    assert result.returncode == 2
    assert result.stderr.startswith("vox: error: no space left on device")
    assert len(result.stderr.splitlines()) == 1


def speak() -> None:
    """Log as the library does."""
    log = logging.getLogger("vox.somewhere")
    log.info("8 shards to write")
    log.warning("3 recordings skipped")


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ([], ["8 shards to write", "warning: 3 recordings skipped"]),
        (["--quiet"], ["warning: 3 recordings skipped"]),
    ],
)
def test_messages_are_plain_lines_on_stderr(
    flags: list[str], lines: list[str], let_vox_act: Act, capsys: pytest.CaptureFixture[str]
) -> None:
    let_vox_act(speak)
    for _ in range(2):  # a second call must not say everything twice
        assert main([*flags, "act"]) == 0
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines() == lines


def test_messages_stand_above_a_progress_bar(let_vox_act: Act, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with tqdm(total=2, file=sys.stderr) as bar:
            bar.update()
            speak()

    let_vox_act(work)
    assert main(["act"]) == 0
    # The bar is wiped (spaces between two carriage returns) before a line is written in its place.
    assert re.search(r"\r +\r8 shards to write\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "line",
    [
        "evaluate --split a --root b --root c",
        "train --stage 1 --stage=2",
        "cache verify --split a --split b",
        "transcribe --device cpu --device cpu a.wav",
    ],
)
def test_an_option_given_twice_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Click alone would silently take the last one."""
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert "is given 2 times; see vox" in error and error.count("\n") == 1


def test_an_option_that_may_be_repeated_is_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    decoders = ["--decoder", "ctc", "--decoder", "attention"]
    assert main(["evaluate", "--split", "a", *decoders, "--checkpoint", "nowhere"]) == 2
    assert "no checkpoint: nowhere" in capsys.readouterr().err

"""The command line: finds a command, imports only that one, and turns errors into one line.

Commands of the library live in `vox.commands`; the stages (`precompute`, `train`, `evaluate`) are
packages beside `vox` in a checkout, and are not in the wheel. Nothing heavy is imported here, so that
`vox --help` answers at once.
"""

import errno
import gc
import importlib
import logging
import os
import select
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click

import vox
from vox.errors import DISK_FULL_ERRNOS, WORKER_DEATH, VoxError, is_worker_death

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

LOGGER_NAMES = ("vox", "precompute", "train", "evaluate")

# Folders and disks, not defects, even where the error carries no file name.
_FILE_SYSTEM_ERRNOS = DISK_FULL_ERRNOS | {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class LazyCommand:
    """Where a command lives and what `vox --help` says of it without importing it."""

    module: str
    attribute: str
    help: str


COMMANDS = {
    "download": LazyCommand("vox.commands.download", "download", "Fetch a LibriSpeech split and check it."),
    "corpus": LazyCommand("vox.commands.corpus", "corpus", "Check a corpus, or import another tool's."),
    "precompute": LazyCommand("precompute.cli", "precompute", "Phase 1: compute WavLM's features once."),
    "probe": LazyCommand("precompute.probe.cli", "probe", "Measure which WavLM layers to cache."),
    "cache": LazyCommand("vox.commands.cache", "cache", "List and verify cached features."),
    "train": LazyCommand("train.cli", "train", "Phase 2: train a recogniser, stage by stage."),
    "evaluate": LazyCommand("evaluate.cli", "evaluate", "Measure WER and CER on a split."),
    "tune": LazyCommand("evaluate.tune_cli", "tune", "Choose the weights of the search on a dev split."),
    "transcribe": LazyCommand(
        "vox.commands.transcribe", "transcribe", "Write down what is said in audio files."
    ),
    "lm": LazyCommand("vox.commands.lm", "lm", "Make an n-gram language model of a text."),
    "adapt": LazyCommand("evaluate.adapt_cli", "adapt", "Adapt to a domain from its text alone."),
    "check": LazyCommand(
        "vox.commands.check", "check", "Check that Vox holds on this machine, and how fast it is."
    ),
    "info": LazyCommand("vox.commands.info", "info", "Print the parameter table of a model."),
    "status": LazyCommand("vox.commands.status", "status", "Say where a run of training stands."),
    "dashboard": LazyCommand(
        "vox.commands.dashboard", "dashboard", "Show the curves of all runs in TensorBoard."
    ),
    "demo": LazyCommand("vox.commands.demo", "demo", "Run the whole pipeline on synthesized speech."),
}


class LazyGroup(click.Group):
    """A click group over COMMANDS that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; raise VoxError for a stage without a checkout."""
        command = COMMANDS.get(cmd_name)
        return super().get_command(ctx, cmd_name) if command is None else _import_command(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; raise UsageError for an option that is given twice and can have one value."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            _refuse_repeated_options(command, rest, ctx)
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(vox.__version__, message="vox %(version)s")
@click.option("-q", "--quiet", is_flag=True, help="Show warnings and errors only.")
@click.option("--traceback", is_flag=True, help="Show where in the code an error was raised.")
def cli(quiet: bool, traceback: bool) -> None:
    """Train a speech recogniser on frozen WavLM features, cached once."""
    set_up_logging(logging.WARNING if quiet else logging.INFO)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    Prints one line on stderr for what a user can fix (status 2) and for an interrupt (130). Raises
    whatever else went wrong, so that a defect keeps its traceback.
    """
    context = None
    # Threads that spin while they wait cost everything when another process wants their core (a training
    # step of 0.1 s took 5.9 s), threads that sleep at once cost as much as they bring: spin briefly. Read by
    # torch's OpenMP when it is imported, which is later.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Hundreds of thousands of utterances are millions of objects that stay: to look through them again and
    # again for garbage takes a third of the time of reading a corpus.
    gc.set_threshold(50_000)
    try:
        context = cli.make_context("vox", sys.argv[1:] if argv is None else list(argv))
        with context:
            cli.invoke(context)
        return 0
    except BaseException as error:
        status = _report_error(error)
        if status is None:
            raise
        if context is not None and context.params["traceback"] and status == EXIT_USER_ERROR:
            traceback.print_exc()
        return status


def set_up_logging(level: int) -> None:
    """Send the messages of the library and the stages to stderr, as plain lines."""
    handler = _StderrHandler()
    handler.setFormatter(_PlainFormatter())
    for name in LOGGER_NAMES:
        logger = logging.getLogger(name)
        logger.handlers = [old for old in logger.handlers if not isinstance(old, _StderrHandler)]
        logger.addHandler(handler)
        logger.setLevel(level)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return prefix + super().format(record)


class _StderrHandler(logging.Handler):
    """Write to the stderr of the moment, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            tqdm = sys.modules.get("tqdm")
            if tqdm is None:
                print(line, file=sys.stderr, flush=True)
            else:
                tqdm.tqdm.write(line, file=sys.stderr)
        except Exception:
            self.handleError(record)


def import_stage(module: str) -> ModuleType | None:
    """Import a stage's module by its full name; None where there is no checkout."""
    try:
        _put_checkout_first(module.partition(".")[0])
    except VoxError:
        return None
    return importlib.import_module(module)


def _import_command(command: LazyCommand) -> click.Command:
    package = command.module.partition(".")[0]
    if package != "vox":
        _put_checkout_first(package)
    return getattr(importlib.import_module(command.module), command.attribute)


def _refuse_repeated_options(command: click.Command, args: Sequence[str], parent: click.Context) -> None:
    """Raise UsageError for an option given twice, of which click would take the last in silence."""
    context = click.Context(command, parent=parent, info_name=command.name, resilient_parsing=True)
    if isinstance(command, click.Group):
        _, subcommand, rest = command.resolve_command(context, list(args)) if args else (None, None, [])
        return _refuse_repeated_options(subcommand, rest, context) if subcommand else None
    _, _, order = command.make_parser(context).parse_args(list(args))
    counts = Counter(order)
    for parameter in command.params:
        if counts[parameter] > 1 and isinstance(parameter, click.Option) and not parameter.multiple:
            if parameter.is_flag or parameter.count:
                continue
            raise click.UsageError(f"{parameter.opts[0]} is given {counts[parameter]} times", context)
    return None


def _put_checkout_first(stage: str) -> None:
    # First on the path, because another distribution may bring a package of the same name
    # (Hugging Face's is called `evaluate`).
    checkout = Path(vox.__file__).resolve().parent.parent
    if not (checkout / stage / "cli.py").is_file():
        raise VoxError(
            f"vox {stage} needs a checkout of Vox, and this is an installed package",
            where=checkout,
            remedy="clone the repository and run `make test` there, then .venv/bin/vox",
        )
    if sys.path[:1] != [str(checkout)]:
        sys.path.insert(0, str(checkout))


def _report_error(error: BaseException) -> int | None:
    """Print the line for an error and return the exit status; return None for a defect."""
    match error:
        case click.exceptions.Exit():
            return error.exit_code
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            return EXIT_USER_ERROR
        case click.ClickException():
            return _report_usage(error)
        case VoxError():
            return _report_line(str(error))
        case KeyboardInterrupt() | click.Abort():
            click.echo("vox: interrupted", err=True)
            return EXIT_INTERRUPTED
        case BrokenPipeError():
            return EXIT_BROKEN_PIPE if _close_broken_stdout() else None
        case OSError() if error.filename is not None or error.errno in _FILE_SYSTEM_ERRNOS:
            return _report_line(_describe_os_error(error))
        case MemoryError():
            return _report_line("memory ran out; close something, or give this less to hold at once")
    if is_worker_death(error):
        return _report_line(WORKER_DEATH)
    if _is_out_of_device_memory(error):
        return _report_line(
            "the GPU ran out of memory; lower --batch-seconds, or for training "
            "--set data.micro_batch_utterances=N (or data.micro_batch_seconds)"
        )
    return None


def _report_line(message: str, command: str = "vox") -> int:
    click.echo(f"{command}: error: {' '.join(message.split())}", err=True)
    return EXIT_USER_ERROR


def _report_usage(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    command = "vox" if context is None else context.command_path
    message = error.format_message().rstrip(".")
    return _report_line(f"{message[:1].lower()}{message[1:]}; see {command} --help", command)


def _describe_os_error(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    what = error.strerror or str(error)
    where = f": {' -> '.join(names)}" if names else ""
    remedy = "; free some space, then run the same command again" if error.errno in DISK_FULL_ERRNOS else ""
    return f"{what[:1].lower()}{what[1:]}{where}{remedy}"


def _is_out_of_device_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # never imported for this: without it there was no device
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _close_broken_stdout() -> bool:
    """Say whether stdout lost its reader, and if so discard what is buffered for it.

    A pipe to a worker process that died raises the same error, and is no reason to be quiet.
    """
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # closed, or not a file
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True

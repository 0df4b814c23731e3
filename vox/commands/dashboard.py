"""`vox dashboard`: TensorBoard on the runs."""

import importlib.util
import os
import socket
import sys
from pathlib import Path

import click

from vox.errors import VoxError
from vox.runs.status import find_runs


@click.command()
@click.argument(
    "runs_dir", required=False, type=click.Path(path_type=Path), default=Path("runs"), metavar="[RUNS_DIR]"
)
@click.option(
    "--host", default="localhost", show_default=True, help="Where to listen; 0.0.0.0 is everywhere."
)
@click.option("--port", type=click.IntRange(1, 65535), default=6006, show_default=True)
def dashboard(runs_dir: Path, host: str, port: int) -> None:
    """Show the curves of all runs below RUNS_DIR (default runs/) in TensorBoard, until Ctrl-C."""
    runs = find_runs(runs_dir)
    check_port(host, port)
    command = tensorboard_command(runs_dir, host, port)
    name = f"[{host}]" if ":" in host else host
    click.echo(f"TensorBoard on {runs_dir} (runs: {len(runs)}): http://{name}:{port}/ (Ctrl-C ends it)")
    sys.stdout.flush()  # what is buffered is lost when another program takes over this process
    os.execv(command[0], command)


def tensorboard_command(runs_dir: Path, host: str, port: int) -> list[str]:
    """Return the command line of this Python's own TensorBoard; VoxError when it has none."""
    if importlib.util.find_spec("tensorboard") is None:
        raise VoxError("TensorBoard is not installed", where=sys.executable, remedy="pip install tensorboard")
    where = ["--logdir", str(runs_dir), "--host", host, "--port", str(port)]
    return [sys.executable, "-m", "tensorboard.main", *where]


def check_port(host: str, port: int) -> None:
    """Raise VoxError unless that address can be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:  # taken, forbidden, no such host, no such interface
        number = error.errno or 0  # below zero for names that cannot be resolved
        raise VoxError(
            f"cannot listen here ({os.strerror(number) if number > 0 else error.strerror})",
            where=f"{host}:{port}",
            remedy="choose another --port or --host; another dashboard may run there",
        ) from None

"""Several ranks of one run, as torchrun would start them, forked from the test's own process.

A fork costs nothing; a new process would import torch for seconds.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

import torch.distributed as dist

from train.ranks import Ranks
from vox.errors import VoxError

PATIENCE_SECONDS = 120.0


def run_ranks(world_size: int, work: Callable[[int], None]) -> list[int]:
    """Call work(rank) in one process a rank; return their exit statuses (negative: a signal's number).

    A VoxError is printed to stderr and gives status 2; any other error prints its traceback and gives 1.
    """
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(world_size),
    }
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
            _work_and_exit(work, rank)
        children.append(child)
    return [_wait(child) for child in children]


def _work_and_exit(work: Callable[[int], None], rank: int) -> None:
    status = 1
    try:
        work(rank)
        status = 0
    except VoxError as error:
        print(f"rank {rank}: {error}", file=sys.stderr)
        status = 2
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int) -> int:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"a rank was still at work after {PATIENCE_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def join(rank: int, world_size: int) -> Ranks:
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    return Ranks(rank, world_size)

"""The processes of one run: who this one is, and what they agree on.

torchrun starts them and sets each one's rank in the environment. Alone, everything here is a
no-op, so that the loop reads the same with one process or with many.
"""

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from vox.errors import ConfigError, VoxError

log = logging.getLogger(__name__)

LOGGERS = ("vox", "train")
_FAILED = "vox/failed"  # in the store: how many processes have failed
_TURN = "vox/turn"  # and how the first rank's turns ended

TIMEOUT = timedelta(hours=1)  # a rank that is silent for so long is lost: a slow disk may stall the first one
TURN_TIMEOUT = timedelta(days=1)  # a restored run may be many gigabytes
_PEER_LOSS = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Socket")


@dataclass(frozen=True)
class Ranks:
    """This process among the others of its run."""

    rank: int = 0
    world_size: int = 1
    store: "dist.Store | None" = None
    _turns: Iterator[int] = field(default_factory=itertools.count)

    @property
    def is_first(self) -> bool:
        """Say whether this process writes what the run leaves behind."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Say whether there is no other process."""
        return self.world_size == 1

    def highest(self, values: Sequence[int]) -> list[int]:
        """Return the highest of each value over all ranks; exchanged on the host, without the GPU."""
        if self.is_alone:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add a tensor up over all ranks, in place, on its own device; return it."""
        if not self.is_alone:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks, to all of them."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when every rank has come this far."""
        self.highest([0])

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Let the first rank do something that leaves files, and then the others, who find them.

        Where the first fails, the others leave with its exit status (SystemExit).
        """
        if self.store is None:
            yield
            return
        key = f"{_TURN}{next(self._turns)}"
        if not self.is_first:
            self.store.wait([key], TURN_TIMEOUT)
            if self.store.get(key) != b"done":
                raise SystemExit(2)
            yield
            return
        try:
            yield
        except BaseException:
            self.store.set(key, "failed")
            raise
        self.store.set(key, "done")

    def is_first_to_fail(self) -> bool:
        """Say whether no other rank has reported an error yet: the first error is the one to read."""
        if self.store is None:
            return True
        try:
            return bool(self.store.add(_FAILED, 1) == 1)
        except (RuntimeError, OSError):  # the process that kept the store has ended, and reported why
            return False


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the other processes that torchrun started, if it did, for as long as the context lasts.

    An error is reported by the rank that meets it first; the others leave with the same exit status and
    no message (SystemExit). Ranks other than the first log errors only.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    store, rank, world_size = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    ranks = Ranks(rank, world_size, store)
    if not ranks.is_first:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield ranks
        dist.destroy_process_group()
    except (VoxError, RuntimeError) as error:
        if not isinstance(error, VoxError) and not _is_peer_loss(error):
            raise
        if not ranks.is_first_to_fail():
            raise SystemExit(2) from None
        if isinstance(error, VoxError):
            raise
        raise VoxError(
            "another process of the run ended, or was silent for an hour",
            remedy="its message is above; go on with --resume",
        ) from None


def refuse_shared_gpu(device_name: str) -> None:
    """Raise ConfigError for a device that several processes of this machine would share."""
    if device_name.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"--device {device_name} would put every process on one GPU",
            remedy="leave --device out under torchrun",
        )


def _is_peer_loss(error: RuntimeError) -> bool:
    """Say whether a collective failed because another process has ended."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _PEER_LOSS)

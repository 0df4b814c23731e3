"""Whether the process behind a run's heartbeat still runs: what its heartbeat says, and how to judge it."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

FRESH_SECONDS = 60.0  # a heartbeat from another machine counts for so long

State = Literal["starting", "training", "validating", "saving", "done", "interrupted", "failed"]
ENDED: tuple[State, ...] = ("done", "interrupted", "failed")  # written by a process that leaves
Liveness = Literal["alive", "dead", "unknown"]


def judge_liveness(alive: Mapping[str, Any], now: float) -> Liveness:
    """Say whether the process behind a heartbeat still runs; `now` is unix time.

    On its own machine by its pid and start time; elsewhere by the heartbeat's age, and "unknown" where that
    is negative by more than a minute, since one of the two clocks is wrong.
    """
    pid, start, written = (alive.get(key) for key in ("pid", "process_start", "written"))
    if not isinstance(pid, int) or not isinstance(written, int | float):
        return "unknown"
    if alive.get("state") in ENDED:
        return "dead"
    if start is not None and all(alive.get(key) == value for key, value in identify_machine().items()):
        return "alive" if read_process_start(pid) == start else "dead"
    age = now - written
    if age < -FRESH_SECONDS:
        return "unknown"
    return "alive" if age < FRESH_SECONDS else "dead"


def identify_machine() -> dict[str, str | None]:
    """Return what identifies this machine, boot and set of process numbers.

    Host names alone do not: rented machines share them, and containers number their own processes.
    """
    host = socket.gethostname()
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        pid_namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        return {"host": host, "boot_id": None, "pid_namespace": None}
    return {"host": host, "boot_id": boot_id, "pid_namespace": pid_namespace}


def read_process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None without it or without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may hold blanks and parentheses itself; proc(5) counts the state as field 3.
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[22 - 3])

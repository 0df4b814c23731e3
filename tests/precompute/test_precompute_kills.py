"""Runs killed at any moment end where an uninterrupted one ends."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.precomputing import command, read_files

# Runs the command again and again in forked children, each killed before a later system call than the
# one before, and prints how many died before one came through.
KILL_DRIVER = """
import json, os, pathlib, signal, sys
import torch
torch.set_num_threads(1)  # no thread pool, so that forking is safe
import precompute.estimate, precompute.extract, precompute.run, vox.features.writer, vox.wavlm.extractor
from vox.cli import main
from vox.features.shard import Shard, check_bytes
reference, killed, command = json.loads(sys.argv[1])

def run_child(features, calls_left):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    def count_down(call):
        def counted(*arguments, **keywords):
            nonlocal calls_left
            calls_left -= 1
            if calls_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)
        return counted
    for name in ("pwrite", "write", "fsync", "replace", "open"):
        setattr(os, name, count_down(getattr(os, name)))
    os._exit(main([features if word.endswith("/unused") else word for word in command]))

assert run_child(reference, -1) == 0
truth = {path.name: path.read_bytes() for path in pathlib.Path(reference).rglob("*.h5")}
num_kills, num_between = 0, 0
while (status := run_child(killed, 3 + 4 * num_kills % 11)) != 0:
    assert status == -signal.SIGKILL, status
    num_kills += 1
    there = list(pathlib.Path(killed).rglob("*.h5"))
    num_between += 0 < len(there) < len(truth)
    for path in there:
        assert check_bytes(path) and path.read_bytes() == truth[path.name]
        Shard(path)
print(num_kills, num_between)
"""


def test_killed_runs_end_where_one_run_ends(tiny_root: Path, tiny_wavlm_dir: Path, tmp_path: Path) -> None:
    """SIGKILL at many moments: only complete shards, and at the end the same bytes and nothing else."""
    line = command(tiny_root, tiny_wavlm_dir, tmp_path / "unused")
    arguments = json.dumps([str(tmp_path / "one"), str(tmp_path / "many"), line])
    repository = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILL_DRIVER, arguments], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    num_kills, num_between = map(int, done.stdout.split()[-2:])
    assert num_kills >= 6 and num_between >= 3
    assert read_files(tmp_path / "many") == read_files(tmp_path / "one")

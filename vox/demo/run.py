"""The demo: every step of the pipeline, as the commands that a user would type.

Each step is a process of its own, printed before it runs, so that what is shown is what one would do
with one's own speech, and so that the library never imports a stage.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import click

import vox
from vox.demo.grammar import has_name, is_string
from vox.disk import check_writable
from vox.errors import VoxError
from vox.runs.layout import BEST, METRICS, STATE

LAYERS = "1,2,3,4"  # of the tiny WavLM; configs/demo-stage1.yaml says the same
ON_CPU = ("--device", "cpu")  # everywhere, so that the figures do not depend on having a GPU
CACHED_SPLITS = ("demo-train", "demo-dev", "names-train", "names-dev")
DECODERS = tuple(word for name in ("ctc", "attention", "rescore") for word in ("--decoder", name))
MARK = "demo.json"  # in the demo's folder: what is beside it may be replaced


@dataclass(frozen=True)
class Step:
    """One command of the demo."""

    title: str
    arguments: tuple[str, ...]  # of `python -m`
    lane: str = ""  # neighbouring steps of two lanes run at once, each lane in its order
    threads: int = 1  # of torch; more make models this small slower: 8 updates a second with two, 11 with one

    def __str__(self) -> str:
        command = "vox" if self.arguments[0] == "vox" else f"python -m {self.arguments[0]}"
        return f"$ {command} {shlex.join(self.arguments[1:])}"


STAGES = (1, 2, 3)

# What the table shows of each stage: a title, and which references are counted.
ROWS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("demo-test", lambda text: not has_name(text)),
    ("  digits and letters alone", is_string),
    ("names-test: names of stage 3", has_name),
)


@dataclass(frozen=True)
class Outcome:
    """What the demo found.

    wer: WER (a fraction) by stage, row of the table, and decoder.
    """

    wer: dict[int, dict[str, dict[str, float]]]
    handoff: float  # relative difference of the dev loss: stage 2 before its first update, and stage 1
    stage2_best_update: int  # 0: where stage 2 began, with stage 1's weights
    seconds: dict[str, float]  # by step
    total_seconds: float  # less than their sum: some run at once


def run_demo(out: Path, seed: int) -> Outcome:
    """Run every step under a folder, and return the figures that the steps left there.

    What an earlier demo made there is deleted. Raises VoxError without a checkout, or for a folder that
    holds something else; raises SystemExit with a failed step's exit status, after its own error.
    """
    checkout = find_checkout()
    clear_folder(out)
    steps = plan_steps(out, seed, checkout / "configs")
    start = time.monotonic()
    seconds: dict[str, float] = {}
    for is_shared, some in groupby(steps, key=lambda step: step.lane != ""):
        if is_shared:
            seconds |= run_lanes(list(some), checkout)
        else:
            for step in some:
                click.echo(f"\n[{step.title}]\n{step}")
                seconds[step.title] = run_step(step, checkout)
    return Outcome(
        wer={
            stage: {title: _read_wer(out / f"test-stage{stage}", is_counted) for title, is_counted in ROWS}
            for stage in STAGES
        },
        handoff=_read_handoff(out / "stage2" / METRICS),
        stage2_best_update=_read_state(out / "stage2" / BEST / STATE)["update"],
        seconds={step.title: seconds[step.title] for step in steps},
        total_seconds=time.monotonic() - start,
    )


def plan_steps(out: Path, seed: int, configs: Path) -> list[Step]:
    """List the demo's commands, in order."""
    data, wavlm = str(out / "data"), str(out / "wavlm")
    stage1, stage2, stage3 = (out / f"stage{stage}" for stage in STAGES)
    seeding = ("--seed", str(seed))
    training = ("--root", data, "--set", f"train.seed={seed}", *ON_CPU)

    def vox_step(title: str, *arguments: object, lane: str = "", threads: int = 1) -> Step:
        return Step(title, ("vox", *map(str, arguments)), lane, threads)

    def evaluation(stage: int, run: Path, lane: str) -> Step:
        return vox_step(
            f"evaluate stage {stage}",
            *("evaluate", "--split", "demo-test", "--split", "names-test", "--root", data),
            *(*ON_CPU, *DECODERS),
            *("--checkpoint", run / BEST, "--out", out / f"test-stage{stage}"),
            lane=lane,
        )

    return [
        Step("synthesize speech", ("vox.demo.synthesize", "--root", data, *seeding), "speech"),
        Step("make a tiny WavLM", ("vox.demo.tiny_wavlm", "--out", wavlm, *seeding), "WavLM"),
        vox_step(
            "precompute",
            *("precompute", *(word for split in CACHED_SPLITS for word in ("--split", split))),
            *("--root", data, "--wavlm", wavlm, "--layers", LAYERS, *ON_CPU),
            threads=2,  # two batches at once
        ),
        vox_step(
            "train stage 1",
            *("train", "--stage", 1, "--cached", "--config", configs / "demo-stage1.yaml"),
            *("--wavlm", wavlm, "--run", stage1, *training),
        ),
        evaluation(1, stage1, "stage 2"),
        vox_step(
            "train stage 2",
            *("train", "--stage", 2, "--config", configs / "demo-stage2.yaml"),
            *("--from", stage1 / BEST, "--run", stage2, *training),
            lane="stage 2",
        ),
        evaluation(2, stage2, "stage 2"),
        vox_step(
            "train stage 3",
            *("train", "--stage", 3, "--cached", "--config", configs / "demo-stage3.yaml"),
            *("--wavlm", wavlm, "--from", stage1 / BEST, "--run", stage3, *training),
            lane="stage 3",
        ),
        evaluation(3, stage3, "stage 3"),
    ]


def format_outcome(outcome: Outcome) -> str:
    """Write the tables that the demo ends with."""
    decoders = list(next(iter(outcome.wer[1].values())))
    lines = ["WER, %".ljust(32) + "".join(f"{name:>11}" for name in decoders)]
    for stage, rows in outcome.wer.items():
        lines.append(f"after stage {stage}")
        for title, wer in rows.items():
            lines.append(f"  {title}".ljust(32) + "".join(f"{100 * wer[name]:>11.2f}" for name in decoders))
    lines.append(
        f"Handoff: stage 2's dev loss before its first update is {100 * outcome.handoff:.3f} % off stage 1's."
    )
    if outcome.stage2_best_update == 0:
        lines.append(
            "Stage 2 did not improve the dev WER: its best checkpoint is where it began, stage 1's weights."
        )
    lines.append(
        "Stage 2 is short here, and this WavLM was never trained: it shows that the step works, no more."
    )
    lines.append("Stage 3 starts from stage 1's weights and learns twenty names from six recordings of each.")
    lines.append("It replays stage 1's corpus, and keeps no weights that forget it.")
    lines.append("A grammar tells a decoder what comes next; digits and letters in any order do not.")
    lines.append("About 600 words of a synthesizer: the table says nothing about other speech.")
    lines.append("")
    lines += [f"{title:<20}{seconds:>9.0f} s" for title, seconds in outcome.seconds.items()]
    lines.append(f"{'all':<20}{outcome.total_seconds:>9.0f} s (some steps run at once)")
    return "\n".join(lines)


def find_checkout() -> Path:
    """Return the checkout's folder; raise VoxError if Vox is installed from a wheel."""
    checkout = Path(vox.__file__).resolve().parent.parent
    needed = ("configs/demo-stage1.yaml", "precompute/cli.py", "train/cli.py", "evaluate/cli.py")
    if not all((checkout / name).is_file() for name in needed):
        raise VoxError(
            "vox demo needs a checkout of Vox, and this is an installed package",
            where=checkout,
            remedy="clone the repository and run `make demo` there",
        )
    return checkout


def clear_folder(out: Path) -> None:
    """Make an empty folder with the demo's mark; refuse a folder that is not a demo's."""
    if out.exists() and not out.is_dir():
        raise VoxError("not a folder", where=out, remedy="choose another --out")
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise VoxError(
                "the folder holds something else than a demo", where=out, remedy="choose another --out"
            )
        for entry in out.iterdir():
            if entry.name != MARK:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    check_writable(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text(
        json.dumps({"made_by": "vox demo", "version": vox.__version__}) + "\n", encoding="utf-8"
    )


def run_lanes(steps: Sequence[Step], checkout: Path) -> dict[str, float]:
    """Run the steps of each lane in order, and the lanes at once; return the seconds of each step.

    Each line of output has its lane before it. A lane ends with its first failed step; when the other has
    ended too, SystemExit is raised with that step's exit status.
    """

    def run_lane(lane: str) -> dict[str, float]:
        seconds = {}
        for step in (step for step in steps if step.lane == lane):
            click.echo(f"\n{lane} | [{step.title}]\n{lane} | {step}")
            seconds[step.title] = run_step(step, checkout)
        return seconds

    lanes = list(dict.fromkeys(step.lane for step in steps))
    with ThreadPoolExecutor(len(lanes)) as pool:
        running = [pool.submit(run_lane, lane) for lane in lanes]
    return {title: each for lane in running for title, each in lane.result().items()}


def run_step(step: Step, checkout: Path) -> float:
    """Run a step to its end, its output shown as it comes; return the seconds that it took.

    The output of a step in a lane is shown line by line, with the lane before each. Raises SystemExit with
    the step's exit status if that is not 0.
    """
    sys.stdout.flush()
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": str(step.threads)} | os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", *step.arguments]
    start = time.monotonic()
    if step.lane:
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                click.echo(f"{step.lane} | {line.rstrip()}")
        status = process.returncode
    else:
        status = subprocess.run(command, env=environment, check=False).returncode
    if status != 0:
        # Its error stands above already. Ended by a signal: the status that a shell would give.
        raise SystemExit(status if status > 0 else 128 - status)
    return time.monotonic() - start


def _read_wer(folder: Path, is_counted: Callable[[str], bool]) -> dict[str, float]:
    """Read the WER of each decoder from an evaluation's folder, of the references that are counted."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    wer = {}
    for name, figures in report["decoders"].items():
        lines = (folder / figures["hypotheses"]).read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if is_counted(row["reference"])]
        wer[name] = sum(row["errors"] for row in rows) / max(1, sum(row["words"] for row in rows))
    return wer


def _read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state


def _read_handoff(path: Path) -> float:
    events: list[dict[str, Any]] = [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return next(event["relative_difference"] for event in events if event["kind"] == "handoff")

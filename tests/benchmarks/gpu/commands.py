"""The command line on a card: precompute, train, SIGTERM, resume, evaluate, transcribe, torchrun."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.benchmarks.gpu.bench import Bench, Found, say
from tests.support.speech import make_text
from vox.check.audio import make_voice
from vox.check.results import Promise, Rate
from vox.units import SAMPLE_RATE

CHECKOUT = Path(__file__).resolve().parents[3]
NUM_FILES = 60  # made; a manifest names each many times
HOURS = 6.0
DEV_UTTERANCES = 40
WORKERS = (8,)
CUDA_TIMEOUT, CPU_TIMEOUT = 120.0, 600.0  # seconds of one command
VOCABULARY = 50


def write_corpus(bench: Bench) -> None:
    """Write two manifests, `train` and `dev`, over a few made recordings of 2 to 16 s; once."""
    root = bench.folder / "data"
    if (root / "train.jsonl").exists():
        return
    (root / "clips").mkdir(parents=True)
    num_files = NUM_FILES if bench.is_cuda else 6
    seconds = np.random.default_rng(0).uniform(2, 16, num_files) / (1 if bench.is_cuda else 4)
    for index, length in enumerate(seconds):
        soundfile.write(root / "clips" / f"{index}.flac", make_voice(length, index), SAMPLE_RATE)
    repeats = max(4, int(HOURS * 3600 / sum(seconds))) if bench.is_cuda else 4
    _write_manifest(root / "train.jsonl", num_files, repeats * num_files)
    _write_manifest(root / "dev.jsonl", num_files, DEV_UTTERANCES if bench.is_cuda else 4)


def time_precompute(bench: Bench) -> Found:
    """Time `vox precompute` over the corpus, with few decoding workers and with many."""
    write_corpus(bench)
    for workers in WORKERS if bench.is_cuda else (1,):
        features = bench.folder / f"features-{workers}"
        options = ["--split", "train", "--workers", str(workers), "--features", str(features)]
        output = run_vox(bench, "precompute", *options, "--wavlm", str(bench.wavlm_dir), *_layers(bench))
        found = re.findall(r"([\d.,]+) times real time", output)
        say(next((line for line in output.splitlines() if "waited" in line), "no line about waits"))
        rate = float(found[-1].replace(",", ""))
        yield Rate(f"precompute_{workers}", f"vox precompute, {workers} workers", rate, "x real time")


def check_training(bench: Bench) -> Found:
    """Train a few updates, end them with SIGTERM, resume, evaluate, transcribe; and train under torchrun."""
    write_corpus(bench)
    features = bench.folder / f"features-{WORKERS[0] if bench.is_cuda else 1}"
    options = ["--split", "train", "--split", "dev", "--features", str(features)]
    run_vox(bench, "precompute", *options, "--wavlm", str(bench.wavlm_dir), *_layers(bench))
    run = bench.folder / "run"
    arguments = ["train", "--stage", "1", "--cached", "--features", str(features), "--run", str(run)]
    arguments += ["--train-split", "train", "--dev-split", "dev", "--wavlm", str(bench.wavlm_dir)]
    precision = "fp16" if bench.is_cuda else "fp32"
    settings = (*bench.overrides, f"model.vocab_size={VOCABULARY}", f"train.precision={precision}")
    for setting in (*settings, "train.log_updates=1", "train.max_updates=12", "train.epochs=50"):
        arguments += ["--set", setting]
    status = interrupt_after_updates(bench, arguments, run, 6)
    yield Promise("", f"exit status after SIGTERM less {128 + signal.SIGTERM}", abs(status - 143), 0)
    run_vox(bench, "train", "--stage", "1", "--run", str(run), "--resume")
    lines = _read_metrics(run / "metrics.jsonl")
    say(f"lines of the metrics: {dict(Counter(line['kind'] for line in lines))}")
    missing = 12 - len(_updates_in(run / "metrics.jsonl"))
    yield Promise("", "updates missing after the resumed run", missing, 0)
    dev = [line for line in lines if line["kind"] == "dev"][-1]
    yield Rate("validation", f"validation of {DEV_UTTERANCES} utterances", dev["seconds"], "s")
    checkpoint = ("--checkpoint", str(run / "last"))
    run_vox(bench, "evaluate", "--split", "dev", *checkpoint, "--out", str(bench.folder / "report"))
    clip = str(bench.folder / "data" / "clips" / "0.flac")
    run_vox(bench, "transcribe", clip, *checkpoint)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    start = time.perf_counter()
    second = [word if word != str(run) else str(bench.folder / "run-2") for word in arguments]
    second[second.index("--run")] = "--run-dir"  # torchrun has a --run of its own
    _run(bench, [*torchrun, "-m", "vox", *second, "--set", "train.max_updates=3", *_common(bench)])
    yield Rate("torchrun", "three updates under torchrun", time.perf_counter() - start, "s")


def run_vox(bench: Bench, command: str, *arguments: str) -> str:
    """Run a command of Vox in a process of its own; return what it printed, or raise with its last lines."""
    common = _common(bench) if "--resume" not in arguments else ["--device", str(bench.device)]
    if command == "transcribe":
        common = ["--device", str(bench.device)]
    start = time.perf_counter()
    output = _run(bench, [sys.executable, "-m", "vox", command, *arguments, *common])
    say(f"vox {command}: {time.perf_counter() - start:.1f} s")
    return output


def interrupt_after_updates(bench: Bench, arguments: list[str], run: Path, count: int) -> int:
    """Train until so many updates are in the metrics, send SIGTERM, and return the exit status."""
    command = [sys.executable, "-m", "vox", *arguments, *_common(bench)]
    errors = run.with_suffix(".err")
    with errors.open("wb") as file:
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=file)
    deadline = time.monotonic() + _timeout(bench)
    try:
        while time.monotonic() < deadline and process.poll() is None:
            metrics = run / "metrics.jsonl"
            if metrics.exists() and len(_updates_in(metrics)) >= count:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=_timeout(bench))
    finally:
        process.kill()
    if process.returncode != 128 + signal.SIGTERM:
        say(errors.read_text(errors="replace")[-500:])
    return process.returncode


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file that may still be written to."""
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def _updates_in(metrics: Path) -> set[int]:
    """Return the updates that a run has made or skipped: float16 skips some while it looks for its scale."""
    return {line["update"] for line in _read_metrics(metrics) if line["kind"] in ("train", "skipped")}


def _write_manifest(path: Path, num_files: int, count: int) -> None:
    with path.open("w") as file:
        for index in range(count):
            # As many words as two seconds hold: each must fit the shortest recording.
            text = make_text(index, num_words=2)
            line = {"audio": f"clips/{index % num_files}.flac", "text": text, "id": f"{path.stem}-{index}"}
            file.write(json.dumps(line) + "\n")


def _layers(bench: Bench) -> list[str]:
    layers = bench.subject.config.features.layers
    return ["--layers", ",".join(map(str, layers))]


def _common(bench: Bench) -> list[str]:
    return ["--root", str(bench.folder / "data"), "--device", str(bench.device)]


def _timeout(bench: Bench) -> float:
    return CUDA_TIMEOUT if bench.is_cuda else CPU_TIMEOUT


def _run(bench: Bench, command: list[str]) -> str:
    search_path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": search_path}
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=_timeout(bench)
    )
    if done.returncode:
        raise RuntimeError(f"{command[3:5]} ended with {done.returncode}: {done.stderr[-600:]}")
    return done.stdout + done.stderr

"""Live audio: the processes that decode it, and how they end."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.support.speech import make_speech
from tests.support.training import assert_equal_runs, stage1_options
from train.options import TrainOptions
from train.run import run_training
from vox.audio import hash_recording, read_audio
from vox.corpus import Utterance, load_split
from vox.data.batch import AudioBatch, make_feature_batch, make_label_batch
from vox.data.sources import LiveSource
from vox.data.workers import decode_and_hash_batches, decode_batches
from vox.segment import Segment
from vox.units import SAMPLE_RATE

# Trains; at the fifth update it says so, and waits for a line.
TRAIN_AND_WAIT = """
import itertools, multiprocessing, sys
import train.loop
from vox.cli import main

step, calls = train.loop.run_update, itertools.count(1)
def waiting_update(*arguments):
    if next(calls) == 5:
        print(len(multiprocessing.active_children()), flush=True)
        sys.stdin.readline()
    return step(*arguments)
train.loop.run_update = waiting_update
sys.exit(main(sys.argv[1:]))
"""


def command_line(options: TrainOptions) -> list[str]:
    given = {
        "--stage": options.stage,
        "--root": options.root,
        "--train-split": options.train_split[0],
        "--dev-split": options.dev_split[0],
        "--wavlm": options.wavlm,
        "--run": options.run,
        "--device": options.device,
    }
    pairs = [*given.items(), *(("--set", override) for override in options.overrides)]
    return ["train", *(str(argument) for pair in pairs for argument in pair)]


def test_a_signal_to_the_whole_group_saves_everything(tiny_root, tiny_wavlm_dir, tmp_path):
    """torchrun, SLURM and systemd signal the whole group: the decoding processes must then continue."""
    whole = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "whole")
    stopped = stage1_options(tiny_root, tiny_wavlm_dir, tmp_path / "run", overrides=("data.workers=2",))
    child = subprocess.Popen(
        [sys.executable, "-c", TRAIN_AND_WAIT, *command_line(stopped)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "2\n"
    os.killpg(child.pid, signal.SIGTERM)
    time.sleep(0.2)  # for them to die, if they do
    _, errors = child.communicate("\n", timeout=60)
    assert child.returncode == 128 + signal.SIGTERM, errors
    run_training(whole)
    run_training(TrainOptions(stage=1, run=stopped.run, resume=True))
    assert_equal_runs(whole.run_dir, stopped.run_dir)


def start_reading(root: Path) -> Iterator[AudioBatch]:
    """Start reading 120 batches in two processes; return all of them."""
    source = LiveSource(load_split(root, "train-tiny"), workers=2)
    batches = source.read([[name] for name in source.utterances] * 10)
    return itertools.chain([next(batches)], batches)


def test_workers_hear_their_parent_and_nobody_else(tiny_root):
    """Reading continues; torch and Python end the remaining processes with a signal from their parent."""
    batches = start_reading(tiny_root)
    workers = multiprocessing.active_children()
    pids = [str(worker.pid) for worker in workers]
    for name in ("TERM", "INT", "HUP"):
        subprocess.run(["kill", f"-{name}", *pids], check=True)
    assert sum(len(batch.ids) for batch in itertools.islice(batches, 100)) == 100
    assert [worker.exitcode for worker in workers] == [None, None]
    for worker in workers:
        worker.terminate()
        worker.join(10)
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("end", ["all read", "given up"])
def test_workers_end_at_once_with_the_reading(end, tiny_root):
    batches = start_reading(tiny_root)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    start = time.monotonic()
    if end == "all read":
        assert sum(len(batch.ids) for batch in batches) == 120
    del batches
    assert not multiprocessing.active_children()
    assert time.monotonic() - start < 3.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_everything_that_goes_to_a_gpu_is_pinned(workers, tiny_root):
    source = LiveSource(load_split(tiny_root, "train-tiny"), workers=workers, pin=True)
    (audio,) = source.read([list(source.utterances)])
    labels = make_label_batch([[1]]).pin()
    features = make_feature_batch(["a"], [np.zeros((2, 3), np.float16)]).pin()
    for batch in (audio, labels, features):
        assert all(each.is_pinned() for each in vars(batch).values() if isinstance(each, torch.Tensor))


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_recording_of_another_length_than_its_header_is_left_out(difference, tiny_root, monkeypatch):
    """T9: it would have another number of frames than its shard has room for."""
    utterances = load_split(tiny_root, "dev-tiny")
    wrong = utterances[1]

    def read(path: Path, speed: float, segment: object, warn: object) -> np.ndarray:
        waveform = read_audio(path, speed)
        if path != wrong.audio_path:
            return waveform
        return np.resize(waveform, len(waveform) + difference)

    monkeypatch.setattr("vox.data.workers.read_audio", read)
    ((batch, failures, _),) = decode_and_hash_batches([utterances])
    assert batch.ids == [each.id for each in utterances if each is not wrong]
    assert [failure.id for failure in failures] == [wrong.id]
    assert f"decoded {wrong.num_samples + difference} samples" in failures[0].reason


def test_a_recording_is_hashed_before_it_is_decoded(tiny_root, tmp_path, monkeypatch):
    """A file replaced in between is found changed; in the other order it would pass for the new one."""
    (utterance, *_) = load_split(tiny_root, "dev-tiny")
    copy = tmp_path / utterance.audio_path.name
    copy.write_bytes(utterance.audio_path.read_bytes())
    before = hash_recording(copy)

    def read_and_replace(path: Path, speed: float, segment: object, warn: object) -> np.ndarray:
        waveform = read_audio(path, speed)
        path.write_bytes(path.read_bytes() + b"replaced")
        return waveform

    monkeypatch.setattr("vox.data.workers.read_audio", read_and_replace)
    ((_, _, hashes),) = decode_and_hash_batches([[replace(utterance, audio_path=copy)]])
    assert hashes == {utterance.id: before} and hash_recording(copy) != before


@pytest.mark.parametrize("workers", [0, 1])
def test_channels_that_cancel_are_a_warning_once_a_run(workers, tmp_path, caplog):
    """Each epoch has workers of its own, which do not know what those before them found."""
    samples_S = make_speech(8_000, 0)
    soundfile.write(tmp_path / "a.wav", np.stack([samples_S, -0.9 * samples_S], 1), SAMPLE_RATE)
    utterances = [
        Utterance(f"a-{start}", tmp_path / "a.wav", "go", "", segment=Segment(start, 0.2))
        for start in (0.0, 0.25)
    ]
    for _ in range(2):
        ((batch, _),) = decode_batches([utterances], workers=workers)
        assert batch.ids == ["a-0.0", "a-0.25"]
    assert [record.message for record in caplog.records if "cancel" in record.message] == [
        f"{tmp_path}/a.wav: its channels cancel each other; channel 0 (counted from 0) is used alone"
    ]

"""The parts of the demo: sentences, speakers, synthesis, the tiny WavLM, and the steps."""

import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
import torch

import vox
from tests.support.speech import needs_espeak
from vox.cli import cli
from vox.config import Config, load_config
from vox.corpus import load_split
from vox.demo.grammar import (
    NAMES,
    count_sentences,
    has_name,
    is_string,
    list_words,
    make_name_sentences,
    make_sentences,
)
from vox.demo.run import (
    LAYERS,
    ROWS,
    STAGES,
    Outcome,
    Step,
    clear_folder,
    format_outcome,
    plan_steps,
    run_lanes,
    run_step,
)
from vox.demo.synthesize import NAME_COUNTS, SPLIT_VOICES, Synthesizer, write_lines
from vox.demo.tiny_wavlm import save_tiny_wavlm
from vox.errors import VoxError
from vox.units import SAMPLE_RATE
from vox.wavlm.load import load_wavlm

CHECKOUT = Path(__file__).resolve().parents[2]
COUNTS = {"demo-train": 2400, "demo-dev": 100, "demo-test": 100}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_sentence_is_in_two_splits_and_training_says_every_word(seed: int) -> None:
    sentences = make_sentences(COUNTS, seed)
    assert {split: len(lines) for split, lines in sentences.items()} == COUNTS
    assert len(set().union(*sentences.values())) == sum(COUNTS.values())
    for lines in sentences.values():
        assert {word for line in lines for word in line.split()} <= list_words()
    assert {word for line in sentences["demo-train"] for word in line.split()} == list_words()
    assert make_sentences(COUNTS, seed) == sentences != make_sentences(COUNTS, seed + 1)


def test_a_quarter_of_each_split_are_strings_without_grammar() -> None:
    for texts in make_sentences(COUNTS, 0).values():
        assert 0.2 <= sum(map(is_string, texts)) / len(texts) <= 0.4
    assert is_string("two two zero") and is_string("b x b") and not is_string("b two")
    assert not is_string("walk left two steps")


def test_names_are_in_the_splits_of_stage_3_alone() -> None:
    """Each as often as asked for; no sentence is in two splits."""
    sentences = make_name_sentences(NAME_COUNTS, 0)
    texts = [text for split in make_sentences(COUNTS, 0).values() for text in split]
    heard = {word for text in texts for word in text.split()}
    assert not heard & set(NAMES) and not list_words() & set(NAMES)
    for split, texts in sentences.items():
        counts = Counter(word for text in texts for word in text.split() if word in NAMES)
        assert counts == dict.fromkeys(NAMES, NAME_COUNTS[split])
        assert all(map(has_name, texts)) and not any(map(is_string, texts))
        assert {word for text in texts for word in text.split()} <= heard | set(NAMES)
    assert len(set().union(*sentences.values())) == len(NAMES) * sum(NAME_COUNTS.values())


def test_more_sentences_than_the_grammar_has_are_refused() -> None:
    """Drawing until there are enough sentences might never end."""
    with pytest.raises(VoxError, match="ask for fewer"):
        make_sentences({"demo-train": count_sentences(), "demo-dev": 1}, seed=0)


def test_dev_and_test_have_two_voices_each_that_nobody_else_has() -> None:
    lines = write_lines(COUNTS, seed=0, name_counts=NAME_COUNTS)
    voices = {split: {line.voice for line in lines if line.split == split} for split in COUNTS}
    assert len(voices["demo-dev"] - voices["demo-train"] - voices["demo-test"]) == 2
    assert len(voices["demo-test"] - voices["demo-train"] - voices["demo-dev"]) == 2
    assert voices["demo-dev"] & voices["demo-train"] and voices["demo-test"] & voices["demo-train"]
    assert len({line.id for line in lines}) == len(lines)
    assert len({line.voice for line in lines}) == len({line.id.split("-")[0] for line in lines})


@needs_espeak
def test_two_processes_speak_alike_in_every_voice_and_leave_splits_that_load(tmp_path: Path) -> None:
    first, second = _synthesize(tmp_path / "first"), _synthesize(tmp_path / "second")
    assert first == second
    counts = {split: len(load_split(tmp_path / "first", split)) for split in COUNTS}
    assert counts == {split: len(SPLIT_VOICES[split]) for split in COUNTS}
    assert len(load_split(tmp_path / "first", "names-dev")) == len(NAMES)
    for path in (tmp_path / "first").rglob("*.flac"):
        samples_S, sample_rate = soundfile.read(path)
        assert sample_rate == SAMPLE_RATE and samples_S.ndim == 1
        assert 0.5 < len(samples_S) / sample_rate < 8
        assert 0.01 < np.sqrt(np.mean(samples_S**2)) < 0.5


@needs_espeak
@pytest.mark.parametrize("voice", ["en-us+nobody", "en-gb"])
def test_unknown_voice_is_refused_where_espeak_would_take_another(voice: str) -> None:
    line = write_lines({"demo-dev": 1}, seed=0, name_counts={})[0]
    with pytest.raises(VoxError, match=f"no such voice: {voice.replace('+', '.')}"):
        Synthesizer().say(replace(line, voice=voice), seed=0)


def test_the_tiny_wavlm_s_stem_is_a_filter_bank(tmp_path: Path) -> None:
    """Of five tones, each band responds most to the one at its own centre."""
    save_tiny_wavlm(tmp_path, seed=3)
    wavlm = load_wavlm(str(tmp_path))
    lowest, highest = (2595 * math.log10(1 + hz / 700) for hz in (120, 7000))
    bands = (10, 20, 30, 40, 50)
    centres = [700 * (10 ** ((lowest + (highest - lowest) * band / 63) / 2595) - 1) for band in bands]
    seconds_S = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    tones_BS = torch.stack([torch.sin(2 * math.pi * hz * seconds_S) for hz in centres])
    frames_BTC = wavlm.feature_extractor(tones_BS, torch.full((5,), SAMPLE_RATE))
    loudness_BC = frames_BTC.mean(1)[:, bands]
    assert loudness_BC.argmax(0).tolist() == [0, 1, 2, 3, 4]
    assert loudness_BC.argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_configs_fit_the_tiny_wavlm_and_each_other() -> None:
    stage1 = load_config(CHECKOUT / "configs" / "demo-stage1.yaml")
    stage2 = load_config(CHECKOUT / "configs" / "demo-stage2.yaml")
    assert ",".join(map(str, stage1.features.layers)) == LAYERS
    stage3 = load_config(CHECKOUT / "configs" / "demo-stage3.yaml")
    assert (stage1.train.stage, stage2.train.stage, stage3.train.stage) == (1, 2, 3)
    assert (stage3.model, stage3.features) == (Config().model, Config().features)
    # Stage 2 takes the model and the features from stage 1's checkpoint.
    assert (stage2.model, stage2.features) == (Config().model, Config().features)
    assert stage1.data == stage2.data


def test_steps_are_commands_that_parse(tmp_path: Path) -> None:
    """Every `vox` command of the demo is accepted by the command line's own parser."""
    for step in plan_steps(tmp_path / "out", seed=1, configs=CHECKOUT / "configs"):
        if step.arguments[0] == "vox":
            command = cli.get_command(click.Context(cli), step.arguments[1])
            assert command is not None
            command.make_context(step.arguments[1], list(step.arguments[2:]))


def test_failed_step_ends_the_demo_with_its_own_error_and_status(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    step = Step("speak", ("vox.demo.synthesize", "--root", str(tmp_path / "file"), "--train", "1"))
    with pytest.raises(SystemExit) as stopped:
        run_step(step, CHECKOUT)
    assert stopped.value.code == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_a_failed_lane_ends_while_the_other_goes_on_and_its_status_is_the_demos(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    failing = ("vox.demo.synthesize", "--root", str(tmp_path / "file"), "--train", "1")
    steps = [
        Step("b1", ("this",), "b"),
        Step("a1", failing, "a"),
        Step("a2", ("this",), "a"),
        Step("b2", ("this",), "b"),
    ]
    with pytest.raises(SystemExit) as stopped:
        run_lanes(steps, CHECKOUT)
    assert stopped.value.code == 2
    shown = capfd.readouterr().out
    assert shown.count("Namespaces are one honking great idea") == 2  # python -m this
    assert all(line.startswith(("a | ", "b | ")) for line in shown.splitlines() if line)
    assert shown.index("[b1]") < shown.index("[b2]") and "[a2]" not in shown


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(VoxError, match="something else than a demo"):
        clear_folder(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_outside_a_checkout_the_demo_says_that_it_needs_one(tmp_path: Path) -> None:
    package = Path(vox.__file__).parent
    shutil.copytree(package, tmp_path / "vox", ignore=shutil.ignore_patterns("__pycache__"))
    result = subprocess.run(
        [sys.executable, "-m", "vox", "demo", "--out", str(tmp_path / "out")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert (
        result.stderr.startswith("vox: error: vox demo needs a checkout") and result.stderr.count("\n") == 1
    )
    assert not (tmp_path / "out").exists()


def _synthesize(root: Path) -> dict[str, bytes]:
    """Synthesize every voice once in a separate process; return the content of each file."""
    arguments = ["--root", str(root), "--seed", "5"]
    for split in COUNTS:
        arguments += [f"--{split.removeprefix('demo-')}", str(len(SPLIT_VOICES[split]))]
    arguments += ["--names", "1"]
    run_step(Step("speak", ("vox.demo.synthesize", *arguments)), CHECKOUT)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*") if path.is_file()}


@pytest.mark.parametrize("best_update", [0, 120])
def test_the_table_claims_no_more_for_stage_2_than_the_demo_shows(best_update: int) -> None:
    wer = {title: {"ctc": 0.02, "attention": 0.01} for title, _ in ROWS}
    text = format_outcome(
        Outcome(dict.fromkeys(STAGES, wer), 0.0, best_update, {"train stage 2": 35.0}, 35.0)
    )
    assert ("did not improve" in text) == (best_update == 0)
    assert "this WavLM was never trained" in text

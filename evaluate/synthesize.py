"""Speak a domain's sentences by a synthesizer into a split that stage 3 can be trained on."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

import vox
from vox.corpora.convert import refuse_existing_split
from vox.demo.run import Step, run_step
from vox.demo.synthesize import find_espeak
from vox.errors import ConfigError
from vox.text import Normaliser


def check_synthesis(root: Path, split: str, normaliser: Normaliser) -> None:
    """Raise VoxError if espeak-ng is not installed, the split exists, or the recogniser is not of English."""
    find_espeak()
    refuse_existing_split(root, split)
    if not normaliser.is_english:
        language = normaliser.config.language or "unknown"
        raise ConfigError(
            f"the synthesizer speaks English, and the checkpoint's language is {language}",
            remedy="leave --synthesize out",
        )


def synthesize_split(root: Path, split: str, sentences: Sequence[str], voices: int) -> None:
    """Speak each different sentence in several voices into ROOT/LibriSpeech/<split>, and say what to do next.

    Raises SystemExit, with the exit status, if the program that speaks fails; its error is shown then.
    """
    different = list(dict.fromkeys(sentences))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sentences.txt")
        path.write_text("".join(f"{sentence}\n" for sentence in different), encoding="utf-8")
        arguments = ("--text", path, "--root", root, "--split", split, "--voices", voices)
        step = Step("synthesize speech", ("vox.demo.speak", *map(str, arguments)))
        run_step(step, Path(vox.__file__).resolve().parent.parent)
    click.echo("This is a synthesizer's speech (espeak-ng). Measure what it is worth on real recordings:")
    where = "" if root == Path("data") else f" --root {root}"
    click.echo(f"  vox precompute --split {split}{where}")
    click.echo(f"  vox train --stage 3 --cached --train-split {split} --dev-split RECORDINGS{where}")

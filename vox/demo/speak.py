"""Speak sentences in several voices into a split of LibriSpeech's layout; run by `vox adapt --synthesize`.

A program of its own, as is vox/demo/synthesize.py: espeak-ng runs in no other process of Vox.
"""

import itertools
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import click

from vox.demo.synthesize import TRAIN_VOICES, Line, draw_line, fail, write_corpus
from vox.errors import VoxError
from vox.units import samples_to_seconds

CHAPTER = 1


def plan_lines(sentences: Sequence[str], split: str, num_voices: int, seed: int) -> list[Line]:
    """Give each sentence to some voices, in turns; return the lines in the order of the speakers."""
    generator = random.Random(f"speak {seed}")
    voices = itertools.cycle(TRAIN_VOICES)
    lines = [
        draw_line(split, CHAPTER, index, sentence, voice, generator)
        for index, sentence in enumerate(sentences)
        for voice in itertools.islice(voices, num_voices)
    ]
    return sorted(lines, key=lambda line: (line.chapter_dir, line.id))


def write_split(root: Path, split: str, sentences: Sequence[str], num_voices: int, seed: int) -> float:
    """Write ROOT/LibriSpeech/<split> whole or not at all; return its seconds. Raises VoxError, OSError."""
    partial = root / f".{split}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    num_samples = 0
    try:
        for _, length_samples in write_corpus(partial, plan_lines(sentences, split, num_voices, seed), seed):
            num_samples += length_samples
        (root / "LibriSpeech").mkdir(exist_ok=True)
        (partial / "LibriSpeech" / split).rename(root / "LibriSpeech" / split)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return samples_to_seconds(num_samples)


@click.command()
@click.option("--text", type=click.Path(path_type=Path), required=True, help="Sentences, one a line.")
@click.option("--root", type=click.Path(path_type=Path), required=True, help="Corpus root to write under.")
@click.option("--split", required=True, help="A new split.")
@click.option("--voices", type=click.IntRange(1, len(TRAIN_VOICES)), required=True, help="For each sentence.")
@click.option("--seed", default=0, show_default=True, help="Draws how the sentences are said.")
def main(text: Path, root: Path, split: str, voices: int, seed: int) -> None:
    """Speak sentences in several voices into a split."""
    import torch

    torch.set_num_threads(1)  # the conversions are too short to share out
    try:
        sentences = text.read_text(encoding="utf-8").splitlines()
        seconds = write_split(root, split, sentences, voices, seed)
    except VoxError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write the split ({error}): {root}; free some space or choose another --root")
    count = len(sentences) * voices
    click.echo(f"{root / 'LibriSpeech' / split}: {count} recordings, {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()

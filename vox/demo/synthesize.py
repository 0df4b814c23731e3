"""Synthesize the demo's corpus with espeak-ng, in LibriSpeech's layout.

espeak-ng is under the GPL, version 3, and optional: it comes with the package `espeakng-loader`, is
never part of Vox, and runs in a process of its own (`python -m vox.demo.synthesize`, and `vox.demo.speak`
for sentences of one's own).

Legend: S samples.
"""

import ctypes
import itertools
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
import numpy as np

from vox.data.read_ahead import map_ahead
from vox.demo.grammar import make_name_sentences, make_sentences
from vox.errors import VoxError
from vox.units import SAMPLE_RATE, samples_to_seconds

if TYPE_CHECKING:
    from torchaudio.transforms import Resample

# The constants of espeak-ng's speak_lib.h that are needed here.
_SYNCHRONOUS_OUTPUT = 2
_DO_NOT_EXIT = 0x8000  # on missing data, return an error instead of ending the process
_RATE_PARAMETER, _PITCH_PARAMETER, _RANGE_PARAMETER = 1, 3, 4
_UTF8_TEXT = 1
_SYNTHESIS_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)

MARGIN_SAMPLES = SAMPLE_RATE // 20  # silence before and after what is said

WORDS_PER_MINUTE = (180, 230)  # how fast the voices speak: from, to
PITCH = (40, 60)  # and how high and how lively; 50 is the voice's own

# A voice is an accent and, after the plus, a speaker: a folder of LibriSpeech's layout has its place here
# plus 101 as its name. British English is `en`; espeak-ng calls `en-gb` unknown. The voices that only dev or
# test have are accents and speakers that training hears apart, never together.
TRAIN_VOICES = (
    "en", "en-us", "en-gb-x-rp", "en+f1", "en-us+f2",
    "en+f4", "en-us+m1", "en-gb-x-rp+m2", "en+m3", "en-us+m7",
)  # fmt: skip
DEV_ONLY_VOICES = ("en-us+f1", "en+m2")
TEST_ONLY_VOICES = ("en-us+f4", "en+m1")
VOICES = TRAIN_VOICES + DEV_ONLY_VOICES + TEST_ONLY_VOICES
SPLIT_VOICES = {
    "demo-train": TRAIN_VOICES,
    "demo-dev": TRAIN_VOICES + DEV_ONLY_VOICES,
    "demo-test": TRAIN_VOICES + TEST_ONLY_VOICES,
}
SPLIT_VOICES |= {split.replace("demo", "names"): voices for split, voices in SPLIT_VOICES.items()}
SPLIT_CHAPTERS = {split: number for number, split in enumerate(SPLIT_VOICES, start=1)}  # ids must differ
NAME_COUNTS = {"names-train": 6, "names-dev": 2, "names-test": 3}  # how often each name is said


@dataclass(frozen=True)
class Line:
    """One utterance to be said."""

    id: str
    split: str
    text: str
    voice: str
    words_per_minute: int
    pitch: int  # 0 to 99; 50 is the voice's own
    pitch_range: int  # 0 (monotone) to 99; 50 is the voice's own

    @property
    def chapter_dir(self) -> Path:
        """Return the folder of the recording, under the corpus root."""
        speaker, chapter, _ = self.id.split("-")
        return Path("LibriSpeech", self.split, speaker, chapter)


class Synthesizer:
    """espeak-ng, loaded into this process."""

    def __init__(self) -> None:
        """Load the library and its data; raise VoxError where they are missing or do not load."""
        library_path, self._data_dir = find_espeak()
        try:
            self._library = ctypes.CDLL(str(library_path))
        except OSError as error:
            raise VoxError(f"cannot load espeak-ng ({error})", where=library_path) from None
        self.sample_rate: int = self._library.espeak_Initialize(
            _SYNCHRONOUS_OUTPUT, 0, str(self._data_dir).encode(), _DO_NOT_EXIT
        )
        if self.sample_rate <= 0:
            raise VoxError("espeak-ng does not start", where=self._data_dir, remedy=_INSTALL)
        self._chunks: list[np.ndarray] = []
        # ctypes keeps no reference of its own: without this one the library would call freed memory.
        self._callback = _SYNTHESIS_CALLBACK(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, line: Line, seed: int) -> np.ndarray:
        """Say a line: int16 [S] at `self.sample_rate`.

        Some voices have randomness in them, and espeak-ng carries its oscillators on from one utterance to
        the next: the same lines in the same order with the same seeds give the same samples.
        """
        self._set_voice(line.voice)
        if hasattr(self._library, "espeak_ng_SetRandSeed"):
            self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._library.espeak_SetParameter(_RATE_PARAMETER, line.words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH_PARAMETER, line.pitch, 0)
        self._library.espeak_SetParameter(_RANGE_PARAMETER, line.pitch_range, 0)
        self._chunks.clear()
        text = line.text.encode()
        status = self._library.espeak_Synth(
            text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8_TEXT, None, None
        )
        if status != 0 or not self._chunks:
            raise VoxError(f"espeak-ng did not speak (status {status})", where=line.id)
        return np.concatenate(self._chunks)

    def _set_voice(self, voice: str) -> None:
        """Choose a voice; espeak-ng itself would take an unknown variant for the accent's base voice."""
        _, plus, variant = voice.partition("+")
        is_known = not plus or (self._data_dir / "voices" / "!v" / variant).is_file()
        if not is_known or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise VoxError("espeak-ng has no such voice", where=voice)

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", num_samples: int, _events: object) -> int:
        if samples and num_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, shape=(num_samples,)).copy())
        return 0  # go on


def write_lines(counts: dict[str, int], seed: int, name_counts: dict[str, int]) -> list[Line]:
    """Decide what is said, by whom and how, in the order of the speakers.

    counts: lines for each split. name_counts: lines for each name and each split of names.
    """
    generator = random.Random(f"voices {seed}")
    lines = []
    texts = make_sentences(counts, seed) | make_name_sentences(name_counts, seed)
    for split, sentences in texts.items():
        for index, (text, voice) in enumerate(
            zip(sentences, itertools.cycle(SPLIT_VOICES[split]), strict=False)
        ):
            lines.append(draw_line(split, SPLIT_CHAPTERS[split], index, text, voice, generator))
    return sorted(lines, key=lambda line: (line.split, line.id))


def draw_line(split: str, chapter: int, index: int, text: str, voice: str, generator: random.Random) -> Line:
    """Make the line of a text and a voice; draw its speed and its pitch."""
    return Line(
        id=f"{101 + VOICES.index(voice)}-{chapter}-{index:04d}",
        split=split,
        text=text,
        voice=voice,
        words_per_minute=generator.randint(*WORDS_PER_MINUTE),
        pitch=generator.randint(*PITCH),
        pitch_range=generator.randint(*PITCH),
    )


def write_corpus(root: Path, lines: Iterable[Line], seed: int) -> Iterator[tuple[Line, int]]:
    """Say every line into ROOT/LibriSpeech/<split>/…: 16 kHz FLAC, and transcripts in upper case.

    lines: those of a chapter follow each other. Yields each line when its recording is written, with the
    number of its samples; a chapter's transcript is written after its recordings. One thread speaks, and two
    convert and write, which is more work. Raises VoxError, OSError.
    """
    import soundfile
    import torchaudio.transforms

    synthesizer = Synthesizer()
    resample = torchaudio.transforms.Resample(synthesizer.sample_rate, SAMPLE_RATE)

    def write(said: tuple[Line, np.ndarray]) -> tuple[Line, int]:
        line, samples_S = said
        finished_S = _finish(samples_S, resample)
        (root / line.chapter_dir).mkdir(parents=True, exist_ok=True)
        soundfile.write(root / line.chapter_dir / f"{line.id}.flac", finished_S, SAMPLE_RATE)
        return line, len(finished_S)

    said = ((line, synthesizer.say(line, seed)) for line in lines)
    written = map_ahead(write, said, threads=2)
    for chapter_dir, chapter in itertools.groupby(written, key=lambda each: each[0].chapter_dir):
        transcripts = []
        for line, num_samples in chapter:
            transcripts.append(f"{line.id} {line.text.upper()}\n")
            yield line, num_samples
        name = "-".join(chapter_dir.parts[-2:])
        (root / chapter_dir / f"{name}.trans.txt").write_text("".join(transcripts), encoding="utf-8")


def _finish(samples_S: np.ndarray, resample: "Resample") -> np.ndarray:
    """Convert int16 samples to 16 kHz and put silence around them: int16 [S]."""
    import torch

    converted_S = resample(torch.from_numpy(samples_S.astype(np.float32)))
    rounded_S = converted_S.round().clamp(-32768, 32767).to(torch.int16).numpy()
    return np.pad(rounded_S, MARGIN_SAMPLES)


_INSTALL = "install it: pip install 'vox-asr[demo]' (make demo does)"


def find_espeak() -> tuple[Path, Path]:
    """Find espeak-ng's library and data folder; raise VoxError if it is not installed."""
    try:
        import espeakng_loader
    except ImportError:
        raise VoxError(
            "speech is synthesized by espeak-ng, which is not installed", remedy=_INSTALL
        ) from None
    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())


@click.command()
@click.option("--root", type=click.Path(path_type=Path), required=True, help="Corpus root to write under.")
@click.option("--train", default=2400, show_default=True, help="Utterances to train on.")
@click.option("--dev", default=100, show_default=True, help="Utterances to choose the best weights by.")
@click.option("--test", default=100, show_default=True, help="Utterances for the final figures.")
@click.option(
    "--names",
    default=6,
    show_default=True,
    help="Say each invented name at most so often in a split; 0: no names.",
)
@click.option("--seed", default=0, show_default=True, help="Draws the sentences and how they are said.")
def main(root: Path, train: int, dev: int, test: int, names: int, seed: int) -> None:
    """Synthesize speech: splits demo-train, demo-dev, demo-test, and the same three of names."""
    import torch

    torch.set_num_threads(1)  # the conversions are too short to share out
    counts = {"demo-train": train, "demo-dev": dev, "demo-test": test}
    name_counts = {split: min(count, names) for split, count in NAME_COUNTS.items()}
    num_utterances = dict.fromkeys(SPLIT_CHAPTERS, 0)
    num_samples = dict.fromkeys(SPLIT_CHAPTERS, 0)
    try:
        for line, length_samples in write_corpus(root, write_lines(counts, seed, name_counts), seed):
            num_utterances[line.split] += 1
            num_samples[line.split] += length_samples
    except VoxError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write the corpus ({error}): {root}; free some space or choose another --out")
    for split, count in num_utterances.items():
        if not count:
            continue
        minutes = samples_to_seconds(num_samples[split]) / 60
        voices = len(SPLIT_VOICES[split])
        click.echo(f"{split}: {count} utterances, {minutes:.1f} minutes, {voices} voices")


def fail(line: str) -> NoReturn:
    """End the program with a line of error and exit status 2."""
    click.echo(f"vox: error: {line}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()

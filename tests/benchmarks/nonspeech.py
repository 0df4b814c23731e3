"""How many words a recogniser hears where nothing is spoken.

`--write ROOT` writes splits without speech to train on (`nonspeech-train`, `nonspeech-dev`); with a
checkpoint, `python -m tests.benchmarks.nonspeech CHECKPOINT` counts the words that it hears in a minute of
each kind of sound. The kinds marked "unheard" are in no split.

S samples.
"""

import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from vox.units import SAMPLE_RATE

PEAK_DECIBELS = (-60.0, -10.0)  # of full scale; of a recording to train on, drawn evenly
SECONDS = (1.5, 6.0)  # of such a recording
NUM_RECORDINGS = {"nonspeech-train": 120, "nonspeech-dev": 40}
DECODERS = ("ctc", "attention", "rescore")
JOINED, PAUSE_SECONDS = 5, 2  # recordings in a row, and what is between them

Sound = Callable[[np.random.Generator, int], np.ndarray]


def colour(exponent: float) -> Sound:
    """Return a maker of noise whose power falls with frequency to the exponent."""

    def make(generator: np.random.Generator, length: int) -> np.ndarray:
        spectrum = np.fft.rfft(generator.standard_normal(length))
        frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
        frequencies[0] = frequencies[1]
        return np.fft.irfft(spectrum * np.maximum(frequencies, 20.0) ** (-exponent / 2), length)

    return make


def make_tones(frequencies: np.ndarray, amplitudes: np.ndarray, length: int) -> np.ndarray:
    """Add sines up."""
    times_S = np.arange(length) / SAMPLE_RATE
    return np.sum(amplitudes[:, None] * np.sin(2 * np.pi * frequencies[:, None] * times_S), axis=0)


def make_buzz(generator: np.random.Generator, length: int) -> np.ndarray:
    """Harmonics of a low note at random levels."""
    harmonics = np.arange(1, generator.integers(3, 30))
    return make_tones(generator.uniform(40, 250) * harmonics, generator.random(len(harmonics)), length)


def make_fan(generator: np.random.Generator, length: int) -> np.ndarray:
    """Noise whose level goes up and down."""
    times_S = np.arange(length) / SAMPLE_RATE
    level_S = 1 + generator.random() * np.sin(2 * np.pi * generator.uniform(0.3, 8) * times_S)
    return colour(generator.uniform(0, 2))(generator, length) * level_S


def make_clicks(generator: np.random.Generator, length: int) -> np.ndarray:
    """Short decaying bursts at random times."""
    sound_S = np.zeros(length)
    burst_S = np.exp(-np.arange(800) / generator.uniform(20, 200))
    for start in generator.integers(0, length, max(1, length // SAMPLE_RATE * 4)):
        end = min(length, start + len(burst_S))
        sound_S[start:end] += generator.standard_normal(end - start) * burst_S[: end - start]
    return sound_S


def make_melody(generator: np.random.Generator, length: int) -> np.ndarray:
    """Single notes of random length, each with a few harmonics."""
    sound_S, start = np.zeros(length), 0
    while start < length:
        end = min(length, start + int(generator.uniform(0.1, 0.8) * SAMPLE_RATE))
        harmonics = np.arange(1, generator.integers(2, 6))
        note = 110 * 2 ** (generator.integers(0, 36) / 12)
        fade_S = np.exp(-np.arange(end - start) / SAMPLE_RATE * generator.uniform(1, 6))
        sound_S[start:end] = fade_S * make_tones(note * harmonics, 1 / harmonics, end - start)
        start = end
    return sound_S


def make_chords(generator: np.random.Generator, length: int) -> np.ndarray:
    """Three notes at once, half a second each."""
    sound_S = np.zeros(length)
    for start in range(0, length, SAMPLE_RATE // 2):
        end = min(length, start + SAMPLE_RATE // 2)
        notes = 220 * 2 ** ((generator.integers(0, 12) + np.array([0, 4, 7])) / 12)
        frequencies = np.outer(notes, np.arange(1, 5)).ravel()
        amplitudes = np.tile(1 / np.arange(1, 5), 3)
        sound_S[start:end] = make_tones(frequencies, amplitudes, end - start)
    return sound_S


def make_band(generator: np.random.Generator, length: int) -> np.ndarray:
    """Chords with a drum every quarter of a second."""
    sound_S, beat = make_chords(generator, length), SAMPLE_RATE // 4
    drum_S = 6 * np.exp(-np.arange(beat) / 600) * generator.standard_normal(beat)
    return sound_S + np.resize(drum_S, length)


TRAINED: dict[str, Sound] = {
    "silence": lambda _, length: np.zeros(length),
    "white noise": colour(0),
    "pink noise": colour(1),
    "brown noise": colour(2),
    "buzz": make_buzz,
    "fan": make_fan,
    "clicks": make_clicks,
    "melody": make_melody,
}
UNHEARD: dict[str, Sound] = {
    "blue noise": colour(-1),
    "hum of 50 Hz": lambda _, length: make_tones(50.0 * np.arange(1, 40, 2), 1 / np.arange(1, 21), length),
    "chords": make_chords,
    "chords and drum": make_band,
}


def scale(sound_S: np.ndarray, decibels: float) -> np.ndarray:
    """Set the peak of a sound; silence stays: float32 [S]."""
    peak = np.abs(sound_S).max()
    return (sound_S * (10 ** (decibels / 20) / max(peak, 1e-9))).astype(np.float32)


def write_splits(root: Path, seed: int) -> None:
    """Write the manifests and recordings of NUM_RECORDINGS."""
    import soundfile

    for number, (split, count) in enumerate(NUM_RECORDINGS.items()):
        generator = np.random.default_rng([seed, number])
        (root / split).mkdir(parents=True, exist_ok=True)
        lines = []
        for index, (name, make) in zip(range(count), list(TRAINED.items()) * count, strict=False):
            length = int(generator.uniform(*SECONDS) * SAMPLE_RATE)
            sound_S = scale(make(generator, length), generator.uniform(*PEAK_DECIBELS))
            audio = f"{split}/{name.replace(' ', '-')}-{index:03d}.flac"
            soundfile.write(root / audio, sound_S, SAMPLE_RATE)
            lines.append(json.dumps({"audio": audio, "speech": False}) + "\n")
        (root / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        click.echo(f"{root / split}.jsonl: {count} recordings")


def count_words(checkpoint: Path, seconds: int, seed: int) -> None:
    """Print the words that each decoder hears in each kind of sound."""
    import torch

    import vox

    torch.set_num_threads(1)
    heard: dict[str, list[int]] = {}
    for decoder in DECODERS:
        recogniser = vox.load(str(checkpoint), decoder=decoder, device="cpu")
        for kind, (name, make) in enumerate((TRAINED | UNHEARD).items()):
            generator = np.random.default_rng([seed, 2, kind])
            for decibels in (-50.0, -20.0):
                sound_S = scale(make(generator, seconds * SAMPLE_RATE), decibels)
                [transcript] = recogniser.transcribe([sound_S])
                title = f"{name}{' (unheard)' if name in UNHEARD else ''}, {decibels:.0f} dB"
                heard.setdefault(title, []).append(len(transcript.text.split()))
    click.echo(f"words heard in {seconds} s".ljust(36) + "".join(f"{name:>11}" for name in DECODERS))
    for title, counts in heard.items():
        click.echo(title.ljust(36) + "".join(f"{count:>11}" for count in counts))


def count_errors_between(checkpoint: Path, root: Path, split: str, seed: int) -> None:
    """Print error rates of recordings joined by five, with two seconds of a sound between them."""
    import torch

    import vox
    from vox.audio import read_audio
    from vox.corpus import load_split
    from vox.score import score

    torch.set_num_threads(1)
    utterances = load_split(root, split)
    recordings = [read_audio(utterance.audio_path, segment=utterance.segment) for utterance in utterances]
    starts = range(0, len(recordings), JOINED)
    references = [
        " ".join(utterance.text for utterance in utterances[start : start + JOINED]) for start in starts
    ]
    recognisers = [vox.load(str(checkpoint), decoder=decoder, device="cpu") for decoder in DECODERS]
    click.echo(f"WER %, joined by {JOINED}".ljust(36) + "".join(f"{name:>11}" for name in DECODERS))
    sounds: dict[str, Sound | None] = {"nothing": None, **TRAINED, **UNHEARD}
    for kind, (name, make) in enumerate(sounds.items()):
        generator = np.random.default_rng([seed, 3, kind])
        joined = []
        for start in starts:
            pieces = [recordings[start]]
            for recording_S in recordings[start + 1 : start + JOINED]:
                if make is not None:
                    pieces.append(scale(make(generator, PAUSE_SECONDS * SAMPLE_RATE), -30.0))
                pieces.append(recording_S)
            joined.append(np.concatenate(pieces))
        texts = [[found.text for found in each.transcribe(joined)] for each in recognisers]
        title = f"{name}{' (unheard)' if name in UNHEARD else ''} between them"
        rates = [100 * score(references, some).wer for some in texts]
        click.echo(title.ljust(36) + "".join(f"{rate:>11.2f}" for rate in rates))


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--write", type=click.Path(path_type=Path), metavar="ROOT", help="Write the splits there.")
@click.option("--root", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
@click.option("--split", metavar="SPLIT", help="Also join its recordings with each sound between them.")
@click.option("--seconds", default=60, show_default=True, help="Of each kind of sound.")
@click.option("--seed", default=0, show_default=True)
def main(
    checkpoint: Path | None, write: Path | None, root: Path, split: str | None, seconds: int, seed: int
) -> None:
    """Write splits without speech, or count the words that a checkpoint hears in them."""
    if write is None and checkpoint is None:
        raise click.UsageError("give a checkpoint, or --write ROOT")
    if write is not None:
        write_splits(write, seed)
    if checkpoint is not None:
        count_words(checkpoint, seconds, seed)
        if split is not None:
            count_errors_between(checkpoint, root, split, seed)


if __name__ == "__main__":
    main()

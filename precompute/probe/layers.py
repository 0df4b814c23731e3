"""The outputs of all layers, on disk for as long as the probe needs them.

B batch, S samples, T frames of an utterance, N frames of a split, L layers, C channels.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from precompute.plan import probed_samples
from precompute.probe.select import ENGLISH_CHARACTERS, Characters, Selection
from vox.corpus import Problem
from vox.data.batch import AudioBatch
from vox.data.plan import plan_by_length
from vox.data.workers import decode_batches
from vox.device import autocast
from vox.disk import create_part, name_os_errors, take_blocks
from vox.progress import ProgressBar
from vox.units import samples_to_frames, samples_to_seconds, seconds_to_samples
from vox.wavlm.model import WavLM

FRAME_DTYPE = np.dtype(np.float16)
FRAME_BYTES = FRAME_DTYPE.itemsize


@dataclass(frozen=True)
class LayerFeatures:
    """A split's frames at every layer, and where each utterance stands."""

    frames_NLC: np.ndarray  # float16; the first layer is the output of transformer layer 1
    spans: list[tuple[int, int]]  # of each utterance: its first frame, and the one after its last
    ids: list[str]
    texts: list[str]
    characters: Characters = ENGLISH_CHARACTERS

    @property
    def num_layers(self) -> int:
        """Return how many layers there are."""
        return self.frames_NLC.shape[1]

    @cached_property
    def num_frames(self) -> list[int]:
        """Return each utterance's length in frames."""
        return [stop - start for start, stop in self.spans]

    @cached_property
    def labels(self) -> list[list[int]]:
        """Return each utterance's characters as labels."""
        return [self.characters.encode(text) for text in self.texts]

    def read(self, row: int) -> np.ndarray:
        """Return an utterance's frames, [T, L, C] float16."""
        start, stop = self.spans[row]
        return self.frames_NLC[start:stop]


@contextmanager
def open_scratch(path: Path, shape: tuple[int, ...], *, keep: bool) -> Iterator[np.ndarray]:
    """Make a float16 array on disk, all its blocks taken, and remove it in the end.

    With `keep` it is put in place as a .npy file instead, unless an error ended the work. Until then it has
    another name and a lock, so that what a killed run left can be told apart. Raises OSError when the disk
    is full.
    """
    part_path, descriptor = create_part(path)
    try:
        with name_os_errors(part_path):
            frames = np.lib.format.open_memmap(part_path, mode="w+", dtype=FRAME_DTYPE, shape=shape)
            take_blocks(descriptor)  # a write to a memory map of a full disk would end the process
        yield frames
        if keep:
            frames.flush()
            part_path.replace(path)
    finally:
        part_path.unlink(missing_ok=True)
        os.close(descriptor)


def compute_layers(
    selection: Selection,
    wavlm: WavLM,
    device: torch.device,
    frames_NLC: np.ndarray,
    characters: Characters = ENGLISH_CHARACTERS,
    *,
    batch_seconds: float,
    workers: int,
) -> tuple[LayerFeatures, list[Problem]]:
    """Run WavLM once over a selection and fill frames_NLC with the output of every transformer layer.

    characters: of the labels. Returns the features and the utterances that are not in them: unreadable, or
    beyond float16's range.
    """
    utterances = selection.utterances
    lengths = [probed_samples(utterance) for utterance in utterances]
    stops = np.cumsum([samples_to_frames(length) for length in lengths]).tolist()
    spans = dict(zip((u.id for u in utterances), zip([0, *stops], stops, strict=False), strict=True))
    planned = plan_by_length(lengths, seconds_to_samples(batch_seconds))
    batches = [[utterances[position] for position in positions] for positions in planned]
    precision = torch.float16 if device.type == "cuda" else torch.float32
    wavlm = wavlm.to(device).eval()
    problems = []
    with (
        ProgressBar(samples_to_seconds(sum(lengths)), selection.split) as progress,
        torch.inference_mode(),
        autocast(device, precision),
    ):
        for positions, (batch, failures) in zip(
            planned, decode_batches(batches, workers=workers, pin=device.type == "cuda"), strict=True
        ):
            problems += [Problem(failure.id, failure.reason) for failure in failures]
            for name, layers_TLC in _compute_batch(wavlm, batch, device):
                start, stop = spans[name]
                frames_NLC[start:stop] = layers_TLC
                if not np.isfinite(layers_TLC).all():
                    problems.append(Problem(name, "features overflow float16"))
            progress.add(samples_to_seconds(sum(lengths[position] for position in positions)))
    missing = {problem.name for problem in problems}
    kept = [utterance for utterance in utterances if utterance.id not in missing]
    ids, texts = [utterance.id for utterance in kept], [utterance.text for utterance in kept]
    return LayerFeatures(frames_NLC, [spans[name] for name in ids], ids, texts, characters), problems


def _compute_batch(wavlm: WavLM, batch: AudioBatch, device: torch.device) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each utterance's name and frames, [T, L, C] float16."""
    if not batch.ids:
        return
    batch = batch.to(device)
    states, num_frames_B = wavlm(batch.waveforms_BS, batch.num_samples_B, range(1, wavlm.num_layers + 1))
    layers_BTLC = torch.stack([state.to(torch.float16) for state in states], dim=2).cpu().numpy()
    for name, layers_TLC, count in zip(batch.ids, layers_BTLC, num_frames_B.tolist(), strict=True):
        yield name, layers_TLC[:count]

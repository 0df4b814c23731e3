"""Vox: train a speech recogniser on frozen WavLM features.

import vox

transcriber = vox.load("runs/stage2/best")
for transcript in transcriber.transcribe(["talk.wav"]):
    print(transcript.text)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vox.transcribe import Transcriber

__version__ = "0.1.0"


def load(
    checkpoint: Path | str | None = None,
    *,
    decoder: str | None = None,
    beam: int | None = None,
    nbest: int = 1,
    lm: Path | None = None,
    lm_weight: float | None = None,
    hotwords: Sequence[str] = (),
    hotword_file: Path | None = None,
    hotword_weight: float | None = None,
    device: str = "auto",
) -> "Transcriber":
    """Load a checkpoint to write down recordings with; see `vox.transcribe.Transcriber`.

    checkpoint: a folder, such as runs/stage2/best; None for the newest stage's best under runs/.
    decoder, beam, nbest, lm and its weight, hotwords (lines as in a file of hotwords) and their weight: as
    `vox transcribe` has them. device: auto, cpu, cuda or cuda:N.
    Imports torch. Raises VoxErrors of one line each: for an option that cannot be followed before anything
    is read, then CheckpointError, DeviceError, or what is wrong with the language model or a hotword.
    """
    from dataclasses import replace

    from vox.checkpoint import load_recogniser, newest_checkpoint
    from vox.decode import make_options
    from vox.decode.additions import read_additions
    from vox.device import pick_device
    from vox.transcribe import Transcriber

    additions = read_additions(lm, lm_weight, hotword_file, hotwords, hotword_weight)
    options = make_options([] if decoder is None else [decoder], beam, additions.options, nbest)
    place = pick_device(device)
    loaded = load_recogniser(newest_checkpoint() if checkpoint is None else Path(checkpoint), place)
    options = replace(options, scorers=additions.make_scorers(loaded.tokenizer, place))
    return Transcriber(loaded, decoder, options, additions.hotwords)

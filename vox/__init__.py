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
    lm: Path | str | None = None,
    lm_weight: float | None = None,
    hotwords: Sequence[str] = (),
    hotword_file: Path | str | None = None,
    hotword_weight: float | None = None,
    device: str = "auto",
) -> "Transcriber":
    """Load a checkpoint to write down recordings with; see `vox.transcribe.Transcriber`.

    checkpoint: a folder, such as runs/stage2/best; None for the newest stage's best under runs/.
    decoder, beam, nbest, lm, lm_weight, hotword_weight: as `vox transcribe` has them. hotwords: lines as
    in such a file. device: auto, cpu, cuda or cuda:N.
    Imports torch. Raises CheckpointError, ConfigError, DeviceError, LanguageModelError or TextError, each a
    VoxError of one line.
    """
    from dataclasses import replace

    from vox.additions import read_additions
    from vox.checkpoint.files import load_recogniser
    from vox.checkpoint.series import newest_checkpoint
    from vox.decode import make_options
    from vox.device import pick_device
    from vox.transcribe import Transcriber

    names: Sequence[str] = [] if decoder is None else [decoder]
    additions = read_additions(lm, lm_weight, hotword_file, hotwords, hotword_weight)
    options = make_options(names, beam, nbest, additions.options)
    folder, place = newest_checkpoint() if checkpoint is None else Path(checkpoint), pick_device(device)
    loaded = load_recogniser(folder, place)
    options = replace(options, scorers=additions.make_scorers(loaded.tokenizer, place))
    return Transcriber(loaded, decoder, options, additions.hotwords)

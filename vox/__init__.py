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
    device: str = "auto",
) -> "Transcriber":
    """Load a checkpoint to write down recordings with; see `vox.transcribe.Transcriber`.

    checkpoint: a folder, such as runs/stage2/best; None for the newest stage's best under runs/.
    decoder, beam, nbest: as `vox transcribe` has them. device: auto, cpu, cuda or cuda:N.
    Imports torch. Raises CheckpointError, ConfigError or DeviceError, each a VoxError of one line.
    """
    from vox.checkpoint.files import load_recogniser
    from vox.checkpoint.series import newest_checkpoint
    from vox.decode import make_options
    from vox.device import pick_device
    from vox.transcribe import Transcriber

    names: Sequence[str] = [] if decoder is None else [decoder]
    options = make_options(names, beam, nbest)
    folder = newest_checkpoint() if checkpoint is None else Path(checkpoint)
    return Transcriber(load_recogniser(folder, pick_device(device)), decoder, options)

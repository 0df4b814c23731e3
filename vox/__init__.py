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
    domain: Path | str | None = None,
    vad: bool = False,
    device: str = "auto",
) -> "Transcriber":
    """Load a checkpoint to write down recordings with; see `vox.transcribe.Transcriber`.

    checkpoint: a folder, such as runs/stage2/best; None for the newest stage's best under runs/.
    decoder, beam, nbest, lm, lm_weight, hotword_weight: as `vox transcribe` has them; None for what
    `vox tune` chose, or the default. hotwords: phrases, each as in a line of a hotword_file. domain: a folder
    of `vox adapt`, in place of lm and hotwords. vad: hear only where Silero VAD finds speech. device: auto,
    cpu, cuda or cuda:N. Imports torch.

    Raises CheckpointError, ConfigError, DeviceError, DomainError, LanguageModelError or TextError, each a
    VoxError of one line.
    """
    from vox.checkpoint.series import find_checkpoint
    from vox.decoder_names import check_decoders
    from vox.errors import ConfigError
    from vox.vad import SpeechDetector, check_installed

    if isinstance(hotwords, str):  # a sequence too: of its letters
        remedy = "give a list of phrases, or the file to hotword_file"
        raise ConfigError(f"hotwords={hotwords!r} is one text", remedy=remedy)
    names: Sequence[str] = [] if decoder is None else [decoder]
    # Before torch is imported, which takes seconds.
    if names:
        check_decoders(names, beam, others=["--nbest"] * (nbest > 1))
    if vad:
        check_installed()
    folder = find_checkpoint(checkpoint).resolve()

    from vox.additions import plan_search
    from vox.checkpoint.files import load_recogniser
    from vox.device import pick_device
    from vox.transcribe import Transcriber

    place = pick_device(device)
    plan = plan_search(
        folder,
        names,
        beam=beam,
        nbest=nbest,
        lm=lm,
        lm_weight=lm_weight,
        hotword_file=hotword_file,
        hotwords=hotwords,
        hotword_weight=hotword_weight,
        domain=domain,
    )
    loaded = load_recogniser(folder, place)
    return Transcriber(
        loaded,
        next(iter(plan.decoders), None),
        plan.options_for(loaded, place),
        plan.additions.hotwords,
        temperature=plan.temperature,
        detector=SpeechDetector() if vad else None,
    )

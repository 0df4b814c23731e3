"""What the library checks by itself; stages have lists of their own (`precompute.check`, `train.check`)."""

from vox.check.decoding import check_scores, check_speed, check_steps
from vox.check.promises import (
    check_batching,
    check_extremes,
    check_lengths,
    check_precision,
    check_reference,
)
from vox.check.rates import check_audio_decoding, check_matrix_rate
from vox.check.reading import check_reading
from vox.check.results import Step
from vox.check.subject import CheckSubject


def list_promises() -> list[Step[CheckSubject]]:
    """Return the steps that compare figures with bounds."""
    return [
        Step("T1: features alone and in a batch", check_batching),
        Step("T2: features in mixed precision", check_precision),
        Step("T3: scores alone and in a batch", check_scores),
        Step("T4: frame counts", check_lengths),
        Step("T5: decoding step by step", check_steps),
        Step("T10: WavLM against Hugging Face's", check_reference),
        Step("loud, quiet, silent and clipped audio", check_extremes),
    ]


def list_rates() -> list[Step[CheckSubject]]:
    """Return the steps that measure speeds."""
    return [
        Step("the matrix rate", check_matrix_rate),
        Step("decoding audio", check_audio_decoding),
        Step("reading features from the disk", check_reading),
        Step("decoding into text", check_speed),
    ]

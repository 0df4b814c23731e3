"""What phase 2 checks, in order, and what a plan needs to know of it."""

from train.check.gradients import check_cut, check_finite, check_gradients, check_infinity
from train.check.rates import (
    check_cached_updates,
    check_live_updates,
    check_memory,
    check_stage2_updates,
    stage2_config,
)
from vox.check.plan import Training
from vox.check.results import Step
from vox.check.subject import CheckSubject
from vox.model.parameters import parameter_table

UTTERANCE_SECONDS = 12.0  # on average: LibriSpeech's


def list_promises() -> list[Step[CheckSubject]]:
    """Return the steps that compare figures with bounds; the last changes the recogniser's weights."""
    return [
        Step("gradients against float64", check_gradients),
        Step("T6: one gradient, however it is cut", check_cut),
        Step("gradients that are finite", check_finite),
        Step("an update with an infinite feature", check_infinity),
    ]


def list_rates() -> list[Step[CheckSubject]]:
    """Return the steps that measure speeds and memory; they change the recogniser's weights."""
    return [
        Step("updates of stage 1 from a cache", check_cached_updates),
        Step("updates of stage 1 from audio", check_live_updates),
        Step("updates of stage 2 from audio", check_stage2_updates),
        Step("memory", check_memory),
    ]


def describe_training(subject: CheckSubject) -> Training:
    """Return what the plan needs: epochs, sizes, decoding processes."""
    stage2 = stage2_config(subject)
    wavlm_config = subject.extractor.wavlm.config_dict()
    stage1, most_seconds = subject.config, None
    if stage1.train.max_updates is not None:
        num_utterances = stage1.train.max_updates * stage1.data.utterances_per_update
        most_seconds = num_utterances * UTTERANCE_SECONDS
    total = parameter_table(subject.config.model, wavlm_config, stage2.train.unfreeze_layers)[-1]
    return Training(
        stage1_epochs=stage1.train.epochs,
        stage1_most_seconds=most_seconds,
        stage2_epochs=stage2.train.epochs,
        feature_dim=subject.config.model.feature_dim,
        num_weights=total.total,
        num_learning=total.stage_2,
        workers=stage2.data.workers,
    )

"""Adaptation from text alone: a domain folder, its weights tuned so that the source does not get worse (T15).

Letters: C choices of weights, P parts of a score.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evaluate.results import Evaluation
from evaluate.run import evaluate_split
from evaluate.tune import (
    LM_WEIGHTS,
    collect_lists,
    count_errors,
    default_choice,
    fit_lists,
    list_choices,
    pick_choice,
)
from vox.additions import DEFAULT_HOTWORD_WEIGHT, DEFAULT_LM_WEIGHT, Additions
from vox.bootstrap import find_upper_ends
from vox.checkpoint.files import Checkpoint
from vox.corpus import Utterance
from vox.decode import SearchOptions
from vox.decoder_names import DEFAULT_SEARCH, VALIDATION_DECODERS
from vox.errors import DomainError
from vox.hear import device_of
from vox.hotword_list import Hotword
from vox.promise import Promise, is_kept, make_promise
from vox.tuned import Tuned

log = logging.getLogger(__name__)

SEARCHES = (DEFAULT_SEARCH, "joint")
HOTWORD_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
# Weights of the beams that texts are listed with, as shares of the default ones: what a beam finds depends on
# them, and a text that no beam finds cannot be chosen.
LISTING_SHARES = (0.5, 2.0)
# Shares of the chosen weights to try, until the source's WER is within its limit. At 0 the domain is unused.
SHARES = (1.0, 0.5, 0.25, 0.0)


@dataclass(frozen=True)
class DevSplit:
    """A dev split: its name and its utterances, probed."""

    name: str
    utterances: Sequence[Utterance]


@dataclass(frozen=True)
class TunedDomain:
    """The weights of a domain, and the word error rates on both dev splits, by decoder."""

    tuned: Tuned  # `wer`: of the target
    hotword_weight: float
    promise: Promise
    before: dict[str, dict[str, float]]  # by split
    after: dict[str, dict[str, float]]  # by split; the searches only


def default_domain(beam: int) -> Tuned:
    """Return the search and weights of a domain without a dev split."""
    options = SearchOptions()
    return Tuned(
        DEFAULT_SEARCH, beam, options.ctc_weight, options.length_bonus, DEFAULT_LM_WEIGHT, 1.0, "", {}
    )


def tune_domain(
    loaded: Checkpoint,
    additions: Additions,
    target: DevSplit,
    source: DevSplit,
    options: SearchOptions,
    *,
    tolerance: float | None = None,
    batch_seconds: float,
    workers: int,
) -> TunedDomain:
    """Choose the search, its weights, and those of the language model and the hotwords on two dev splits.

    The target's WER is minimised. The source's WER may not rise above its limit: the upper end of the 95 %
    interval (bootstrap over utterances) of the best decoder before, or its WER plus `tolerance`.
    additions: the domain's language model and hotwords. options: of the search before adaptation. Raises
    DomainError if no search keeps the limit.
    """
    decode = _Decoder(loaded, additions.hotwords, batch_seconds, workers)
    every = (*VALIDATION_DECODERS, *SEARCHES)
    before = {split.name: decode(split, every, options) for split in (target, source)}
    promise = _promise_for(before[source.name], tolerance)
    log.info(
        "before: %s WER %.2f %%; it may rise to %.2f %%",
        source.name,
        100 * promise["wer"],
        100 * promise["limit"],
    )
    weights = _Weights(additions)
    chosen, temperature = _choose(loaded, weights, target, source, options, promise, batch_seconds, workers)
    for share in SHARES:
        trial = weights.apply(loaded, options, chosen, share)
        at_source = _rates(decode(source, SEARCHES, trial))
        kept = [name for name in SEARCHES if is_kept(promise, at_source[name])]
        log.info("weights times %g: %s WER %s", share, source.name, _format(at_source))
        if kept:
            break
    else:
        raise DomainError(
            "no search keeps the source's WER within its limit",
            where=source.name,
            remedy="use the greedy decoders, without a domain",
        )
    if share == 0:
        log.warning("with any weights the source gets worse: this domain does nothing")
    at_target = _rates(decode(target, SEARCHES, trial))
    decoder, without = min(kept, key=lambda name: at_target[name]), min(_rates(before[target.name]).values())
    if at_target[decoder] >= without:
        log.warning("%s: the domain does not help: WER %.2f %% without it", target.name, 100 * without)
    found = weights.read(chosen, share)
    tuned = Tuned(
        decoder=decoder,
        beam=options.beam,
        ctc_weight=trial.ctc_weight,
        length_bonus=trial.length_bonus,
        lm_weight=found["lm"],
        temperature=temperature,
        split=f"{target.name}+{source.name}",
        wer=at_target,
    )
    return TunedDomain(
        tuned,
        found.get("hotwords", DEFAULT_HOTWORD_WEIGHT),
        promise,
        {name: _rates(evaluation) for name, evaluation in before.items()},
        {target.name: at_target, source.name: at_source},
    )


@dataclass(frozen=True)
class _Decoder:
    """Evaluates a split; spellings of hotwords are replaced, before and after alike."""

    loaded: Checkpoint
    hotwords: Sequence[Hotword]
    batch_seconds: float
    workers: int

    def __call__(self, split: DevSplit, decoders: Sequence[str], options: SearchOptions) -> Evaluation:
        return evaluate_split(
            self.loaded,
            split.utterances,
            split.name,
            decoders,
            options,
            hotwords=self.hotwords,
            batch_seconds=self.batch_seconds,
            workers=self.workers,
        )


class _Weights:
    """The scorers of a domain, by name: the language model, and hotwords if there are any."""

    def __init__(self, additions: Additions) -> None:
        self.additions = additions
        self.tried = {"lm": LM_WEIGHTS}
        self.defaults = [DEFAULT_LM_WEIGHT]
        if additions.hotwords:
            self.tried["hotwords"] = HOTWORD_WEIGHTS
            self.defaults.append(DEFAULT_HOTWORD_WEIGHT)

    def read(self, choice_P: Sequence[float], share: float = 1.0) -> dict[str, float]:
        """Return the scorers' weights of a choice, or a share of them."""
        return {name: share * float(weight) for name, weight in zip(self.tried, choice_P[3:], strict=True)}

    def listing(self, loaded: Checkpoint, options: SearchOptions) -> list[SearchOptions]:
        """Return the options of the beams that texts are listed with."""
        scorers = self.additions.make_scorers(loaded.tokenizer, device_of(loaded.recogniser))
        return [
            replace(options, scorers=tuple((scorer, share * weight) for scorer, weight in scorers))
            for share in LISTING_SHARES
        ]

    def apply(
        self, loaded: Checkpoint, options: SearchOptions, choice_P: Sequence[float], share: float
    ) -> SearchOptions:
        """Return the options of a choice with a share of the scorers' weights; those of before at 0."""
        if share == 0:
            return options
        found = self.read(choice_P, share)
        scorers = self.additions.make_scorers(loaded.tokenizer, device_of(loaded.recogniser))
        return replace(
            options,
            ctc_weight=float(choice_P[0]),
            length_bonus=float(choice_P[2]),
            scorers=tuple((scorer, found[scorer.name]) for scorer, _ in scorers),
        )


def _choose(
    loaded: Checkpoint,
    weights: _Weights,
    target: DevSplit,
    source: DevSplit,
    options: SearchOptions,
    promise: Promise,
    batch_seconds: float,
    workers: int,
) -> tuple[list[float], float]:
    """Return the choice with the fewest errors on the target that keeps the limit, and a temperature."""
    searches = weights.listing(loaded, options)
    choices_CP = list_choices(*weights.tried.values())
    lists = {
        split.name: collect_lists(
            loaded, split.utterances, split.name, searches, batch_seconds=batch_seconds, workers=workers
        )
        for split in (target, source)
    }
    on_target_C, on_source_C = (
        count_errors(found.errors_BK, found.parts_BKP, choices_CP) for found in lists.values()
    )
    is_allowed_C = on_source_C <= promise["limit"] * lists[source.name].num_words
    if not is_allowed_C.any():
        is_allowed_C = on_source_C == on_source_C.min()
    is_best_C = is_allowed_C & (on_target_C == on_target_C[is_allowed_C].min())
    is_best_C &= on_source_C == on_source_C[is_best_C].min()
    default_P = default_choice(options, *weights.defaults)
    chosen: list[float] = pick_choice(choices_CP, is_best_C, default_P).tolist()
    return chosen, fit_lists(lists[target.name])


def _promise_for(before: Evaluation, tolerance: float | None) -> Promise:
    errors = {
        name: [one.num_errors for one in result.score.utterances] for name, result in before.decoders.items()
    }
    lengths = [one.num_words for one in next(iter(before.decoders.values())).score.utterances]
    return make_promise(_rates(before), find_upper_ends(errors, lengths, before.ids), tolerance)


def _rates(evaluation: Evaluation) -> dict[str, float]:
    return {name: result.score.wer for name, result in evaluation.decoders.items()}


def _format(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * rate:.2f} %" for name, rate in rates.items())

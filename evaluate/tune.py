"""Choose the weights of rescoring on a dev split, and fit the temperature of confidences.

The encoder runs once. A wide CTC beam lists texts for each utterance, with all parts of their scores. A set
of weights only reorders these lists. That needs no model, so a thousand sets can be tried. But other weights
might have brought other texts into the beam. So the split is decoded again with the chosen weights: the
compared WERs are those of real decoding.

Letters: B utterances, K texts of each, P parts, C choices of weights, U labels, V vocabulary.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import jiwer
import numpy as np
import torch

from evaluate.run import evaluate_split, read_batches
from vox.additions import DEFAULT_LM_WEIGHT
from vox.checkpoint.files import Checkpoint
from vox.corpus import Utterance
from vox.data.batch import AudioBatch
from vox.decode import Hypothesis, SearchOptions
from vox.decode.align import align_labels
from vox.decode.confidence import fit_temperature, label_rows
from vox.decode.rescore import rescore_all
from vox.decoder_names import DEFAULT_SEARCH, VALIDATION_DECODERS
from vox.device import autocast, pick_precision
from vox.errors import CorpusError, name_count
from vox.hear import device_of, hear
from vox.score import space_units
from vox.text import Tokenizer
from vox.tuned import Tuned

log = logging.getLogger(__name__)

CTC_WEIGHTS = tuple(k / 10 for k in range(11))
LENGTH_BONUSES = tuple(k / 4 for k in range(-2, 7))
LM_WEIGHTS = tuple(k / 10 for k in range(11))
MAX_CONFIDENCE_LABELS = 20_000  # enough to fit a temperature, in little memory


@dataclass
class Lists:
    """Results of one pass over a split: texts with their errors and the parts of their scores."""

    errors_BK: list[list[int]] = field(default_factory=list)  # word errors of each text
    parts_BKP: list[list[list[float]]] = field(default_factory=list)  # ctc, attention, labels, then scorers
    rows_UV: list[torch.Tensor] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    is_right: list[bool] = field(default_factory=list)
    num_words: int = 0


def tune(
    loaded: Checkpoint,
    utterances: Sequence[Utterance],
    split: str,
    options: SearchOptions,
    *,
    batch_seconds: float = 120.0,
    workers: int = 0,
) -> Tuned:
    """Choose weights for `rescore`, then the best of `rescore`, `joint` and the greedy decoders.

    utterances: of the split, probed. options: the beam, and the language model, if any, as a scorer with its
    initial weight. Raises CorpusError if no recording can be read.
    """
    lists = collect_lists(loaded, utterances, split, [options], batch_seconds=batch_seconds, workers=workers)
    ctc_weight, length_bonus, lm_weight, errors = choose_weights(
        lists.errors_BK, lists.parts_BKP, has_lm=bool(options.scorers)
    )
    log.info(
        "%s: weights chosen on n-best lists (%s %.2f %% there); searching again with them",
        split,
        loaded.tokenizer.rate,
        100 * errors / lists.num_words,
    )
    chosen = replace(
        options,
        ctc_weight=ctc_weight,
        length_bonus=length_bonus,
        scorers=tuple((scorer, lm_weight) for scorer, _ in options.scorers),
    )
    decoders = (*VALIDATION_DECODERS, DEFAULT_SEARCH, "joint")
    evaluation = evaluate_split(
        loaded, utterances, split, decoders, chosen, batch_seconds=batch_seconds, workers=workers
    )
    wer = {name: result.score.wer for name, result in evaluation.decoders.items()}
    return Tuned(
        decoder=min(wer, key=lambda name: wer[name]),  # among equals the first, which is the cheapest
        beam=options.beam,
        ctc_weight=ctc_weight,
        length_bonus=length_bonus,
        lm_weight=lm_weight,
        temperature=fit_lists(lists),
        split=split,
        wer=wer,
    )


def choose_weights(
    errors_BK: Sequence[Sequence[int]], parts_BKP: Sequence[Sequence[Sequence[float]]], *, has_lm: bool
) -> tuple[float, float, float, int]:
    """Return the CTC weight, the length bonus, the language model's weight, and the word errors with them.

    parts_BKP: for each text its CTC score, its attention score, its number of labels, and its language model
    score. Where the default weights are as good as any they are taken, else of the best ones those nearest to
    their mean: the edge of a plateau is chance. Logs a warning if all weights are equally good.
    """
    choices_CP = list_choices(LM_WEIGHTS if has_lm else (0.0,))
    errors_C = count_errors(errors_BK, parts_BKP, choices_CP)
    if errors_C.min() == errors_C.max():
        log.warning(
            "this split cannot tell weights apart, all have %s: the default ones stay; tune on a longer or "
            "harder split",
            name_count(int(errors_C.min()), "error"),
        )
    default_P = default_choice(SearchOptions(), DEFAULT_LM_WEIGHT if has_lm else 0.0)
    chosen_P = pick_choice(choices_CP, errors_C == errors_C.min(), default_P)
    return float(chosen_P[0]), float(chosen_P[2]), float(chosen_P[3]), int(errors_C.min())


def list_choices(*scorer_weights: Sequence[float]) -> np.ndarray:
    """Return all combinations of weights, float64 [C, P], in the order of Lists.parts_BKP.

    scorer_weights: for each scorer the weights to try.
    """
    combinations = product(CTC_WEIGHTS, LENGTH_BONUSES, *scorer_weights)
    return np.array([(ctc, 1 - ctc, bonus, *others) for ctc, bonus, *others in combinations])


def count_errors(
    errors_BK: Sequence[Sequence[int]],
    parts_BKP: Sequence[Sequence[Sequence[float]]],
    choices_CP: np.ndarray,
) -> np.ndarray:
    """Return the word errors of the texts that each choice of weights puts first, int64 [C]."""
    errors_C = np.zeros(len(choices_CP), np.int64)
    for errors_K, parts_KP in zip(errors_BK, parts_BKP, strict=True):
        parts = np.array(parts_KP)
        totals_CK = choices_CP[:, : parts.shape[1]] @ parts.T
        errors_C += np.array(errors_K)[totals_CK.argmax(axis=1)]
    return errors_C


def default_choice(options: SearchOptions, *scorer_weights: float) -> np.ndarray:
    """Return the weights of options and of scorers as a row of `list_choices`, [P]."""
    return np.array([options.ctc_weight, 1 - options.ctc_weight, options.length_bonus, *scorer_weights])


def pick_choice(choices_CP: np.ndarray, is_best_C: np.ndarray, default_P: np.ndarray) -> np.ndarray:
    """Return the default if it is one of the best choices, else the one nearest to their mean, [P]."""
    best_CP = choices_CP[is_best_C]
    is_default_C = np.isclose(best_CP, default_P).all(axis=1)
    if is_default_C.any():
        best_CP = best_CP[is_default_C]
    middle: np.ndarray = best_CP[np.abs(best_CP - best_CP.mean(axis=0)).sum(axis=1).argmin()]
    return middle


def collect_lists(
    loaded: Checkpoint,
    utterances: Sequence[Utterance],
    split: str,
    searches: Sequence[SearchOptions],
    *,
    batch_seconds: float,
    workers: int,
) -> Lists:
    """List the texts that CTC beams find in a split, and of greedy attention, each text once.

    searches: the beams; they differ only in weights, which must not be 0. Raises CorpusError if no recording
    can be read.
    """
    lists = Lists()
    texts = {utterance.id: utterance.text for utterance in utterances}
    num_labels = sum(len(loaded.tokenizer.encode(text)) for text in texts.values())
    step = -(-num_labels // MAX_CONFIDENCE_LABELS)  # every step-th utterance is used for the temperature
    sampled = set(sorted(texts)[::step])
    for batch in read_batches(utterances, f"listing {split}", batch_seconds, workers, {}):
        _collect_batch(loaded, batch, searches, texts, sampled, lists)
    if not lists.errors_BK:
        raise CorpusError("no recording could be read", where=split, remedy="see the reasons above")
    return lists


@torch.inference_mode()
def _collect_batch(
    loaded: Checkpoint,
    batch: AudioBatch,
    searches: Sequence[SearchOptions],
    texts: Mapping[str, str],
    sampled: set[str],
    lists: Lists,
) -> None:
    recogniser, tokenizer = loaded.recogniser, loaded.tokenizer
    device = device_of(recogniser)
    batch = batch.to(device)
    with autocast(device, pick_precision("auto", device)):
        encoded = hear(recogniser, batch)
        found = [rescore_all(recogniser.decoder, encoded, options) for options in searches]
    for row, utterance_id in enumerate(batch.ids):
        reference = texts[utterance_id]
        lists.num_words += len(_spaced(reference, tokenizer).split())
        hypotheses_K = list({tuple(h.ids): h for lists_B in found for h in lists_B[row]}.values())
        lists.errors_BK.append([_count_errors(reference, h.ids, tokenizer) for h in hypotheses_K])
        lists.parts_BKP.append([_list_parts(hypothesis) for hypothesis in hypotheses_K])
        if utterance_id in sampled:
            log_probs_TV = encoded.ctc_log_probs_BTV[row, : int(encoded.num_frames_B[row])]
            _collect_words(log_probs_TV, hypotheses_K[0].ids, reference, tokenizer, lists)


def _list_parts(hypothesis: Hypothesis) -> list[float]:
    parts = dict(hypothesis.parts)
    return [parts.pop("ctc"), parts.pop("attention"), float(len(hypothesis.ids)), *parts.values()]


def _spaced(text: str, tokenizer: Tokenizer) -> str:
    return space_units(text, by_character=not tokenizer.has_words)


def _count_errors(reference: str, ids: Sequence[int], tokenizer: Tokenizer) -> int:
    hypothesis = tokenizer.decode(ids)
    found = jiwer.process_words(_spaced(reference, tokenizer), _spaced(hypothesis, tokenizer))
    return found.substitutions + found.deletions + found.insertions


def _collect_words(
    log_probs_TV: torch.Tensor, labels: list[int], reference: str, tokenizer: Tokenizer, lists: Lists
) -> None:
    """Add a text's labels, and which of its words are right, to the data of the temperature fit."""
    spans, groups = align_labels(log_probs_TV, labels), tokenizer.group_words(labels)
    if spans is None or not groups:
        return
    first = len(lists.is_right)
    hypothesis = " ".join(tokenizer.decode([labels[k] for k in group]) for group in groups)
    is_right = [False] * len(groups)
    for chunk in jiwer.process_words(_spaced(reference, tokenizer), hypothesis).alignments[0]:
        if chunk.type == "equal":
            is_right[chunk.hyp_start_idx : chunk.hyp_end_idx] = [True] * (
                chunk.hyp_end_idx - chunk.hyp_start_idx
            )
    rows_UV = label_rows(log_probs_TV, labels, spans).cpu()
    for number, group in enumerate(groups):
        lists.rows_UV.append(rows_UV[group])
        lists.labels += [labels[k] for k in group]
        lists.words += [first + number] * len(group)
    lists.is_right += is_right


def fit_lists(lists: Lists) -> float:
    if not lists.rows_UV:
        return 1.0
    return fit_temperature(torch.cat(lists.rows_UV), lists.labels, lists.words, lists.is_right)

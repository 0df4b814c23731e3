"""All searches: against enumeration, batched against single, parts against recomputation, weights of 0."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.oracles import PairScorer, WordScorer, all_texts, ctc_forward, teacher_forced
from tests.support.tiny_model import FEATURE_DIM, encoded_alone, make_recogniser, pad
from vox.decode import DECODERS, Hypothesis, SearchOptions, make_search
from vox.decode.attention import greedy_attention
from vox.decode.ctc import min_ctc_frames
from vox.decode.label_beam import search_labels
from vox.decode.rescore import score_texts
from vox.decode.scorer import LengthBonus, Scorers
from vox.decoder_names import DECODER_NAMES, GREEDY_DECODERS, VALIDATION_DECODERS, check_decoders
from vox.errors import ConfigError
from vox.model.decoder import Decoder
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser
from vox.text import BLANK_ID, EOS_ID

VOCAB_SIZE = 7
LABELS = range(3, VOCAB_SIZE)
LONGEST = 3
UNBOUNDED = 150  # more than there are continuations: 85 texts of at most 3 labels
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"cross_attention": "plain"},
    "label_clock": {},
    "short_context": {"decoder_context": 2},
}
SEARCHES = sorted(DECODERS.keys() - set(GREEDY_DECODERS))
Weighted = tuple[tuple[Any, float], ...]


def make_tiny(kind: str = "label_clock", seed: int = 4, vocab_size: int = VOCAB_SIZE) -> Recogniser:
    """Build a recogniser whose decoder prefers another label at each step, and sometimes eos."""
    recogniser = make_recogniser(seed=seed, vocab_size=vocab_size, **KINDS[kind])
    with torch.no_grad():
        recogniser.decoder.norm.bias.zero_()  # would name the same label at every step
        recogniser.decoder.embedding.weight.mul_(4)
    return recogniser


def encode(recogniser: Recogniser, lengths: list[int], seed: int = 1) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(length, FEATURE_DIM, generator=generator) for length in lengths]
    with torch.no_grad():
        return recogniser.encode(pad(features, max(lengths), 0.0), torch.tensor(lengths))


def with_a_silence(encoded: Encoded, row: int) -> Encoded:
    """Let CTC find only blanks in one utterance."""
    log_probs_BTV = encoded.ctc_log_probs_BTV.clone()
    log_probs_BTV[row, :, BLANK_ID] += 12.0
    return replace(encoded, ctc_log_probs_BTV=log_probs_BTV.log_softmax(-1))


def scorers_of_tests() -> Weighted:
    return (
        (PairScorer(VOCAB_SIZE, seed=1), 0.7),
        (WordScorer(VOCAB_SIZE, (4, 5), budget=2.0), 1.2),
        (LengthBonus(VOCAB_SIZE), 0.9),
    )


def recompute_parts(
    recogniser: Recogniser, encoded: Encoded, ids: list[int], scorers: Weighted = ()
) -> dict[str, float]:
    """Return every part of a text's score; encoded has one utterance without padding."""
    scored = {
        scorer.name: len(ids) if scorer.name == "length" else scorer.score(ids) for scorer, _ in scorers
    }
    return {
        "attention": teacher_forced(recogniser.decoder, encoded, ids),
        "ctc": ctc_forward(encoded.ctc_log_probs_BTV[0], ids),
        **scored,
    }


def weights_of(name: str, options: SearchOptions) -> dict[str, float]:
    weights = {
        "ctc_beam": {"ctc": 1.0},
        "attention_beam": {"attention": 1.0},
        "rescore": {"ctc": options.ctc_weight, "attention": 1 - options.ctc_weight},
        "joint": {"ctc": options.ctc_weight, "attention": 1 - options.ctc_weight},
    }[name]
    return weights | {scorer.name: weight for scorer, weight in options.scorers}


def weigh(parts: dict[str, float], weights: dict[str, float]) -> float:
    return sum(weight * parts[name] for name, weight in weights.items() if weight)


# T11: an unbounded beam finds what enumeration finds


@functools.cache
def enumerate_parts(kind: str) -> tuple[Recogniser, Encoded, list[dict[tuple[int, ...], dict[str, float]]]]:
    """Return a recogniser, two utterances, and for each all texts with the parts of their scores."""
    recogniser = make_tiny(kind)
    encoded = encode(recogniser, [6, 3])
    return (
        recogniser,
        encoded,
        [
            {
                text: recompute_parts(recogniser, encoded_alone(encoded, row), list(text), scorers_of_tests())
                for text in all_texts(LABELS, LONGEST)
            }
            for row in range(2)
        ],
    )


@pytest.mark.parametrize("nbest", [1, 85])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_without_bound_a_search_over_labels_is_enumeration(kind: str, ctc_weight: float, nbest: int) -> None:
    """End detection is right: with nbest 1 the search stops as early as allowed, also with bonuses."""
    recogniser, encoded, parts = enumerate_parts(kind)
    limits_B = torch.tensor([LONGEST, LONGEST])
    for scorers in ((), scorers_of_tests()):
        options = SearchOptions(
            beam=UNBOUNDED, nbest=nbest, ctc_weight=ctc_weight, pre_beam=VOCAB_SIZE, scorers=scorers
        )
        weights = weights_of("joint", options)
        results = search_labels(recogniser.decoder, encoded, limits_B, options, ctc_weight)
        for row, found in enumerate(results):
            totals = {text: weigh(each, weights) for text, each in parts[row].items()}
            # What CTC cannot spell in so few frames is no hypothesis.
            expected = {text: total for text, total in totals.items() if total > -math.inf}
            best = sorted(expected.values(), reverse=True)[:nbest]
            assert [hypothesis.score for hypothesis in found] == pytest.approx(best, abs=1e-4)
            for hypothesis in found:
                assert hypothesis.score == pytest.approx(expected.pop(tuple(hypothesis.ids)), abs=1e-4)


def test_an_early_end_is_not_the_answer_where_labels_gain_more_later() -> None:
    """Ending at once earns 20. A pair of labels earns 60 more, but its first label alone earns nothing."""
    recogniser = make_tiny()
    encoded = encode(recogniser, [6])
    scorer = PairScorer(VOCAB_SIZE, seed=0, scale=0.0)
    scorer.table_VV[:, EOS_ID] = 20.0
    scorer.table_VV[4, 6] = 60.0
    scorer.bounds = (0.0, 60.0)
    options = SearchOptions(beam=UNBOUNDED, scorers=((scorer, 1.0),))
    without_bounds = SimpleNamespace(
        name="pairs", start=scorer.start, scores=scorer.scores, advance=scorer.advance
    )
    for used in (options, replace(options, scorers=((without_bounds, 1.0),))):
        ((best,),) = search_labels(recogniser.decoder, encoded, torch.tensor([3]), used, 0.0)
        assert best.parts["pairs"] == 80.0


def test_the_most_that_scorers_can_give_counts_the_sign_of_their_weights() -> None:
    scorer = PairScorer(VOCAB_SIZE, seed=0)
    scorer.bounds = (-3.0, 2.0)
    bonus, unknown = LengthBonus(VOCAB_SIZE), SimpleNamespace(name="unknown")
    cases: list[tuple[Any, float]] = [
        ((), 0.0),
        (((scorer, 1.0), (bonus, 0.5)), 2.5),
        (((scorer, -0.5), (bonus, -0.4)), 1.5),
        (((unknown, 0.1),), math.inf),
        (((unknown, 0.0),), 0.0),
    ]
    assert [Scorers(scorers).most_gain() for scorers, _ in cases] == [gain for _, gain in cases]


def test_rescoring_is_brute_force_over_the_n_best_and_the_greedy_text() -> None:
    recogniser = make_tiny()
    encoded = encode(recogniser, [9, 1, 14])
    for scorers in ((), scorers_of_tests()):
        first = SearchOptions(beam=6, nbest=6, scorers=scorers)
        n_best = DECODERS["ctc_beam"](recogniser, encoded, first)
        greedy = DECODERS["attention"](recogniser, encoded, first)
        for weight in (0.0, 0.4, 1.0):
            options = replace(first, ctc_weight=weight)
            for row, found in enumerate(DECODERS["rescore"](recogniser, encoded, options)):
                alone = encoded_alone(encoded, row)
                ids = {tuple(h.ids) for h in n_best[row]}
                if min_ctc_frames(greedy[row][0].ids) <= int(encoded.num_frames_B[row]):
                    ids.add(tuple(greedy[row][0].ids))
                totals = {
                    text: weigh(
                        recompute_parts(recogniser, alone, list(text), scorers),
                        weights_of("rescore", options),
                    )
                    for text in ids
                }
                expected = sorted(totals, key=totals.__getitem__, reverse=True)[: options.nbest]
                assert [tuple(h.ids) for h in found] == expected
                assert [h.score for h in found] == pytest.approx([totals[t] for t in expected], abs=1e-4)


def test_a_beam_of_one_is_greedy_attention() -> None:
    """The same labels, and the same texts truncated at the limit."""
    recogniser = make_tiny(seed=3, vocab_size=17)
    audio = [8, 1, 33, 12, 3, 25, 40, 17]
    limits_B = torch.tensor([20, 12, 20, 0, 20, 15, 40, 1])
    encoded = encode(recogniser, audio, seed=8)
    found = search_labels(recogniser.decoder, encoded, limits_B, SearchOptions(beam=1), 0.0)
    expected = list(zip(*greedy_attention(recogniser.decoder, encoded, limits_B), strict=True))
    assert [(best.ids, best.is_truncated) for (best,) in found] == expected
    assert {is_truncated for _, is_truncated in expected} == {True, False}
    assert len({len(ids) for ids, _ in expected}) > 3


def test_a_label_outside_the_pre_beam_is_impossible() -> None:
    """With one label to choose from, every text is a prefix of the decoder's greedy labels."""
    recogniser = make_tiny()
    encoded = encode(recogniser, [12])
    options = SearchOptions(beam=8, nbest=8, pre_beam=1)
    (found,) = search_labels(recogniser.decoder, encoded, torch.tensor([6]), options, 0.5)
    longest = max((hypothesis.ids for hypothesis in found), key=len)
    assert len(longest) > 2
    for hypothesis in found:
        assert hypothesis.ids == longest[: len(hypothesis.ids)]
    for count in range(len(longest)):
        tokens_1U = torch.tensor([[1, *longest[:count]]])
        logits_V = recogniser.decoder(tokens_1U, encoded)[0, -1]
        assert longest[count] == 3 + int(logits_V[3:].argmax())


# T12: batched is alone


@pytest.mark.parametrize("has_scorers", [False, True])
@pytest.mark.parametrize("name", SEARCHES)
def test_batched_is_alone(name: str, has_scorers: bool) -> None:
    recogniser = make_tiny()
    lengths = [23, 1, 40, 7, 16]
    encoded = with_a_silence(encode(recogniser, lengths), 4)
    options = SearchOptions(beam=4, nbest=3, scorers=scorers_of_tests()[:2] if has_scorers else ())
    together = DECODERS[name](recogniser, encoded, options)
    assert len(together) == 5
    for row, found in enumerate(together):
        (alone,) = DECODERS[name](recogniser, encoded_alone(encoded, row), options)
        assert [(h.ids, h.is_truncated) for h in found] == [(h.ids, h.is_truncated) for h in alone]
        assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-4)
    if name == "ctc_beam" and not has_scorers:
        assert together[4][0].ids == []
    order_B = torch.tensor([3, 0, 4, 2, 1])
    turned = Encoded(
        encoded.hidden_BTD[order_B],
        encoded.num_frames_B[order_B],
        encoded.ctc_log_probs_BTV[order_B],
        encoded.label_positions_BT[order_B],  # type: ignore[index]
    )
    for row, found in zip(order_B.tolist(), DECODERS[name](recogniser, turned, options), strict=True):
        assert [h.ids for h in found] == [h.ids for h in together[row]]


def test_an_utterance_that_is_done_leaves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has as many steps as its longest utterance; a step has only the rows of unfinished ones."""
    recogniser = make_tiny()
    step: Callable = Decoder.step
    rows: list[int] = []
    monkeypatch.setattr(
        Decoder,
        "step",
        lambda self, token_B, cache: (rows.append(len(token_B)), step(self, token_B, cache))[1],
    )
    encoded, limits_B = encode(recogniser, [23, 1, 40, 7]), torch.tensor([9, 2, 12, 4])
    options = SearchOptions(beam=3)
    search_labels(recogniser.decoder, encoded, limits_B, options, 0.0)
    together, counts = rows[:], []
    for row in range(4):
        rows.clear()
        search_labels(recogniser.decoder, encoded_alone(encoded, row), limits_B[row : row + 1], options, 0.0)
        counts.append(len(rows))
    expected = [sum(count > index for count in counts) for index in range(max(counts))]
    assert together == [expected[0], *(3 * count for count in expected[1:])]
    assert len(set(counts)) > 1


# T13: a score is a sum that anyone can recompute


@pytest.mark.parametrize("name", SEARCHES)
def test_a_score_is_the_weighted_sum_of_parts_and_each_part_is_recomputed(name: str) -> None:
    """Narrow beams prune much. Each part is recomputed differently: recursion, teacher forcing, loops."""
    recogniser = make_tiny()
    encoded = encode(recogniser, [30, 1, 12])
    for scorers in ((), scorers_of_tests()):
        options = SearchOptions(beam=3, nbest=3, scorers=scorers)
        weights = weights_of(name, options)
        for row, found in enumerate(DECODERS[name](recogniser, encoded, options)):
            assert found and len({tuple(h.ids) for h in found}) == len(found)
            assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
            for hypothesis in found:
                parts = recompute_parts(recogniser, encoded_alone(encoded, row), hypothesis.ids, scorers)
                assert dict(hypothesis.parts) == pytest.approx({k: parts[k] for k in weights}, abs=2e-4)
                assert hypothesis.score == pytest.approx(weigh(dict(hypothesis.parts), weights), abs=1e-5)


def test_a_hypothesis_cut_off_has_its_end_scored_once() -> None:
    recogniser = make_tiny(seed=3)
    encoded = encode(recogniser, [12, 9])
    results = search_labels(
        recogniser.decoder, encoded, torch.tensor([2, 1]), SearchOptions(beam=4, nbest=4), 0.0
    )
    assert any(hypothesis.is_truncated for found in results for hypothesis in found)
    for row, found in enumerate(results):
        for hypothesis in found:
            score = teacher_forced(recogniser.decoder, encoded_alone(encoded, row), hypothesis.ids)
            assert hypothesis.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_one_utterance_scored_together_are_scored_alone(kind: str) -> None:
    recogniser = make_tiny(kind)
    encoded = encode(recogniser, [20, 5, 1])
    texts = [[[3, 4, 5], [], [6]], [[4]], [[5, 5, 5, 5, 3, 4], [3]]]
    found = score_texts(recogniser.decoder, encoded, texts)
    for row, group in enumerate(texts):
        alone = encoded_alone(encoded, row)
        expected = [teacher_forced(recogniser.decoder, alone, text) for text in group]
        assert found[row] == pytest.approx(expected, abs=1e-4)


# T14: weights of zero change nothing


@pytest.mark.parametrize("name", SEARCHES)
def test_a_scorer_of_weight_zero_changes_nothing(name: str) -> None:
    recogniser = make_tiny()
    encoded = encode(recogniser, [23, 1, 7])
    forbids_all = PairScorer(VOCAB_SIZE, seed=0)
    forbids_all.table_VV.fill_(-math.inf)
    plain = SearchOptions(beam=4, nbest=4)
    zeros: Weighted = ((forbids_all, 0.0), *((scorer, 0.0) for scorer, _ in scorers_of_tests()))
    tokenizer: Any = SimpleNamespace(vocab_size=VOCAB_SIZE)
    for options in (replace(plain, scorers=zeros[:1]), replace(plain, scorers=zeros[1:], length_bonus=0.0)):
        found = make_search(name, options, tokenizer)(recogniser, encoded)
        assert found == DECODERS[name](recogniser, encoded, plain)


def test_joint_without_ctc_is_the_attention_beam_and_the_bonus_is_a_scorer() -> None:
    recogniser = make_tiny()
    encoded = encode(recogniser, [23, 1, 7])
    tokenizer: Any = SimpleNamespace(vocab_size=VOCAB_SIZE)
    options = SearchOptions(beam=4, nbest=2, ctc_weight=0.0, pre_beam=1, length_bonus=0.5)
    found = make_search("joint", options, tokenizer)(recogniser, encoded)
    assert found == make_search("attention_beam", options, tokenizer)(recogniser, encoded)
    assert all(hypothesis.parts["length"] == len(hypothesis.ids) for row in found for hypothesis in row)


# Names and options


def test_half_precision_around_leaves_scores_in_float32() -> None:
    """The decoder's matrix products may be in half precision; sums of log-probabilities may not."""
    recogniser = make_tiny()
    encoded = encode(recogniser, [30, 12])
    options = SearchOptions(beam=3, nbest=3)
    for name in ("rescore", "joint"):
        with torch.autocast("cpu", torch.bfloat16):
            results = DECODERS[name](recogniser, encoded, options)
        for row, found in enumerate(results):
            log_probs_TV = encoded_alone(encoded, row).ctc_log_probs_BTV[0]
            for hypothesis in found:
                assert hypothesis.parts["ctc"] == pytest.approx(
                    ctc_forward(log_probs_TV, hypothesis.ids), abs=1e-4
                )


def test_greedy_decoders_stay_as_they_were_and_validation_with_them() -> None:
    assert VALIDATION_DECODERS == GREEDY_DECODERS == ("ctc", "attention")
    recogniser = make_tiny()
    encoded = encode(recogniser, [23, 4])
    for name in GREEDY_DECODERS:
        for (hypothesis,) in DECODERS[name](recogniser, encoded, SearchOptions(beam=7)):
            assert hypothesis == Hypothesis(hypothesis.ids, hypothesis.is_truncated)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beam": 0}, "a beam of 0; use at least 1"),
        ({"beam": 4, "nbest": 5}, "5 best of a beam of 4; ask for 1 to 4, or widen it"),
        ({"nbest": 0}, "0 best of a beam of 8; ask for 1 to 8, or widen it"),
        ({"ctc_weight": 1.1}, "a CTC weight of 1.1; use 0 to 1"),
        ({"ctc_weight": math.nan}, "a CTC weight of nan; use 0 to 1"),
        ({"pre_beam": 0}, "a pre-beam of 0; use at least 1"),
        ({"length_bonus": math.inf}, "a length bonus of inf; give a number"),
        ({"scorers": ((LengthBonus(7), math.nan),)}, "weight nan is not a number: length"),
        ({"scorers": ((LengthBonus(7), 1), (LengthBonus(7), 2))}, "two scorers of one name: length, length"),
    ],
)
def test_impossible_options_are_errors(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        SearchOptions(**options)
    assert str(raised.value) == words


def test_a_beam_without_a_search_and_unknown_names_are_errors() -> None:
    assert set(DECODER_NAMES) == DECODERS.keys()
    check_decoders(["ctc"], None)
    check_decoders(["ctc", "joint"], 3)
    with pytest.raises(
        ConfigError, match="these decoders are greedy; add --decoder attention_beam or ctc_beam"
    ):
        check_decoders(["ctc"], 3)
    with pytest.raises(ConfigError, match="unknown decoder: beam; use attention or attention_beam or ctc"):
        check_decoders(["beam"], None)

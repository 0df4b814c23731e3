"""Decoding: step by step equals teacher forcing, and greedy search equals slow references."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny_model import FEATURE_DIM, TINY, encoded_alone, make_recogniser, pad, take_rows
from vox.decode import DECODERS, Hypothesis, SearchOptions
from vox.decode.attention import greedy_attention, label_limits
from vox.decode.ctc import greedy_ctc, min_ctc_frames
from vox.model.decoder import Decoder
from vox.model.encoded import Encoded
from vox.text import BLANK_ID, BOS_ID, EOS_ID, PAD_ID

TOLERANCE = 1e-4  # max abs difference of logits, fp32
VOCAB_SIZE = TINY["vocab_size"]
RECOGNISERS = {
    "plain": make_recogniser(seed=1, cross_attention="plain"),
    "label_clock": make_recogniser(seed=1),
    "short_context": make_recogniser(seed=1, decoder_context=3),
}
RECOGNISER = RECOGNISERS["label_clock"]


def random_encoded(lengths: list[int], seed: int, kind: str = "label_clock") -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(length, FEATURE_DIM, generator=generator) for length in lengths]
    num_frames_B = torch.tensor(lengths)
    with torch.no_grad():
        return RECOGNISERS[kind].encode(pad(features, max(lengths), 0.0), num_frames_B)


def random_tokens(lengths: list[int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.cat([torch.tensor([BOS_ID]), torch.randint(2, VOCAB_SIZE, (n,), generator=generator)])
        for n in lengths
    ]


# Audio and label lengths of a batch; 70 labels outgrow the first buffers twice.
@pytest.mark.parametrize("kind", RECOGNISERS)
@pytest.mark.parametrize(
    ("audio", "labels"),
    [([6], [4]), ([23, 1, 40, 7], [9, 3, 0, 14]), ([2, 50], [70, 33]), ([30, 29], [5, 5])],
)
@torch.no_grad()
def test_each_step_gives_the_teacher_forced_logits(audio: list[int], labels: list[int], kind: str) -> None:
    decoder, encoded = RECOGNISERS[kind].decoder, random_encoded(audio, len(audio), kind)
    tokens = random_tokens(labels, seed=sum(labels))
    tokens_BU = pad(tokens, max(labels) + 1, PAD_ID)
    batched_BUV = decoder(tokens_BU, encoded)
    cache = decoder.start(encoded)
    for position in range(max(labels) + 1):
        step_BV = decoder.step(tokens_BU[:, position], cache)
        assert (step_BV - batched_BUV[:, position]).abs().max() <= TOLERANCE
        for row, tokens_U in enumerate(tokens):
            if position < len(tokens_U):
                lone_UV = decoder(tokens_U[None], encoded_alone(encoded, row))[0]
                assert (step_BV[row] - lone_UV[position]).abs().max() <= TOLERANCE


@torch.no_grad()
def test_a_context_hides_frames_that_are_many_labels_away() -> None:
    """Frames 0 to 59 are at labels 0, 0.5, … 29.5; a frame at label p moves labels p - 3 to p + 3 + 2."""
    decoder, seen = RECOGNISERS["short_context"].decoder, random_encoded([60], seed=2)
    encoded = replace(seen, label_positions_BT=torch.arange(60.0)[None] / 2)
    tokens_BU = random_tokens([19], seed=2)[0][None]
    before_UV = decoder(tokens_BU, encoded)[0]
    for frame, first, last in ((2, 0, 6), (30, 12, 20), (58, 26, 30)):
        hidden_BTD = encoded.hidden_BTD.clone()
        hidden_BTD[0, frame, 0] += 5
        after_UV = decoder(tokens_BU, replace(encoded, hidden_BTD=hidden_BTD))[0]
        is_moved_U = ((after_UV - before_UV).abs() > 1e-6).any(-1)
        assert is_moved_U.tolist() == [first <= index <= last for index in range(20)]
    # Frames gather at whole numbers: rounding there, which depends on the batch, must not hide any.
    whole_BT = (torch.arange(60.0)[None] / 6).floor()
    rounded = [
        decoder(tokens_BU, replace(encoded, label_positions_BT=whole_BT + error))
        for error in (-1e-6, 0, 1e-6)
    ]
    assert all((logits_BUV - rounded[1]).abs().max() <= TOLERANCE for logits_BUV in rounded)
    # Labels beyond the last position see what one at the last position sees.
    short = replace(encoded, label_positions_BT=torch.full((1, 60), 2.0))
    assert decoder(tokens_BU, short).isfinite().all()


@torch.no_grad()
def test_selected_rows_go_on_as_before_and_leave_the_old_cache_alone() -> None:
    decoder = RECOGNISER.decoder
    encoded = random_encoded([12, 5, 30], seed=3)
    tokens_BU = torch.stack(random_tokens([6, 6, 6], seed=3))
    cache = decoder.start(encoded)
    index_B = torch.tensor([2, 0, 0])
    unstarted = cache.select(index_B)
    for position in range(3):
        decoder.step(tokens_BU[:, position], cache)

    # Rows 0 and 0 take different tokens from here on, as two hypotheses of one utterance do.
    chosen_BU = tokens_BU[index_B]
    chosen_BU[1, 3:] = torch.tensor([9, 10, 11, 12])
    selected = cache.select(index_B)
    expected_BUV = decoder(chosen_BU, take_rows(encoded, index_B))
    for position in range(3, 7):
        step_BV = decoder.step(chosen_BU[:, position], selected)
        assert (step_BV - expected_BUV[:, position]).abs().max() <= TOLERANCE
    unselected_BUV = decoder(tokens_BU, encoded)
    assert (decoder.step(tokens_BU[:, 3], cache) - unselected_BUV[:, 3]).abs().max() <= TOLERANCE
    assert (decoder.step(chosen_BU[:, 0], unstarted) - expected_BUV[:, 0]).abs().max() <= TOLERANCE


def greedy_by_hand(decoder: Decoder, encoded: Encoded, limit: int) -> tuple[list[int], bool]:
    """Decode one utterance without a cache: the whole sequence again for each label."""
    labels: list[int] = []
    while True:
        tokens_1U = torch.tensor([[BOS_ID, *labels]])
        scores = decoder(tokens_1U, encoded)[0, -1].tolist()
        best = max((i for i in range(len(scores)) if i not in (PAD_ID, BOS_ID)), key=scores.__getitem__)
        if best == EOS_ID:
            return labels, False
        if len(labels) == limit:
            return labels, True
        labels.append(best)


@torch.no_grad()
def test_greedy_attention_equals_decoding_each_utterance_alone_without_a_cache() -> None:
    decoder = make_recogniser(seed=3).decoder
    decoder.norm.bias.zero_()  # would name the same label at every step
    decoder.embedding.weight.mul_(4)
    audio = [8, 1, 33, 12, 3, 25, 40, 17]
    limits = [20, 12, 20, 0, 20, 15, 40, 1]
    encoded = random_encoded(audio, seed=8)
    expected = [
        greedy_by_hand(decoder, encoded_alone(encoded, row), limits[row]) for row in range(len(audio))
    ]
    found = greedy_attention(decoder, encoded, torch.tensor(limits))
    assert list(zip(*found, strict=True)) == expected
    assert {truncated for _, truncated in expected} == {True, False}  # both endings are in this test
    assert len({len(labels) for labels, _ in expected}) > 3


@dataclass
class ScriptCache:
    rows: list[int]
    step: int = 0

    def select(self, index_B: torch.Tensor) -> "ScriptCache":
        return ScriptCache([self.rows[index] for index in index_B.tolist()], self.step)


class ScriptedDecoder:
    """Follows a script, but gives pad and bos the highest scores; records the number of rows of each step."""

    def __init__(self, scripts: list[list[int]]) -> None:
        self.scripts = scripts
        self.batch_sizes: list[int] = []
        self.heard: list[list[int]] = []

    def start(self, encoded: Encoded) -> ScriptCache:
        return ScriptCache(list(range(len(self.scripts))))

    def step(self, token_B: torch.Tensor, cache: ScriptCache) -> torch.Tensor:
        logits_BV = torch.zeros(len(cache.rows), VOCAB_SIZE)
        logits_BV[:, [PAD_ID, BOS_ID]] = 9.0
        for position, row in enumerate(cache.rows):
            logits_BV[position, self.scripts[row][cache.step]] = 5.0
        cache.step += 1
        self.batch_sizes.append(len(cache.rows))
        self.heard.append(token_B.tolist())
        return logits_BV


def test_rows_stop_at_eos_or_at_their_limit_and_leave_the_batch() -> None:
    decoder = ScriptedDecoder([[7, EOS_ID], [EOS_ID], [4, 5, 6, 7, 8], [9, 9, 9, EOS_ID], [4, 4, EOS_ID]])
    limits_B = torch.tensor([10, 10, 2, 4, 2])
    labels, is_truncated = greedy_attention(
        decoder,  # type: ignore[arg-type]
        Encoded(torch.zeros(5, 6, 2), torch.full((5,), 6), torch.zeros(5, 6, VOCAB_SIZE), None),
        limits_B,
    )
    assert labels == [[7], [], [4, 5], [9, 9, 9], [4, 4]]
    assert is_truncated == [False, False, True, False, False]
    assert decoder.batch_sizes == [5, 4, 3, 1]
    assert decoder.heard == [[BOS_ID] * 5, [7, 4, 9, 4], [5, 9, 4], [9]]


def test_label_limits_are_25_a_second_and_at_least_10() -> None:
    assert label_limits(torch.tensor([1, 20, 21, 50, 1000])).tolist() == [10, 10, 10, 25, 500]


def greedy_ctc_by_hand(best: list[int]) -> list[int]:
    labels, previous = [], BLANK_ID
    for label in best:
        if label != BLANK_ID and label != previous:
            labels.append(label)
        previous = label
    return labels


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=4))
def test_greedy_ctc_equals_the_loop_over_frames(best: list[list[int]]) -> None:
    best_BT = pad([torch.tensor(row) for row in best], 14, 3)  # padded frames say 3
    logits_BTV = F.one_hot(best_BT, 5).float()
    found = greedy_ctc(logits_BTV, torch.tensor([len(row) for row in best]))
    assert found == [greedy_ctc_by_hand(row) for row in best]


def test_greedy_ctc_merges_repeats_before_it_drops_blanks() -> None:
    best_BT = torch.tensor([[0, 5, 5, 0, 5, 6, 6, 0]])
    assert greedy_ctc(F.one_hot(best_BT, 9), torch.tensor([8])) == [[5, 5, 6]]


@pytest.mark.parametrize("labels", [[], [4], [4, 4], [4, 5, 4], [4, 4, 4, 5, 5]])
def test_min_ctc_frames_is_where_torch_stops_finding_alignments(labels: list[int]) -> None:
    log_probs_TBV = torch.zeros(12, 1, 9).log_softmax(-1)
    is_alignable = [
        F.ctc_loss(
            log_probs_TBV, torch.tensor([labels]), torch.tensor([num_frames]), torch.tensor([len(labels)])
        ).isfinite()
        for num_frames in range(1, 13)
    ]
    assert is_alignable.index(True) + 1 == max(1, min_ctc_frames(labels))


def test_both_greedy_decoders_return_a_hypothesis_an_utterance() -> None:
    encoded = random_encoded([30, 4], seed=11)
    ids = greedy_ctc(RECOGNISER.ctc_head(encoded.hidden_BTD), encoded.num_frames_B)
    options = SearchOptions()
    assert DECODERS["ctc"](RECOGNISER, encoded, options) == [[Hypothesis(row, False)] for row in ids]
    pairs = zip(*greedy_attention(RECOGNISER.decoder, encoded, torch.tensor([15, 10])), strict=True)
    assert DECODERS["attention"](RECOGNISER, encoded, options) == [[Hypothesis(*pair)] for pair in pairs]

"""Long recordings: windows that own each frame once, the file's own statistics, pieces cut at pauses.

S samples, T frames, C channels, D model width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.speech import make_speech
from tests.support.tiny_model import make_recogniser
from tests.support.untrained import save_arbitrary_checkpoint
from tests.support.wavlm_models import SHAPES, copy_to_ours, make_reference, make_waveform, relative_l2
from vox.checkpoint.files import load_recogniser
from vox.decode import Hypothesis, SearchOptions, make_search
from vox.decode.ctc import greedy_ctc
from vox.decode.found import Found, join_hypotheses
from vox.long import recognise, recognise_long
from vox.long.cut import cut_pieces, find_cut
from vox.long.windows import (
    MAX_WINDOW_FRAMES,
    MIN_WINDOW_FRAMES,
    encode_windows,
    plan_windows,
    slice_frames,
)
from vox.model.encoded import Encoded
from vox.text import BLANK_ID
from vox.transcribe import Transcriber
from vox.units import FRAME_RATE, HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE, samples_to_frames
from vox.wavlm.measure import Measured
from vox.wavlm.stem import clean_waveforms

PLAIN = Measured(0.0, 1.0, (None, None))
LABEL = 5


@given(
    num_frames=st.integers(1, 4_000),
    step=st.integers(4, 700),
    context=st.integers(0, 60).map(lambda quarters: 4 * quarters),
)
def test_each_frame_is_owned_once_and_seen_with_its_context(num_frames: int, step: int, context: int) -> None:
    windows = plan_windows(num_frames, step + 2 * context, context)
    owned = [frame for window in windows for frame in range(window.own_first, window.own_end)]
    assert owned == list(range(num_frames))
    for window in windows:
        assert window.first % 4 == 0 and window.end - window.first <= step + 2 * context
        assert window.first in (0, window.own_first - context)
        assert window.end == num_frames or window.end - window.own_end == context


class FrameNumbers(torch.nn.Module):
    """A recogniser whose hidden state is the frame's index, taken from the waveform."""

    def __init__(self, script: Sequence[int], size: int = 8) -> None:
        super().__init__()
        self.size = size  # of the vocabulary
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(cross_attention="plain")
        self.script = torch.tensor(script)
        self.longest_window = 0
        self.extractor = self.extract
        self.extract.__func__.wavlm = SimpleNamespace(measure=lambda _: PLAIN)

    def extract(self, seen_BS: Tensor, num_samples_B: Tensor, _: Measured) -> tuple[Tensor, Tensor]:
        """Return the first sample of each frame."""
        num_frames_B = samples_to_frames(num_samples_B)
        self.longest_window = max(self.longest_window, int(num_frames_B))
        return seen_BS[:, ::HOP_SAMPLES][:, : int(num_frames_B), None], num_frames_B

    def encode(self, features_BTC: Tensor, num_frames_B: Tensor) -> Encoded:
        """Score the script's label for each frame."""
        labels_BT = self.script[features_BTC[..., 0].long()]
        log_probs_BTV = torch.nn.functional.one_hot(labels_BT, self.size).float().mul(20).log_softmax(2)
        return Encoded(features_BTC, num_frames_B, log_probs_BTV, None)


def number_frames(num_frames: int) -> Tensor:
    """Return a waveform whose sample is the index of the last frame that begins at or before it."""
    num_samples = (num_frames - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES
    return (torch.arange(num_samples) // HOP_SAMPLES).float()


@pytest.mark.parametrize("num_frames", [3_201, 3_202, 3_203, 3_204, 1_203])
def test_an_identity_model_shows_each_frame_once_in_order(num_frames: int) -> None:
    model = FrameNumbers([BLANK_ID] * num_frames)
    windows = plan_windows(num_frames, MAX_WINDOW_FRAMES)
    parts = encode_windows(model, number_frames(num_frames), PLAIN, windows)  # type: ignore[arg-type]
    pieces = list(cut_pieces(parts, 700))
    shown = torch.cat([piece.hidden_BTD[0, :, 0] for piece in pieces])
    assert torch.equal(shown, torch.arange(num_frames).float())
    assert max(int(piece.num_frames_B) for piece in pieces) <= 700
    assert all(int(piece.num_frames_B) == piece.ctc_log_probs_BTV.shape[1] for piece in pieces)


def test_words_across_every_seam_come_back_with_their_times_in_bounded_windows() -> None:
    """Labels of two frames without blanks between, so that every seam and every cut is near one."""
    num_frames = 10 * 60 * FRAME_RATE + 3
    script = np.full(num_frames, BLANK_ID)
    first = np.arange(0, num_frames - 40, 7)
    seams = [window.own_end for window in plan_windows(num_frames, samples_to_frames(20 * SAMPLE_RATE))]
    assert len(seams) > 30
    first = np.unique(np.concatenate([first, np.array(seams[:-1]) - 1]))
    for number, frame in enumerate(first):
        script[frame : frame + 2] = LABEL + number % 2
    model = FrameNumbers(script.tolist())
    waveform_S = number_frames(num_frames)
    found = recognise_long(model, waveform_S, None, 20 * SAMPLE_RATE)  # type: ignore[arg-type]
    (expected,) = greedy_ctc(
        model.encode(torch.arange(num_frames)[None, :, None], torch.tensor(0)).ctc_log_probs_BTV,
        torch.tensor([num_frames]),
    )
    assert found.hypotheses[0].ids == found.ctc.ids == expected
    starts = np.flatnonzero((script != BLANK_ID) & (script != np.roll(script, 1)))
    assert [time.start for time in found.times if time is not None] == starts.tolist()
    assert model.longest_window <= MAX_WINDOW_FRAMES


def test_a_recording_without_a_label_has_no_text_and_is_not_searched() -> None:
    """An attention decoder can invent a text; here calling the search fails the test."""
    num_frames = 100 * FRAME_RATE
    model = FrameNumbers([BLANK_ID] * num_frames)

    def search(*_: object) -> list[list[Hypothesis]]:
        raise AssertionError("silence was searched")

    found = recognise_long(model, number_frames(num_frames), search, 20 * SAMPLE_RATE)  # type: ignore[arg-type]
    assert found.hypotheses == [Hypothesis([])] and found.times == []
    assert found.silence == pytest.approx(1.0, abs=1e-6)


@settings(deadline=None)
@given(data=st.data(), max_frames=st.integers(4, 40), lowest=st.integers(0, 1))
def test_a_cut_is_in_the_longest_stretch_of_blank(data: st.DataObject, max_frames: int, lowest: int) -> None:
    script = data.draw(st.lists(st.integers(lowest, 2), min_size=max_frames + 1, max_size=60))
    script = [BLANK_ID if label == 0 else LABEL + label % 2 for label in script]
    noise_TV = torch.rand(len(script), 8, generator=torch.Generator().manual_seed(len(script)))
    log_probs_TV = (torch.nn.functional.one_hot(torch.tensor(script), 8) * 5 + noise_TV).log_softmax(1)
    cut = find_cut(log_probs_TV, max_frames)
    first = max(1, max_frames // 3)
    assert first <= cut <= max_frames

    def stretch(frame: int) -> int:
        """Count the blanks around a frame, one by one, within where a cut may be."""
        start = end = frame
        while start > first and script[start - 1] == BLANK_ID:
            start -= 1
        while end <= max_frames and script[end] == BLANK_ID:
            end += 1
        return end - start if script[frame] == BLANK_ID else 0

    longest = max(stretch(frame) for frame in range(first, max_frames + 1))
    assert stretch(cut) == longest
    if longest >= 3:  # in its middle
        assert script[cut - 1] == BLANK_ID or cut == first
    changes = [k for k in range(first, max_frames + 1) if script[k] != script[k - 1]]
    if longest == 0:
        places = changes or range(first, max_frames + 1)
        assert log_probs_TV[cut, BLANK_ID] == max(log_probs_TV[k, BLANK_ID] for k in places)


def test_without_blank_the_likeliest_blank_at_a_change_is_taken_however_unlikely() -> None:
    log_probs_TV = torch.full((12, 8), -40.0)
    log_probs_TV[torch.arange(12), torch.tensor([LABEL, LABEL + 1] * 6)] = 0.0
    log_probs_TV[:, BLANK_ID] = -20.0
    log_probs_TV[7, BLANK_ID] = -19.0
    assert find_cut(log_probs_TV, 10) == 7


@settings(deadline=None)
@given(data=st.data(), max_frames=st.integers(4, 30))
def test_a_cut_is_before_a_word_where_one_begins(data: st.DataObject, max_frames: int) -> None:
    """A stretch may reach to a word that begins after the longest piece, or to the end of what is known."""
    labels = st.sampled_from([BLANK_ID, BLANK_ID, LABEL, LABEL + 1])
    script = data.draw(st.lists(labels, min_size=max_frames + 1, max_size=50))
    log_probs_TV = torch.nn.functional.one_hot(torch.tensor(script), 8).float().mul(5).log_softmax(1)
    cut = find_cut(log_probs_TV, max_frames, {LABEL})
    first = max(1, max_frames // 3)
    last_label = max((k for k, label in enumerate(script) if label != BLANK_ID), default=-1)

    def is_before_word(frame: int) -> bool:
        while frame < len(script) and script[frame] == BLANK_ID:
            frame += 1
        if frame == len(script):  # a pause to the end of what is known
            return max_frames > max(first, last_label + 1)
        return script[frame] == LABEL and script[frame - 1] != LABEL

    def stretch(frame: int) -> int:
        """Count the blanks around a frame, one by one, within where a cut may be."""
        start = end = frame
        while start > first and script[start - 1] == BLANK_ID:
            start -= 1
        while end < max_frames and script[end] == BLANK_ID:
            end += 1
        return end - start

    places = [frame for frame in range(first, max_frames + 1) if is_before_word(frame)]
    if places:
        assert cut in places and stretch(cut) == max(map(stretch, places))
    else:
        assert cut == find_cut(log_probs_TV, max_frames)


def test_a_label_that_goes_on_begins_no_word() -> None:
    script = [BLANK_ID, LABEL, LABEL, LABEL, LABEL, LABEL + 1, LABEL + 1, LABEL + 1, LABEL + 1, LABEL + 1]
    log_probs_TV = torch.nn.functional.one_hot(torch.tensor(script), 8).float().mul(5).log_softmax(1)
    assert find_cut(log_probs_TV, 9, {LABEL}) == find_cut(log_probs_TV, 9) == 5


def test_pieces_end_before_words_though_a_word_has_a_longer_pause_in_it() -> None:
    word = [LABEL, *[BLANK_ID] * 9, LABEL + 1, *[BLANK_ID] * 3]
    script = word * 400
    kept: list[Found] = []
    recognise_long(
        FrameNumbers(script),  # type: ignore[arg-type]
        number_frames(len(script)),
        None,
        4 * SAMPLE_RATE,
        keep=kept.append,
        tokenizer=SimpleNamespace(word_starts={LABEL}, word_mark=None),  # type: ignore[arg-type]
    )
    assert len(kept) > 10
    assert all(piece.ctc.ids[0] == LABEL and piece.ctc.ids[-1] == LABEL + 1 for piece in kept)


def test_the_n_best_of_pieces_joined_are_those_of_enumeration() -> None:
    generator = np.random.default_rng(0)
    pieces = [
        [Hypothesis([piece, k], score=float(-score), parts={"ctc": float(-score)})
         for k, score in enumerate(np.sort(generator.random(3)))]
        for piece in (3, 4, 5)
    ]  # fmt: skip
    found = [Hypothesis([])]
    for piece in pieces:
        found = join_hypotheses(found, piece, 4)
    every = [(a, b, c) for a in pieces[0] for b in pieces[1] for c in pieces[2]]
    every.sort(key=lambda three: -sum(each.score or 0.0 for each in three))
    assert [each.ids for each in found] == [[*a.ids, *b.ids, *c.ids] for a, b, c in every[:4]]
    for each, three in zip(found, every, strict=False):
        assert each.score == pytest.approx(sum(part.score or 0.0 for part in three))
        assert each.parts["ctc"] == pytest.approx(each.score)


@pytest.mark.parametrize("do_normalize", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_window_with_the_recording_s_statistics_is_the_recording(
    shape: str, do_normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured in several blocks, of a waveform with an offset."""
    monkeypatch.setattr("vox.wavlm.measure.BLOCK_STEPS", 1_000)
    wavlm = copy_to_ours(make_reference(shape), do_normalize)
    waveform_1S = make_waveform(3 * SAMPLE_RATE + 123) * 0.3 + 0.1
    num_samples_B = torch.tensor([waveform_1S.shape[1]])
    measured = wavlm.measure(waveform_1S[0])
    if do_normalize:
        clean_1S = clean_waveforms(waveform_1S, num_samples_B, do_normalize=True)
        assert relative_l2(measured.clean(waveform_1S), clean_1S) <= 1e-6
    (expected,), _ = wavlm(waveform_1S, num_samples_B, [4])
    (actual,), _ = wavlm(waveform_1S, num_samples_B, [4], measured)
    assert relative_l2(actual, expected) <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_differ_from_the_whole_by_attention_s_reach_only(shape: str) -> None:
    """The first half is 30 times louder than the second, so a window's own statistics would differ."""
    wavlm = copy_to_ours(make_reference(shape), do_normalize=shape == "large")
    waveform_1S = make_waveform(24 * SAMPLE_RATE)
    waveform_1S[:, 12 * SAMPLE_RATE :] /= 30
    measured = wavlm.measure(waveform_1S[0])
    (whole,), _ = wavlm(waveform_1S, torch.tensor([waveform_1S.shape[1]]), [0])
    (window,) = [w for w in plan_windows(whole.shape[1], 600, 100) if w.own_first == 800]
    seen_1S = waveform_1S[:, window.first * HOP_SAMPLES : (window.end - 1) * HOP_SAMPLES + 400]
    num_samples_B = torch.tensor([seen_1S.shape[1]])
    own, inside = slice(window.own_first, window.own_end), slice(100, 100 + window.own_end - window.own_first)
    (alone,), _ = wavlm(seen_1S, num_samples_B, [0])
    (handed,), _ = wavlm(seen_1S, num_samples_B, [0], measured)
    assert relative_l2(handed[:, inside], whole[:, own]) <= 1e-5  # the first layer's input: no attention yet
    assert relative_l2(alone[:, inside], whole[:, own]) > 0.05


def test_a_piece_s_label_positions_are_the_encoder_s() -> None:
    recogniser = make_recogniser(seed=2)
    encoded = recogniser.encode(torch.randn(1, 50, 12), torch.tensor([50]))
    placed = recognise._place(recogniser, slice_frames(encoded, 0, 50))
    assert encoded.label_positions_BT is not None and placed.label_positions_BT is not None
    assert torch.equal(placed.label_positions_BT, encoded.label_positions_BT)
    later = recognise._place(recogniser, slice_frames(encoded, 20, 50))
    assert later.label_positions_BT is not None and later.label_positions_BT[0, 0] < 1.0


@pytest.fixture(scope="module")
def checkpoint(tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a checkpoint with arbitrary outputs that depend on the audio."""
    return save_arbitrary_checkpoint(tmp_path_factory.mktemp("run") / "arbitrary", tiny_wavlm_dir)


@pytest.mark.parametrize("decoder", ["ctc", "attention", "rescore"])
def test_a_recording_of_one_window_is_what_it_was(decoder: str, checkpoint: Path) -> None:
    """Bitwise equal up to the longest training recording; beyond it in windows, with times in order."""
    loaded = load_recogniser(checkpoint)
    options = SearchOptions(beam=2, nbest=1 if decoder in ("ctc", "attention") else 2)
    waveform_S = make_speech(18 * SAMPLE_RATE, 1)
    known = replace(loaded, state={"longest_train_samples": 18 * SAMPLE_RATE})
    (whole,) = Transcriber(known, decoder, options).transcribe([waveform_S])
    with torch.inference_mode():
        encoded = loaded.recogniser.encode(
            *loaded.recogniser.extractor(torch.from_numpy(waveform_S)[None], torch.tensor([len(waveform_S)]))
        )
        expected = make_search(decoder, options, loaded.tokenizer)(loaded.recogniser, encoded)[0]
    assert [found.score for found in whole.alternatives] == [found.score for found in expected]
    assert whole.text == loaded.tokenizer.decode(expected[0].ids)

    known = replace(loaded, state={"longest_train_samples": 3 * SAMPLE_RATE})
    (cut,) = Transcriber(known, decoder, options).transcribe([waveform_S])
    assert len(cut.alternatives) == options.nbest and cut.text == cut.alternatives[0].text
    assert " ".join(word.text for word in cut.words) == cut.text
    times = [(word.start, word.end) for word in cut.words if word.start is not None and word.end is not None]
    assert all(start < end <= 18.0 for start, end in times)
    assert all(end <= start for (_, end), (start, _) in pairwise(times))
    if decoder == "ctc":
        assert cut.text == loaded.tokenizer.decode(_ctc_of_windows(loaded.recogniser, waveform_S))


def _ctc_of_windows(recogniser: torch.nn.Module, waveform_S: np.ndarray) -> list[int]:
    """Return the greedy text of all windows' log-probabilities as one sequence."""
    whole_S = torch.from_numpy(waveform_S)
    num_frames = samples_to_frames(len(whole_S))
    windows = plan_windows(num_frames, MIN_WINDOW_FRAMES)
    with torch.inference_mode():
        measured = recogniser.extractor.wavlm.measure(whole_S)  # type: ignore[union-attr,operator]
        parts = encode_windows(recogniser, whole_S, measured, windows)  # type: ignore[arg-type]
        log_probs_BTV = torch.cat([part.ctc_log_probs_BTV for part in parts], 1)
    return greedy_ctc(log_probs_BTV, torch.tensor([num_frames]))[0]

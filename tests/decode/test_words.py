"""Times and confidences of words: forced alignment, temperature, formats.

Letters: T frames, V vocabulary.
"""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vox.commands.transcribe import format_transcript
from vox.decode.align import Span, align_labels
from vox.decode.confidence import fit_temperature, label_confidences, label_rows
from vox.decode.words import find_words
from vox.text import Tokenizer, train_tokenizer
from vox.transcript import FORMATS, Alternative, Transcript, Word


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["go left", "go right now", "left left right"], 20)


def spiky(labels: list[int], vocab_size: int, peak: float = 0.9) -> torch.Tensor:
    """Return [T, V] log-probabilities that give `peak` to one label a frame (0 is the blank)."""
    probs_TV = torch.full((len(labels), vocab_size), (1 - peak) / (vocab_size - 1))
    probs_TV[torch.arange(len(labels)), torch.tensor(labels)] = peak
    return probs_TV.log()


def best_path_score(log_probs_TV: np.ndarray, labels: tuple[int, ...]) -> float:
    """Return the best alignment's score by trying every path."""
    num_frames, vocab_size = log_probs_TV.shape
    best = -np.inf
    for path in itertools.product(range(vocab_size), repeat=num_frames):
        collapsed = tuple(label for label, _ in itertools.groupby(path) if label)
        if collapsed == labels:
            best = max(best, sum(log_probs_TV[frame, label] for frame, label in enumerate(path)))
    return best


@given(
    st.integers(0, 10_000),
    st.integers(1, 5),
    st.lists(st.integers(1, 2), max_size=3).map(tuple),
)
def test_the_alignment_is_the_best_of_all_paths(seed: int, num_frames: int, labels: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs_TV = torch.randn(num_frames, 3, generator=generator).log_softmax(-1)
    spans = align_labels(log_probs_TV, labels)
    best = best_path_score(log_probs_TV.numpy(), labels)
    if spans is None:
        assert best == -np.inf
        return
    path = [0] * num_frames
    for label, span in zip(labels, spans, strict=True):
        path[span.start : span.end] = [label] * (span.end - span.start)
    if not labels:
        return
    assert [label for label, _ in itertools.groupby(path) if label] == list(labels)
    assert sum(log_probs_TV[frame, label] for frame, label in enumerate(path)) == pytest.approx(
        best, abs=1e-5
    )


def test_planted_labels_are_found_to_the_frame() -> None:
    log_probs_TV = spiky([0, 4, 4, 0, 4, 5, 0], 6)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert align_labels(log_probs_TV.to(dtype), [4, 4, 5]) == [Span(1, 3), Span(4, 5), Span(5, 6)]


def test_more_labels_than_frames_have_no_times(tokenizer: Tokenizer) -> None:
    labels = tokenizer.encode("left left left")
    words, confidence = find_words(spiky([0] * 3, tokenizer.vocab_size), labels, tokenizer)
    assert [(word.text, word.start, word.confidence) for word in words] == [("left", None, None)] * 3
    assert confidence is None


def test_words_have_the_times_and_the_smallest_probability_of_their_labels(tokenizer: Tokenizer) -> None:
    labels = tokenizer.encode("go left")
    path = [0, *labels, 0]
    log_probs_TV = spiky(path, tokenizer.vocab_size, peak=0.9)
    log_probs_TV[len(path) - 2] = spiky([labels[-1]], tokenizer.vocab_size, peak=0.6)[0]
    words, confidence = find_words(log_probs_TV, labels, tokenizer)
    first = tokenizer.group_words(labels)[0]
    assert [word.text for word in words] == ["go", "left"]
    assert (words[0].start, words[0].end) == (0.02, (1 + len(first)) * 0.02)
    assert (words[1].start, words[1].end) == ((1 + len(first)) * 0.02, (1 + len(labels)) * 0.02)
    assert [word.confidence for word in words] == [pytest.approx(0.9), pytest.approx(0.6)]
    assert confidence == pytest.approx(0.6)


def test_an_empty_text_is_as_sure_as_its_least_sure_blank(tokenizer: Tokenizer) -> None:
    log_probs_TV = torch.cat([spiky([0], 20, peak=0.9), spiky([0], 20, peak=0.7)])
    assert find_words(log_probs_TV, [], tokenizer) == ((), pytest.approx(0.7))


@given(st.lists(st.integers(4, 19), max_size=8))
def test_word_groups_are_the_words_of_the_text(ids: list[int]) -> None:
    tokenizer = train_tokenizer(["go left", "go right now", "left left right"], 20)
    groups = tokenizer.group_words(ids)
    words = [tokenizer.decode([ids[k] for k in group]).strip() for group in groups]
    assert words == tokenizer.decode(ids).split()


def test_the_temperature_that_made_the_words_is_found() -> None:
    """Words that are right with the frequency of their confidence at temperature 2."""
    generator = torch.Generator().manual_seed(1)
    count = 4_000
    rows_UV = 6 * torch.rand(count, 2, generator=generator)
    labels = [0] * count
    sure_U = label_confidences(rows_UV, labels, 2.0)
    is_right = (torch.rand(count, generator=generator) < sure_U).tolist()
    assert fit_temperature(rows_UV, labels, range(count), is_right) == pytest.approx(2.0, rel=0.1)
    assert fit_temperature(rows_UV, labels, range(count), [True] * count) == 1.0


def test_a_label_has_the_frame_that_gives_it_most() -> None:
    log_probs_TV = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.4, 0.6]]).log()
    rows_UV = label_rows(log_probs_TV, [1], [Span(0, 3)])
    assert rows_UV.exp()[0].tolist() == pytest.approx([0.1, 0.9])


TRANSCRIPT = Transcript(
    audio="my talk.wav",
    seconds=4.0,
    decoder="ctc",
    text="go left now",
    words=(Word("go", 0.1, 0.34, 0.9), Word("left", 0.36, 0.8, 0.5), Word("now", 3.0, 3.5, 1.0)),
    confidence=0.8,
    alternatives=(Alternative("go left now", -1.5, {"ctc": -1.5}),),
)


def test_formats() -> None:
    """Two captions, because 2.2 s of silence are between them."""
    written = {name: write(TRANSCRIPT) for name, write in FORMATS.items()}
    assert written["srt"] == (
        "1\n00:00:00,100 --> 00:00:00,800\ngo left\n\n2\n00:00:03,000 --> 00:00:03,500\nnow\n"
    )
    assert written["vtt"] == (
        "WEBVTT\n\n00:00:00.100 --> 00:00:00.800\ngo left\n\n00:00:03.000 --> 00:00:03.500\nnow\n"
    )
    assert written["ctm"].splitlines()[1] == "my_talk.wav 1 0.360 0.440 left 0.500"
    assert written["tsv"].splitlines()[:2] == ["start\tend\tword\tconfidence", "0.100\t0.340\tgo\t0.900"]
    assert json.loads(written["json"])["words"][0] == {
        "text": "go",
        "start": 0.1,
        "end": 0.34,
        "confidence": 0.9,
    }
    assert "ölpreis" in FORMATS["json"](replace(TRANSCRIPT, text="ölpreis"))


def test_captions_without_times_are_one_for_the_recording() -> None:
    words = tuple(Word(word, None, None, None) for word in ("go", "left"))
    transcript = Transcript("a.wav", 4.0, "attention", "go left", words, None, ())
    assert FORMATS["srt"](transcript) == "1\n00:00:00,000 --> 00:00:04,000\ngo left\n"
    assert FORMATS["ctm"](transcript) == ""


def test_captions_without_a_word_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert format_transcript(TRANSCRIPT, "srt", 1) and not caplog.messages
    assert format_transcript(replace(TRANSCRIPT, text="", words=()), "srt", 1) == ""
    assert caplog.messages == ["no word was recognised in my talk.wav"]


@pytest.mark.parametrize(
    ("word", "seconds", "counts"),
    [("eleven", 0.5, [11, 11, 11, 7]), ("go", 0.7, [8, 8, 8, 8, 8])],  # up to 80 letters; up to 6 s
)
def test_captions_are_short_and_as_few_as_that_allows(word: str, seconds: float, counts: list[int]) -> None:
    words = tuple(Word(word, seconds * k, seconds * k + seconds - 0.1, 1.0) for k in range(40))
    captions = FORMATS["srt"](Transcript("a.wav", 28.0, "ctc", "", words, 1.0, ())).split("\n\n")
    lines = [caption.splitlines()[2] for caption in captions]
    assert [line.split() for line in lines] == [[word] * count for count in counts]

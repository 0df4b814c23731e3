"""Voice activity detection: each span of speech is heard as a recording of its own, and nothing else is."""

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

import vox
import vox.vad
from tests.library.test_long import LABEL, FrameNumbers, number_frames
from tests.support.speech import make_speech
from tests.support.untrained import make_tokenizer, save_arbitrary_checkpoint
from vox.cli import main
from vox.decode.found import Found
from vox.demo.synthesize import TRAIN_VOICES, Synthesizer, draw_line
from vox.long import recognise_long
from vox.resample import resample
from vox.text import BLANK_ID, Tokenizer
from vox.units import FRAME_RATE, HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE, samples_to_frames
from vox.vad import MARGIN_SECONDS, Span, SpeechDetector, divide


@given(
    edges=st.lists(st.integers(0, 200_000), max_size=12, unique=True).map(sorted),
    more=st.integers(0, 40_000),
)
def test_spans_hold_every_frame_once_and_all_speech(edges: list[int], more: int) -> None:
    speech = list(zip(edges[::2], edges[1::2], strict=False))
    num_samples = max([RECEPTIVE_FIELD_SAMPLES, *edges]) + more
    num_frames = samples_to_frames(num_samples)
    spans = divide(speech, num_samples)
    assert [frame for span in spans for frame in range(span.first, span.end)] == list(range(num_frames))
    heard = np.zeros(num_samples + HOP_SAMPLES, bool)
    for span in spans:
        if span.is_speech:
            heard[span.first * HOP_SAMPLES : (span.end - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES] = True
    last = (num_frames - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES
    assert all(heard[start : min(end, last)].all() for start, end in speech)
    assert bool(speech) or not heard.any()


def test_only_short_pauses_at_the_ends_are_heard() -> None:
    second = SAMPLE_RATE
    spans = divide([(second - 1, 2 * second), (5 * second, 6 * second)], 8 * second)
    assert [(span.first, span.end, span.is_speech) for span in spans] == [
        (0, 100, True),
        (100, 250, False),
        (250, 300, True),
        (300, 399, False),
    ]
    assert divide([(second, 2 * second)], 3 * second - 1) == [Span(0, 50, is_speech=False), Span(50, 149)]


def test_what_is_said_in_spans_comes_back_with_its_times_wherever_it_goes_on() -> None:
    """A label in every seventh frame; short spans, long ones of many windows, and pauses."""
    edges = [0, 30, 200, 2_000, 2_100, 2_107, 4_500, 5_003]
    spans = [Span(first, end, k % 2 == 1) for k, (first, end) in enumerate(itertools.pairwise(edges))]
    script = np.full(edges[-1], BLANK_ID)
    script[3::7] = LABEL
    model, waveform_S, pieces = FrameNumbers(script.tolist()), number_frames(edges[-1]), list[Found]()

    def recognise(done: Sequence[Found] = (), keep: list[Found] | None = None) -> Found:
        keep = [] if keep is None else keep
        longest = 20 * SAMPLE_RATE
        return recognise_long(model, waveform_S, None, longest, done=done, keep=keep.append, spans=spans)  # type: ignore[arg-type]

    found = recognise(keep=pieces)
    spoken = [frame for span in spans if span.is_speech for frame in range(span.first, span.end)]
    expected = [frame for frame in spoken if script[frame] == LABEL]
    assert [time.start for time in found.times if time is not None] == expected
    assert found.num_frames == edges[-1] and len(pieces) > len(spans)
    for count in range(len(pieces) + 1):
        rest: list[Found] = []
        assert recognise(pieces[:count], rest) == found
        assert rest == pieces[count:]


def test_a_span_no_longer_than_the_longest_training_recording_is_encoded_at_once() -> None:
    model = FrameNumbers([BLANK_ID] * 1_850)
    spans = [Span(0, 100, is_speech=False), Span(100, 1_850)]
    recognise_long(model, number_frames(1_850), None, 40 * SAMPLE_RATE, spans=spans)  # type: ignore[arg-type]
    assert model.longest_window == 1_750


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Train one on a few words."""
    return make_tokenizer(40)


@pytest.fixture(scope="module")
def spoken_S() -> np.ndarray:
    """Say a sentence: float32 [S], 16 kHz."""
    synthesizer = Synthesizer()
    line = draw_line("s", 1, 0, "the seven ships sail over the sea", TRAIN_VOICES[0], random.Random(0))
    samples_S = synthesizer.say(line, seed=0).astype(np.float32) / 32768
    return resample(samples_S, synthesizer.sample_rate, SAMPLE_RATE).astype(np.float32)


def test_speech_is_found_between_silence_and_noise(spoken_S: np.ndarray) -> None:
    detector = SpeechDetector()
    noise_S = np.random.default_rng(0).normal(0, 0.01, 3 * SAMPLE_RATE).astype(np.float32)
    silence_S = np.zeros(3 * SAMPLE_RATE, np.float32)
    joined_S = np.concatenate([silence_S, spoken_S, noise_S, spoken_S, silence_S])
    spans = detector.find_spans(torch.from_numpy(joined_S))
    assert [span.is_speech for span in spans] == [False, True, False, True, False]
    begins = [3.0, 6.0 + len(spoken_S) / SAMPLE_RATE]
    for span, begin in zip(spans[1::2], begins, strict=True):
        assert abs(span.first / FRAME_RATE - begin) <= 3 * MARGIN_SECONDS
        assert abs(span.end / FRAME_RATE - begin - len(spoken_S) / SAMPLE_RATE) <= 3 * MARGIN_SECONDS
    (none,) = detector.find_spans(torch.from_numpy(silence_S))
    assert none == Span(0, samples_to_frames(len(silence_S)), is_speech=False)


def test_it_computes_in_one_thread_and_leaves_the_number_as_it_was(
    spoken_S: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads take a hundred times as long."""
    detector, seen = SpeechDetector(), list[int]()
    find = detector._find_speech

    def spy(*arguments: Any, **options: Any) -> list[dict[str, int]]:
        seen.append(torch.get_num_threads())
        found: list[dict[str, int]] = find(*arguments, **options)
        return found

    monkeypatch.setattr(detector, "_find_speech", spy)
    torch.set_num_threads(2)
    try:
        detector.find_spans(torch.from_numpy(spoken_S))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(1)


def test_a_span_begins_with_a_word(tokenizer: Tokenizer) -> None:
    """Its first label may begin none: the text must not be glued to the span before."""
    mark, (inside, *_) = tokenizer.word_mark, tokenizer.encode("o")[-1:]
    assert mark is not None and inside not in tokenizer.word_starts
    script = [BLANK_ID] * 300
    script[40] = script[240] = inside
    model, waveform_S = FrameNumbers(script, size=tokenizer.vocab_size), number_frames(300)
    spans = [Span(0, 100), Span(100, 200, is_speech=False), Span(200, 300)]
    found = recognise_long(model, waveform_S, None, SAMPLE_RATE * 20, spans=spans, tokenizer=tokenizer)  # type: ignore[arg-type]
    assert found.hypotheses[0].ids == found.ctc.ids == [mark, inside, mark, inside]
    spans_of_labels = [(time.start, time.end) for time in found.times if time is not None]
    assert spans_of_labels == [(40, 40), (40, 41), (240, 240), (240, 241)]  # the mark takes no time
    words, _ = found.list_words(tokenizer)
    assert [(word.text, word.start, word.end) for word in words] == [("o", 0.8, 0.82), ("o", 4.8, 4.82)]


def test_a_span_begins_with_a_word_though_its_first_piece_has_no_text(tokenizer: Tokenizer) -> None:
    mark, (inside, *_) = tokenizer.word_mark, tokenizer.encode("o")[-1:]
    script = [BLANK_ID] * 1_500
    script[40] = script[1_000] = script[1_300] = inside
    model, waveform_S = FrameNumbers(script, size=tokenizer.vocab_size), number_frames(1_500)
    spans, pieces = [Span(0, 100), Span(100, 200, is_speech=False), Span(200, 1_500)], list[Found]()

    def recognise(done: Sequence[Found], keep: list[Found]) -> Found:
        options = {"keep": keep.append, "spans": spans, "tokenizer": tokenizer}
        return recognise_long(model, waveform_S, None, 4 * SAMPLE_RATE, done=done, **options)  # type: ignore[arg-type]

    found = recognise([], pieces)
    assert found.ctc.ids == [mark, inside, mark, inside, inside]
    assert [len(piece.ctc.ids) for piece in pieces[:5]] == [2, 0, 0, 0, 0]
    for count in range(len(pieces)):
        assert recognise(pieces[:count], []) == found


def test_transcribe_and_evaluate_hear_only_speech(
    spoken_S: np.ndarray, tiny_wavlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_arbitrary_checkpoint(tmp_path / "arbitrary", tiny_wavlm_dir)
    noise_S = make_speech(4 * SAMPLE_RATE, 1)
    for name, samples_S in {"noise": noise_S, "both": np.concatenate([noise_S, spoken_S])}.items():
        soundfile.write(tmp_path / f"{name}.wav", samples_S, SAMPLE_RATE, subtype="FLOAT")
    common = ["--checkpoint", str(checkpoint), "--device", "cpu", "--decoder", "ctc"]
    files = [str(tmp_path / f"{name}.wav") for name in ("noise", "both")]
    assert main(["transcribe", *files, "--vad", *common]) == 0
    assert "real time" not in capsys.readouterr().err  # short recordings need no progress
    texts = {}
    for option in ([], ["--vad"]):
        assert main(["transcribe", *files, "--format", "json", *option, *common]) == 0
        texts[bool(option)] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(each["text"] for each in texts[False])
    assert texts[True][0]["text"] == "" and texts[True][1]["words"][0]["start"] >= 4 - 2 * MARGIN_SECONDS
    assert texts[True][1]["seconds"] == texts[False][1]["seconds"]
    identities = [vox.load(checkpoint, device="cpu", vad=vad).identity()["speech"] for vad in (False, True)]
    assert identities[0] is None and identities[1].startswith("silero-vad ")
    (tmp_path / "own.jsonl").write_text(json.dumps({"audio": "both.wav", "text": "go"}) + "\n")
    places = ["--root", str(tmp_path), "--out", str(tmp_path / "report")]
    split = ["evaluate", "--split", "own", *places, *common]
    assert main([*split, "--whole", "--vad"]) == 0
    (row,) = map(json.loads, (tmp_path / "report" / "hypotheses-ctc.jsonl").read_text().splitlines())
    assert row["hypothesis"] == texts[True][1]["text"]
    assert json.loads((tmp_path / "report" / "report.json").read_text())["vad"].startswith("silero-vad ")
    assert main([*split, "--vad"]) == 2
    assert "add --whole" in capsys.readouterr().err


def test_without_silero_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vox.vad.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.wav").write_bytes(b"")
    assert main(["transcribe", "--vad", str(tmp_path / "a.wav")]) == 2
    assert "pip install 'vox-asr[vad]'" in capsys.readouterr().err

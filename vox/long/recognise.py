"""Recognise a recording of any length: encode it in windows, cut it into pieces, decode each piece alone.

Only one window and one piece are in memory. Where it is known in which spans of a recording somebody speaks
(vox/vad.py), each such span is a recording of its own, and the others have no text.

B batch, S samples, T frames, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vox.decode import Search
from vox.decode.confidence import silence_confidence
from vox.decode.ctc import decode_ctc
from vox.decode.found import Found, begin_word, find_nothing, join_found
from vox.decode.words import time_labels
from vox.long.cut import cut_pieces
from vox.long.windows import (
    ENCODER_STEP,
    MAX_WINDOW_FRAMES,
    MIN_WINDOW_FRAMES,
    Window,
    encode_windows,
    plan_windows,
)
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser
from vox.progress import ProgressBar
from vox.text import Tokenizer
from vox.units import FRAME_RATE, HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, samples_to_frames, samples_to_seconds
from vox.vad import Span

DEFAULT_LONGEST_SAMPLES = 30 * 16_000  # if the checkpoint does not record the longest training recording


def recognise_long(
    recogniser: Recogniser,
    waveform_S: Tensor,
    search: Search | None,
    longest_samples: int,
    nbest: int = 1,
    temperature: float = 1.0,
    name: str = "audio",
    done: Iterable[Found] = (),
    keep: Callable[[Found], None] = lambda piece: None,
    spans: Sequence[Span] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Found:
    """Recognise float32 [S], on the CPU, of any length; without a search, by greedy CTC.

    longest_samples: maximum length of a piece. A piece whose best CTC path is all blank has no text, for any
    search, because an attention decoder can invent one. name: shown by the progress bar.

    done: the first pieces of this recording, decoded before with the same arguments; they are not decoded
    again. keep: called with every further piece. spans: of all frames, in order; None: one, of speech.
    tokenizer: says where words begin; no piece ends within a word, as far as CTC hears where they begin, and
    a span begins with one.
    """
    found, last_text = find_nothing(), -1  # the frame at which the last piece with a text begins

    def add(piece: Found) -> None:
        nonlocal found, last_text
        if piece.hypotheses[0].ids:
            last_text = found.num_frames
        found = join_found(found, piece, nbest)

    for piece in done:
        add(piece)
    word_starts = () if tokenizer is None else tokenizer.word_starts
    seconds, is_short = samples_to_seconds(len(waveform_S)), len(waveform_S) <= longest_samples
    with ProgressBar(seconds, name, done=found.num_frames / FRAME_RATE, is_hidden=is_short) as progress:
        for span in spans or [Span(0, samples_to_frames(len(waveform_S)))]:
            if found.num_frames >= span.end:
                continue
            if not span.is_speech:
                pieces = iter([find_nothing(span.end - span.first)])
            else:
                encoded = _encode_span(
                    recogniser, waveform_S, span, longest_samples, found.num_frames, word_starts
                )
                pieces = _decode_pieces(recogniser, encoded, search, temperature, found.num_frames)
            for piece in pieces:
                if tokenizer is not None and last_text < span.first:
                    piece = begin_word(piece, tokenizer)
                keep(piece)
                add(piece)
                progress.add(piece.num_frames / FRAME_RATE)
    return found


def _encode_span(
    recogniser: Recogniser,
    waveform_S: Tensor,
    span: Span,
    longest_samples: int,
    first_frame: int,
    word_starts: Collection[int],
) -> Iterator[Encoded]:
    """Yield the pieces of a span of speech from a frame of the recording on.

    The pieces are the same wherever the frame is, if a piece begins there.
    """
    num_frames, first_frame = span.end - span.first, max(0, first_frame - span.first)
    max_frames = max(ENCODER_STEP, samples_to_frames(longest_samples))
    window_frames = min(max(max_frames, MIN_WINDOW_FRAMES), MAX_WINDOW_FRAMES)
    if num_frames <= max_frames:
        windows = [Window(0, 0, num_frames, num_frames)]
    else:
        windows = plan_windows(num_frames, window_frames)
    rest = [
        replace(window, own_first=max(window.own_first, first_frame))
        for window in windows
        if window.own_end > first_frame
    ]
    end_sample = (span.end - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES
    # What is left after a recording's last frame is measured too.
    is_last = span.end == samples_to_frames(len(waveform_S))
    span_S = waveform_S[span.first * HOP_SAMPLES : None if is_last else end_sample]
    measured = recogniser.extractor.wavlm.measure(span_S)
    yield from cut_pieces(encode_windows(recogniser, span_S, measured, rest), max_frames, word_starts)


def _decode_pieces(
    recogniser: Recogniser,
    pieces: Iterable[Encoded],
    search: Search | None,
    temperature: float,
    first_frame: int,
) -> Iterator[Found]:
    """Decode consecutive pieces, of which the first begins at a frame of the recording."""
    for piece in pieces:
        found = _decode_piece(recogniser, piece, search, temperature, first_frame)
        first_frame += found.num_frames
        yield found


def _decode_piece(
    recogniser: Recogniser, piece: Encoded, search: Search | None, temperature: float, first_frame: int
) -> Found:
    """Decode a piece that begins at a frame of the recording."""
    log_probs_TV = piece.ctc_log_probs_BTV[0]
    num_frames = log_probs_TV.shape[0]
    silence = silence_confidence(log_probs_TV, temperature)
    (ctc,) = decode_ctc(recogniser, piece)
    if not ctc.ids:
        return find_nothing(num_frames, silence)
    hypotheses = [ctc] if search is None else search(recogniser, _place(recogniser, piece))[0]
    times = time_labels(log_probs_TV, hypotheses[0].ids, temperature, first_frame)
    return Found(num_frames, hypotheses, ctc, times, silence)


def _place(recogniser: Recogniser, piece: Encoded) -> Encoded:
    """Add a piece's label positions, counted from its own beginning, if the decoder uses them."""
    log_probs_BTV = piece.ctc_log_probs_BTV
    is_valid_BT = torch.ones(log_probs_BTV.shape[:2], dtype=torch.bool, device=log_probs_BTV.device)
    return replace(piece, label_positions_BT=recogniser.place_frames(log_probs_BTV, is_valid_BT))

"""Transcribe recordings longer than the training recordings: encode in windows, decode in pieces.

Each window has context frames on both sides of the frames it owns, and every frame is owned by exactly one
window. The owned frames, in order, form one sequence for the whole recording. The sequence is cut before
words, at the longest stretches of blank, and each piece is decoded alone. Only one window and one piece are
in memory.

Where it is known in which spans of a recording somebody speaks (vox/vad.py), each such span is a recording of
its own, and the others have no text.

B batch, S samples, T frames, V vocabulary, D model width.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vox.decode import Search
from vox.decode.confidence import silence_confidence
from vox.decode.ctc import decode_ctc
from vox.decode.found import Found, begin_word, find_nothing, join_found
from vox.decode.words import time_labels
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser
from vox.progress import ProgressBar
from vox.text import BLANK_ID, Tokenizer
from vox.units import FRAME_RATE, HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, samples_to_frames, samples_to_seconds
from vox.vad import Span
from vox.wavlm.measure import Measured

DEFAULT_LONGEST_SAMPLES = 30 * 16_000  # if the checkpoint does not record the longest training recording

# Length of a window, context included: that of the longest training recording, within these bounds.
MIN_WINDOW_FRAMES = 8 * FRAME_RATE
MAX_WINDOW_FRAMES = 32 * FRAME_RATE
MAX_CONTEXT_FRAMES = 4 * FRAME_RATE  # on each side: docs/log.md, "long recordings"

ENCODER_STEP = 4  # frames: the encoder's lowest rate is a quarter of WavLM's
MIN_PIECE_SHARE = 1 / 3  # of the longest piece: an earlier cut would make the piece too short


@dataclass(frozen=True)
class Window:
    """Frames of a window: all, [first, end), and the owned ones among them, [own_first, own_end)."""

    first: int
    own_first: int
    own_end: int
    end: int


def plan_windows(num_frames: int, window_frames: int, context_frames: int | None = None) -> list[Window]:
    """Divide a recording into windows of at most `window_frames`; each frame is owned by exactly one.

    context_frames: on each side; a quarter of the window, at most MAX_CONTEXT_FRAMES, if None.
    Windows begin at multiples of 4 frames, so the encoder's downsampled frames are the same in all windows.
    """
    if context_frames is None:
        context_frames = min(MAX_CONTEXT_FRAMES, window_frames // 4 // ENCODER_STEP * ENCODER_STEP)
    assert context_frames % ENCODER_STEP == 0, "a window would not begin where the encoder's steps do"
    step = (window_frames - 2 * context_frames) // ENCODER_STEP * ENCODER_STEP
    assert step > 0, "a window of context only"
    return [
        Window(
            first=max(0, own_first - context_frames),
            own_first=own_first,
            own_end=min(own_first + step, num_frames),
            end=min(own_first + step + context_frames, num_frames),
        )
        for own_first in range(0, num_frames, step)
    ]


def encode_windows(
    recogniser: Recogniser, waveform_S: Tensor, measured: Measured, windows: Sequence[Window]
) -> Iterator[Encoded]:
    """Yield the owned frames of each window, without label positions: those depend on the piece's start.

    waveform_S: float32, on the CPU. If the model normalises features by utterance, a window counts as one.
    """
    device = next(recogniser.parameters()).device
    for window in windows:
        end_sample = (window.end - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES
        seen_BS = waveform_S[None, window.first * HOP_SAMPLES : end_sample].to(device)
        num_samples_B = torch.tensor([seen_BS.shape[1]], device=device)
        features_BTC, num_frames_B = recogniser.extractor(seen_BS, num_samples_B, measured)
        encoded = recogniser.encode(features_BTC, num_frames_B)
        yield slice_frames(encoded, window.own_first - window.first, window.own_end - window.first)


def slice_frames(encoded: Encoded, start: int, end: int) -> Encoded:
    """Return a copy of frames [start, end) of one utterance, without label positions."""
    return Encoded(
        encoded.hidden_BTD[:, start:end].clone(),
        torch.tensor([end - start], device=encoded.num_frames_B.device),
        encoded.ctc_log_probs_BTV[:, start:end].clone(),
        None,
    )


def cut_pieces(
    parts: Iterator[Encoded], max_frames: int, word_starts: Collection[int] = ()
) -> Iterator[Encoded]:
    """Concatenate consecutive parts of one utterance, and cut them into pieces of at most `max_frames`.

    word_starts: labels that begin a word.
    """
    kept: Encoded | None = None
    for part in parts:
        kept = part if kept is None else _join(kept, part)
        while (num_frames := kept.hidden_BTD.shape[1]) > max_frames:
            end = find_cut(kept.ctc_log_probs_BTV[0], max_frames, word_starts)
            yield slice_frames(kept, 0, end)
            kept = slice_frames(kept, end, num_frames)
    if kept is not None:
        yield kept


def _join(first: Encoded, second: Encoded) -> Encoded:
    return Encoded(
        torch.cat([first.hidden_BTD, second.hidden_BTD], 1),
        first.num_frames_B + second.num_frames_B,
        torch.cat([first.ctc_log_probs_BTV, second.ctc_log_probs_BTV], 1),
        None,
    )


def find_cut(log_probs_TV: Tensor, max_frames: int, word_starts: Collection[int] = ()) -> int:
    """Return the length of the next piece: at most `max_frames` and at least a third of that.

    The cut is before a word, in the middle of the longest stretch of frames whose best label is blank. Where
    no word begins, or no labels are known to begin one, it is in the longest stretch of all. If there is no
    blank frame, the cut is at a change of the best label, so that no label is found on both sides, and among
    the changes at the one where blank is likeliest.
    """
    first = max(1, int(max_frames * MIN_PIECE_SHARE))
    if word_starts:
        before_word = _find_cut_before_word(log_probs_TV.argmax(1).tolist(), first, max_frames, word_starts)
        if before_word is not None:
            return before_word
    searched_TV = log_probs_TV[first : max_frames + 1]
    best_T = log_probs_TV[: max_frames + 1].argmax(1)
    is_blank_T = best_T[first:] == BLANK_ID
    values, counts = is_blank_T.unique_consecutive(return_counts=True)
    if not bool(values.any()):
        is_change_T = best_T[first:] != best_T[first - 1 : -1]
        return first + int((searched_TV[:, BLANK_ID].exp() + is_change_T).argmax())
    longest = int((counts * values).argmax())
    before = int(counts[:longest].sum())
    return first + before + int(counts[longest]) // 2


def _find_cut_before_word(
    best: Sequence[int], first: int, last: int, word_starts: Collection[int]
) -> int | None:
    """Return where to cut within [first, last] before a word that CTC hears; None if none begins there.

    best: the best label of each frame, more of them than `last`. A word may begin after `last`, if the blanks
    before it reach back, and is expected after blanks at the end.
    """
    found, longest, blanks = None, -1, 0
    for frame, label in enumerate(best):
        if label == BLANK_ID:
            blanks += 1
            continue
        begins = label in word_starts and (blanks > 0 or label != best[frame - 1])
        start, end = max(first, frame - blanks), min(last, frame)
        if begins and end - start > longest:
            found, longest = (start + end) // 2, end - start
        if frame >= last:
            return found
        blanks = 0
    # A pause that reaches the end of what is known.
    start = max(first, len(best) - blanks)
    return (start + last) // 2 if last - start > max(0, longest) else found


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
    found = find_nothing()
    for piece in done:
        found = join_found(found, piece, nbest)
    word_starts = () if tokenizer is None else tokenizer.word_starts
    seconds, is_short = samples_to_seconds(len(waveform_S)), len(waveform_S) <= longest_samples
    with ProgressBar(seconds, name, done=found.num_frames / FRAME_RATE, is_hidden=is_short) as progress:
        for span in spans or [Span(0, samples_to_frames(len(waveform_S)))]:
            pieces = _encode_span(
                recogniser, waveform_S, span, longest_samples, found.num_frames, word_starts
            )
            for encoded in pieces:
                if isinstance(encoded, Encoded):
                    piece = _decode_piece(recogniser, encoded, search, temperature, found.num_frames)
                    if tokenizer is not None and found.num_frames == span.first:
                        piece = begin_word(piece, tokenizer)
                else:
                    piece = find_nothing(encoded)
                keep(piece)
                found = join_found(found, piece, nbest)
                progress.add(piece.num_frames / FRAME_RATE)
    return found


def _encode_span(
    recogniser: Recogniser,
    waveform_S: Tensor,
    span: Span,
    longest_samples: int,
    first_frame: int,
    word_starts: Collection[int],
) -> Iterator[Encoded | int]:
    """Yield the pieces of a span from a frame of the recording on; a pause is one, given by its frames.

    The pieces are the same wherever the frame is, if a piece begins there.
    """
    num_frames, first_frame = span.end - span.first, max(0, first_frame - span.first)
    if first_frame >= num_frames:
        return
    if not span.is_speech:
        yield num_frames
        return
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

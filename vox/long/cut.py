"""Cut the frames of a long recording into pieces that are decoded alone: before words, where CTC hears blank.

B batch, T frames, V vocabulary, D model width.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from vox.long.windows import slice_frames
from vox.model.encoded import Encoded
from vox.text import BLANK_ID

MIN_PIECE_SHARE = 1 / 3  # of the longest piece: an earlier cut would make the piece too short


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
        blank_T = searched_TV[:, BLANK_ID]
        if bool(is_change_T.any()):
            blank_T = blank_T.masked_fill(~is_change_T, -torch.inf)
        return first + int(blank_T.argmax())
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

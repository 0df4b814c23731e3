"""The result of `vox transcribe` and `vox.load(...).transcribe(...)`, and its output formats."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape

# A caption ends at a pause, or before it becomes too long to read.
CAPTION_PAUSE_SECONDS = 0.8
CAPTION_SECONDS = 6.0
CAPTION_CHARACTERS = 80


@dataclass(frozen=True)
class Word:
    """A word, its time in seconds from the beginning of the recording, and its confidence.

    start, end: None if the text has more labels than can be aligned to the recording's frames.
    confidence: a probability; None if there are no times.
    """

    text: str
    start: float | None
    end: float | None
    confidence: float | None


@dataclass(frozen=True)
class Alternative:
    """One text of the n-best, its score (a weighted sum of natural logs), and the unweighted parts."""

    text: str
    score: float | None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SpottedHotword:
    """A hotword in a text: the phrase shown, the spelling that was recognised, and its time as in Word."""

    phrase: str
    spelling: str
    start: float | None
    end: float | None


@dataclass(frozen=True)
class Transcript:
    """The text of one recording.

    audio: the recording's path, or "array 1" and so on. seconds: its length. decoder: its name.
    confidence: the smallest of the words'; for an empty text, that nothing was said; None without times.
    alternatives: the n-best, best first; the first is `text`. Equal texts count once, with the best score, so
    there may be fewer than were asked for.
    hotwords: those in the text, including overlapping ones.
    """

    audio: str
    seconds: float
    decoder: str
    text: str
    words: tuple[Word, ...]
    confidence: float | None
    alternatives: tuple[Alternative, ...]
    hotwords: tuple[SpottedHotword, ...] = ()


def to_json(transcript: Transcript) -> str:
    """Format a transcript as one line of JSON, with the fields of the dataclasses."""
    return json.dumps(asdict(transcript), ensure_ascii=False) + "\n"


def to_tsv(transcript: Transcript) -> str:
    """Format tab-separated values with a header: start and end in seconds, word, confidence."""
    lines = ["start\tend\tword\tconfidence"]
    lines += [
        "\t".join((_number(word.start), _number(word.end), word.text, _number(word.confidence)))
        for word in transcript.words
    ]
    return "\n".join(lines) + "\n"


def to_ctm(transcript: Transcript) -> str:
    """Format NIST's CTM: recording, channel, start, duration, word, confidence. Skips words without times."""
    name = transcript.audio.replace(" ", "_") or "-"
    lines = []
    for word in transcript.words:
        if word.start is not None and word.end is not None and word.confidence is not None:
            text = word.text.replace(" ", "_")  # a hotword's phrase may have spaces
            lines.append(
                f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {text} {word.confidence:.3f}\n"
            )
    return "".join(lines)


def to_srt(transcript: Transcript) -> str:
    """Format SubRip captions."""
    blocks = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_captions(transcript), start=1)
    ]
    return "\n".join(blocks)


def to_vtt(transcript: Transcript) -> str:
    """Format WebVTT captions."""
    blocks = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{escape(text, quote=False)}\n"
        for start, end, text in _captions(transcript)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "json": to_json,
    "srt": to_srt,
    "vtt": to_vtt,
    "ctm": to_ctm,
    "tsv": to_tsv,
}


def _captions(transcript: Transcript) -> Iterator[tuple[float, float, str]]:
    """Yield captions (start, end, text). Without word times, yield one caption for the whole recording."""
    words = transcript.words
    is_spaced = "".join(word.text for word in words) != transcript.text
    if any(word.start is None for word in words):
        yield 0.0, transcript.seconds, transcript.text
        return
    for caption in _cut(words):
        first, last = caption[0].start, caption[-1].end
        assert first is not None and last is not None
        yield first, last, (" " if is_spaced else "").join(word.text for word in caption)


def _cut(words: Sequence[Word]) -> Iterable[list[Word]]:
    caption: list[Word] = []
    for word in words:
        if caption and _ends_before(caption, word):
            yield caption
            caption = []
        caption.append(word)
    if caption:
        yield caption


def _ends_before(caption: Sequence[Word], word: Word) -> bool:
    first, last = caption[0], caption[-1]
    assert first.start is not None and last.end is not None
    assert word.start is not None and word.end is not None
    length = sum(len(each.text) + 1 for each in caption) + len(word.text)
    return (
        word.start - last.end > CAPTION_PAUSE_SECONDS
        or word.end - first.start > CAPTION_SECONDS
        or length > CAPTION_CHARACTERS
    )


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return (
        f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"
    )


def _number(number: float | None) -> str:
    return "" if number is None else f"{number:.3f}"

"""Segments: parts of a recording, by seconds from the file's start and by channel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vox.errors import AudioError

# Tools round times to hundredths: an end this much beyond the file's end is taken as the file's end.
END_TOLERANCE_SECONDS = 0.02
# Tools also add a margin to each segment. Neighbours that share more than this share words.
OVERLAP_TOLERANCE_SECONDS = 0.25


@dataclass(frozen=True)
class Segment:
    """A part of a recording.

    offset: seconds from the file's start. duration: seconds; None for the rest of the file. channel: counted
    from 0; None for the mean of all.
    """

    offset: float = 0.0
    duration: float | None = None
    channel: int | None = None

    def __str__(self) -> str:
        """Format it as in lists of recordings and content hashes: 3.0+2.5@1."""
        duration = "" if self.duration is None else repr(float(self.duration))
        return f"{float(self.offset)!r}+{duration}" + ("" if self.channel is None else f"@{self.channel}")

    @property
    def end(self) -> float:
        """The end in seconds; infinite for the end of the file."""
        return float("inf") if self.duration is None else self.offset + self.duration

    def locate(self, rate: int, num_frames: int, channels: int, where: object) -> tuple[int, int]:
        """Return the first sample and the number of samples, at the file's own rate, each rounded.

        Raises AudioError if the segment is not within a file of `num_frames` samples a channel, or is empty.
        """
        start = round(self.offset * rate)
        count = num_frames - start if self.duration is None else round(self.duration * rate)
        if self.channel is not None and self.channel >= channels:
            raise AudioError(
                f"no channel {self.channel} in a recording of {channels}",
                where=where,
                remedy="channels are counted from 0",
            )
        if start >= num_frames or start + count > num_frames + END_TOLERANCE_SECONDS * rate:
            end = "its end" if self.duration is None else f"{self.end:g}"
            raise AudioError(
                f"a segment from {self.offset:g} to {end} s in a recording of {num_frames / rate:g} s",
                where=where,
                remedy="correct `offset` and `duration`",
            )
        if count == 0:
            raise AudioError("an empty segment", where=where, remedy="correct its `duration`")
        return start, min(count, num_frames - start)


WHOLE = Segment()


def find_overlaps(segments: Sequence[tuple[str, Segment]]) -> Iterator[tuple[str, str, float]]:
    """Yield (name, name, seconds) for segments of one recording that overlap by more than the tolerance.

    Each segment is compared with the earlier one that ends last. Different channels never overlap.
    """
    channels = {segment.channel for _, segment in segments if segment.channel is not None}
    either: list[int | None] = [*sorted(channels)] if channels else [None]
    for channel in either:
        last: tuple[str, Segment] | None = None
        heard = [pair for pair in segments if pair[1].channel in (None, channel)]
        for name, segment in sorted(heard, key=lambda pair: (pair[1].offset, pair[1].end, pair[0])):
            if last is not None:
                shared = min(last[1].end, segment.end) - segment.offset
                if shared > OVERLAP_TOLERANCE_SECONDS:
                    yield last[0], name, shared
            if last is None or segment.end > last[1].end:
                last = name, segment

"""What an evaluation found: the results of each decoder, and of the whole."""

from dataclasses import dataclass, field

from evaluate.standard import UNCHANGED, Standard
from vox.decode import SearchOptions
from vox.score import Score
from vox.score_hotwords import HotwordScore, PhraseCount


@dataclass(frozen=True)
class DecoderResult:
    """One decoder's results on a split."""

    score: Score  # its `utterances` are in the order of Evaluation.ids
    hypotheses: list[str]  # in the order of Evaluation.ids
    confidences: list[float | None]  # of each hypothesis, in that order
    truncated_ids: list[str]  # decoding stopped at the label limit
    real_time_factor: float  # seconds of computing for a second of audio
    hotwords: HotwordScore | None = None  # None if no hotwords were given
    words: dict[str, PhraseCount] = field(default_factory=dict)  # of the words to list, in their order


@dataclass(frozen=True)
class Evaluation:
    """The results of one checkpoint on one split, or on several together."""

    split: str  # the names of several are joined by +
    ids: list[str]  # of the utterances scored, sorted
    references: list[str]  # as the transcripts have them
    excluded: dict[str, str]  # id: why it cannot be used; excluded from all figures
    audio_seconds: float  # of the utterances scored
    precision: str  # of the computation: float32, bfloat16 or float16
    decoders: dict[str, DecoderResult]
    options: SearchOptions  # of the searches; greedy decoders ignore them
    by_split: dict[str, dict[str, Score]] = field(default_factory=dict)  # by decoder; empty for one split
    word_pieces: dict[str, str] = field(default_factory=dict)  # of the words to list: how they are spelled
    vad: str = ""  # what found the speech in the recordings; "": everything was heard
    standard: Standard = UNCHANGED  # applied to all texts before they were scored

    @property
    def rate(self) -> str:
        """The main error rate: WER, or CER in scripts without words."""
        return next(iter(self.decoders.values())).score.rate

    @property
    def unit(self) -> str:
        """What that rate counts: word or character."""
        return "word" if self.rate == "WER" else "character"

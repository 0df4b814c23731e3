"""Collect what the decoders wrote, and score it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from evaluate.results import DecoderResult, Evaluation
from evaluate.splits import check_words
from evaluate.standard import UNCHANGED, Standard
from vox.checkpoint.files import Checkpoint
from vox.corpus import Utterance
from vox.decode import SearchOptions
from vox.device import pick_precision
from vox.errors import name_count
from vox.hear import device_of
from vox.hotword_list import Hotword, HotwordMatcher, as_in_transcripts
from vox.score import Score, score
from vox.score_hotwords import score_hotwords
from vox.text import ENGLISH, Tokenizer
from vox.units import samples_to_seconds

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """Results collected during decoding."""

    texts: dict[str, dict[str, str]]  # decoder: id: hypothesis
    truncated: dict[str, list[str]]
    confidences: dict[str, dict[str, float | None]] = field(default_factory=dict)  # as texts
    excluded: dict[str, str] = field(default_factory=dict)  # id: why it could not be read
    seconds: dict[str, float] = field(default_factory=dict)  # of computing, by decoder; "" is the encoder
    num_samples: int = 0
    precision: torch.dtype = torch.float32
    temperature: float = 1.0
    by_character: bool = False
    normalise: Callable[[str], str] = ENGLISH
    standard: Standard = UNCHANGED

    @classmethod
    def begin(cls, loaded: Checkpoint, decoders: Sequence[str], standard: Standard = UNCHANGED) -> "Tally":
        """Return an empty tally of a checkpoint's results."""
        return cls(
            texts={name: {} for name in decoders},
            truncated={name: [] for name in decoders},
            precision=pick_precision("auto", device_of(loaded.recogniser)),
            by_character=not loaded.tokenizer.has_words,
            normalise=loaded.normaliser,
            standard=standard,
        )


def score_tally(
    split: str,
    utterances: Sequence[Utterance],
    tally: Tally,
    left_out: Mapping[str, str],
    options: SearchOptions,
    hotwords: Sequence[Hotword] = (),
) -> Evaluation:
    """Score what was decoded. left_out: other utterances of the split, and why; they are only listed.

    Raises CorpusError if no word is left in the references of a split.
    """
    scored = sorted(
        (utterance for utterance in utterances if utterance.id not in tally.excluded),
        key=lambda utterance: utterance.id,
    )
    check_words(scored, tally.standard)
    in_transcripts = as_in_transcripts(hotwords, tally.normalise)
    matcher = HotwordMatcher(in_transcripts)
    phrases = list_scored(in_transcripts, tally.standard)
    results = {name: _score_decoder(name, scored, tally, matcher, phrases) for name in tally.texts}
    return Evaluation(
        split=split,
        ids=[utterance.id for utterance in scored],
        references=[utterance.text for utterance in scored],
        excluded=dict(sorted({**left_out, **tally.excluded}.items())),
        audio_seconds=samples_to_seconds(tally.num_samples),
        precision=str(tally.precision).removeprefix("torch."),
        decoders=results,
        options=options,
        by_split=_score_splits(scored, results, tally.standard, by_character=tally.by_character),
        standard=tally.standard,
    )


def _score_decoder(
    name: str, scored: Sequence[Utterance], tally: Tally, matcher: HotwordMatcher, phrases: Sequence[Hotword]
) -> DecoderResult:
    """Score one decoder's texts. matcher: of the hotwords' spellings. phrases: the hotwords, as scored."""
    ids = [utterance.id for utterance in scored]
    truncated = tally.truncated[name]
    if truncated:
        log.warning(
            "%s: %s cut off at the label limit for their length (listed in the report)",
            name,
            name_count(len(truncated), "hypothesis", "hypotheses"),
        )
    hypotheses = [matcher.replace_spellings(tally.texts[name][each]) for each in ids]
    references = [tally.standard.apply(utterance.text) for utterance in scored]
    compared = [tally.standard.apply(text) for text in hypotheses]
    seconds = tally.seconds[""] + tally.seconds[name]
    return DecoderResult(
        score=score(references, compared, by_character=tally.by_character),
        hotwords=score_hotwords(references, compared, phrases) if phrases else None,
        hypotheses=hypotheses,
        confidences=[tally.confidences.get(name, {}).get(each) for each in ids],
        truncated_ids=sorted(truncated),
        real_time_factor=seconds / samples_to_seconds(tally.num_samples),
    )


def _score_splits(
    scored: Sequence[Utterance],
    results: Mapping[str, DecoderResult],
    standard: Standard,
    *,
    by_character: bool,
) -> dict[str, dict[str, Score]]:
    """Score each split by itself; return nothing where there is one only."""
    positions: dict[str, list[int]] = {}
    for position, utterance in enumerate(scored):
        positions.setdefault(utterance.split, []).append(position)
    if len(positions) < 2:
        return {}
    return {
        split: {
            name: score(
                [standard.apply(scored[k].text) for k in some],
                [standard.apply(result.hypotheses[k]) for k in some],
                by_character=by_character,
            )
            for name, result in results.items()
        }
        for split, some in positions.items()
    }


def list_scored(in_transcripts: Sequence[Hotword], standard: Standard) -> list[Hotword]:
    """Return each phrase once, to be searched for as the standard writes it.

    Of phrases that become equal only the first is returned, so that it is counted for all of them; a warning
    names the others. A phrase of which nothing is left is never found.
    """
    first: dict[str, str] = {}  # by what is searched for
    listed = []
    for phrase in dict.fromkeys(hotword.phrase for hotword in in_transcripts):
        spelling = standard.apply(phrase)
        if spelling and first.setdefault(spelling, phrase) != phrase:
            log.warning("%s is counted as %s: --normalise makes them equal", phrase, first[spelling])
        else:
            listed.append(Hotword(phrase, (spelling,)))
    return listed


def add_words(
    evaluation: Evaluation,
    words: Sequence[Hotword],
    tokenizer: Tokenizer,
    normalise: Callable[[str], str],
) -> Evaluation:
    """Return an evaluation with the counts of each phrase, for every decoder, and its pieces."""
    listed = list_scored(as_in_transcripts(words, normalise), evaluation.standard)
    standardise = evaluation.standard.apply
    references = [standardise(text) for text in evaluation.references]
    pieces = tokenizer.pieces
    return replace(
        evaluation,
        word_pieces={
            word.phrase: " ".join(pieces[k] for k in tokenizer.encode(word.phrase)) for word in listed
        },
        decoders={
            name: replace(
                result,
                words=score_hotwords(
                    references, [standardise(text) for text in result.hypotheses], listed
                ).by_phrase,
            )
            for name, result in evaluation.decoders.items()
        },
    )

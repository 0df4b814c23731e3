"""Decode a split with each requested decoder, and score the hypotheses.

The encoder runs once a batch. Its time is added to each decoder's, so a decoder's real-time factor is the one
it would have alone. Reading the files is not counted, because other processes do it in parallel.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from evaluate.standard import UNCHANGED, Standard
from vox.checkpoint.files import Checkpoint
from vox.corpus import Utterance, load_split_and_problems
from vox.data.batch import AudioBatch, AudioFailure
from vox.data.sources import iterate_by_length
from vox.decode import Search, SearchOptions, make_search
from vox.decode.words import find_words
from vox.device import autocast, pick_precision, synchronize
from vox.errors import CorpusError, name_count
from vox.hear import device_of, hear
from vox.hotword_list import Hotword, HotwordMatcher, as_in_transcripts
from vox.progress import ProgressBar
from vox.score import Score, score
from vox.score_hotwords import HotwordScore, PhraseCount, score_hotwords
from vox.text import ENGLISH, Tokenizer
from vox.units import samples_to_seconds

log = logging.getLogger(__name__)


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
    standard: Standard = UNCHANGED  # that references and hypotheses were brought to before they were scored

    @property
    def rate(self) -> str:
        """What leads: WER, or CER in scripts without words."""
        return next(iter(self.decoders.values())).score.rate

    @property
    def unit(self) -> str:
        """What that rate counts: word or character."""
        return "word" if self.rate == "WER" else "character"


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


def load_splits(
    root: Path, splits: Sequence[str], *, skip_bad: bool, normalise: Callable[[str], str] = ENGLISH
) -> tuple[list[Utterance], dict[str, str]]:
    """List the utterances of splits that can be used, and why others cannot, by id.

    Of several splits an id is `<split>/<id>`. Raises CorpusError as `load_split_and_problems` does.
    """
    utterances: list[Utterance] = []
    left_out: dict[str, str] = {}
    for split in splits:
        found, problems = load_split_and_problems(root, split, skip_bad=skip_bad, normalise=normalise)
        prefix = f"{split}/" if len(splits) > 1 else ""
        utterances += [replace(each, id=prefix + each.id, split=split) for each in found]
        left_out |= {prefix + problem.name: problem.reason for problem in problems}
    return utterances, left_out


def check_words(utterances: Sequence[Utterance], standard: Standard) -> None:
    """Raise CorpusError naming a split of which the standard leaves no word to score against."""
    with_words = {each.split for each in utterances if standard.apply(each.text)}
    if without := sorted({each.split for each in utterances} - with_words):
        raise CorpusError(
            f"no transcript has a word left after --normalise {standard.name}",
            where=without[0] or None,
            remedy="leave the option out",
        )


def evaluate_split(
    loaded: Checkpoint,
    utterances: Sequence[Utterance],
    split: str,
    decoders: Sequence[str],
    options: SearchOptions | None = None,
    *,
    hotwords: Sequence[Hotword] = (),
    temperature: float = 1.0,
    batch_seconds: float = 120.0,
    workers: int = 0,
    left_out: Mapping[str, str] | None = None,
    standard: Standard = UNCHANGED,
) -> Evaluation:
    """Decode and score utterances (probed) on the recogniser's device.

    Uses the precision that training and validation use on that device: half precision on a GPU.
    options: of the searches; None for the defaults. hotwords: get figures of their own, for every decoder; in
    the hypotheses their spellings are replaced by their phrases, normalised. left_out: other utterances of
    the split, and why they are not in `utterances`; they are only listed. Recordings that cannot be decoded
    are added to them and excluded from all figures. standard: that all texts are brought to before they are
    scored.

    Raises CorpusError if no recording can be read or nothing is left to score against, and ConfigError for an
    unknown decoder.
    """
    tally = Tally.begin(loaded, decoders, standard)
    tally.temperature = temperature
    options = options or SearchOptions()
    searches = {name: make_search(name, options, loaded.tokenizer) for name in decoders}
    for batch in read_batches(utterances, f"decoding {split}", batch_seconds, workers, tally.excluded):
        _decode_batch(loaded, batch, searches, tally)
    if len(tally.excluded) == len(utterances):
        raise CorpusError("no recording could be read", where=split, remedy="see the reasons above")
    return score_tally(split, utterances, tally, left_out or {}, options, hotwords)


def read_batches(
    utterances: Sequence[Utterance],
    title: str,
    batch_seconds: float,
    workers: int,
    excluded: dict[str, str],
) -> Iterator[AudioBatch]:
    """Yield utterances (probed) in batches of similar length, with a progress bar of that title.

    excluded: is filled with the ids of recordings that cannot be read, and why. Each is also logged.
    """
    seconds = {utterance.id: samples_to_seconds(utterance.num_samples or 0) for utterance in utterances}
    with ProgressBar(sum(seconds.values()), title) as progress:
        for item in iterate_by_length(utterances, batch_seconds, workers):
            if isinstance(item, AudioFailure):
                log.warning("excluded %s: %s", item.id, item.reason)
                excluded[item.id] = item.reason
                progress.add(seconds[item.id])
            else:
                yield item
                progress.add(sum(seconds[utterance_id] for utterance_id in item.ids))


@torch.inference_mode()
def _decode_batch(
    loaded: Checkpoint, batch: AudioBatch, searches: Mapping[str, Search], tally: Tally
) -> None:
    recogniser = loaded.recogniser
    device = device_of(recogniser)
    batch = batch.to(device)
    with autocast(device, tally.precision), _count_seconds(tally.seconds, "", device):
        encoded = hear(recogniser, batch)
    num_frames = encoded.num_frames_B.tolist()
    for name, search in searches.items():
        with autocast(device, tally.precision), _count_seconds(tally.seconds, name, device):
            found = search(recogniser, encoded)
        confidences = tally.confidences.setdefault(name, {})
        for row, (utterance_id, (hypothesis, *_)) in enumerate(zip(batch.ids, found, strict=True)):
            log_probs_TV = encoded.ctc_log_probs_BTV[row, : num_frames[row]]
            _, confidences[utterance_id] = find_words(
                log_probs_TV, hypothesis.ids, loaded.tokenizer, tally.temperature
            )
            tally.texts[name][utterance_id] = loaded.tokenizer.decode(hypothesis.ids)
            if hypothesis.is_truncated:
                tally.truncated[name].append(utterance_id)
    tally.num_samples += int(batch.num_samples_B.sum())


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
    standardise = tally.standard.apply
    references = [utterance.text for utterance in scored]
    to_score = [standardise(text) for text in references]
    audio_seconds = samples_to_seconds(tally.num_samples)
    results = {}
    in_transcripts = as_in_transcripts(hotwords, tally.normalise)
    matcher = HotwordMatcher(in_transcripts)
    phrases = list_scored(in_transcripts, tally.standard)
    for name, texts in tally.texts.items():
        hypotheses = [matcher.replace_spellings(texts[utterance.id]) for utterance in scored]
        if tally.truncated[name]:
            log.warning(
                "%s: %s cut off at the label limit for their length (listed in the report)",
                name,
                name_count(len(tally.truncated[name]), "hypothesis", "hypotheses"),
            )
        heard = [standardise(text) for text in hypotheses]
        results[name] = DecoderResult(
            score=score(to_score, heard, by_character=tally.by_character),
            hotwords=score_hotwords(to_score, heard, phrases) if hotwords else None,
            hypotheses=hypotheses,
            confidences=[tally.confidences.get(name, {}).get(utterance.id) for utterance in scored],
            truncated_ids=sorted(tally.truncated[name]),
            real_time_factor=(tally.seconds[""] + tally.seconds[name]) / audio_seconds,
        )
    return Evaluation(
        split=split,
        ids=[utterance.id for utterance in scored],
        references=references,
        excluded=dict(sorted({**left_out, **tally.excluded}.items())),
        audio_seconds=audio_seconds,
        precision=str(tally.precision).removeprefix("torch."),
        decoders=results,
        options=options,
        by_split=_score_splits(scored, results, tally.standard, by_character=tally.by_character),
        standard=tally.standard,
    )


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


@contextmanager
def _count_seconds(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    synchronize(device)
    start = time.perf_counter()
    yield
    synchronize(device)
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

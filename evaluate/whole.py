"""Transcribe recordings whole, as `vox transcribe` does, and score each against the texts of its segments."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from evaluate.results import Evaluation
from evaluate.standard import UNCHANGED, Standard
from evaluate.tally import Tally, score_tally
from vox.audio import read_audio, read_header
from vox.audio.mapped import map_audio
from vox.checkpoint.files import Checkpoint
from vox.corpus import Utterance
from vox.decode import SearchOptions
from vox.errors import AudioError, CorpusError, name_count, name_first
from vox.hotword_list import Hotword
from vox.segment import Segment
from vox.transcribe import Transcriber
from vox.vad import Span, SpeechDetector

log = logging.getLogger(__name__)


def refuse_left_out(left_out: Collection[str]) -> None:
    """Raise CorpusError if an utterance of a split is left out: its words would count as insertions."""
    if left_out:
        raise CorpusError(
            f"{name_count(len(left_out), 'utterance')} left out, and --whole needs every segment's text",
            where=name_first(list(left_out)),
            remedy="correct them",
        )


def join_segments(utterances: Sequence[Utterance], separator: str = " ") -> list[Utterance]:
    """Return an utterance for each recording, or for each channel of it, probed.

    Its text is that of its segments, in the order of their beginnings, with a separator between them. Its id
    is the file's name without the suffix, then @ and the channel if the segments name one; the file's path if
    that is not unique. Raises AudioError for a file that cannot be read.
    """
    groups: dict[tuple[str, str, int | None], list[Utterance]] = {}
    for utterance in utterances:
        channel = None if utterance.segment is None else utterance.segment.channel
        groups.setdefault((utterance.split, str(utterance.audio_path), channel), []).append(utterance)
    prefix = len({split for split, _, _ in groups}) > 1
    recordings = []
    for (split, _, channel), parts in groups.items():
        parts.sort(key=lambda part: (0.0 if part.segment is None else part.segment.offset, part.id))
        path = parts[0].audio_path
        segment = None if channel is None else Segment(channel=channel)
        recordings.append(
            Utterance(
                id=(f"{split}/" if prefix else "") + path.stem + ("" if channel is None else f"@{channel}"),
                audio_path=path,
                text=separator.join(part.text for part in parts if part.text),
                speaker=parts[0].speaker if len({part.speaker for part in parts}) == 1 else "",
                num_samples=read_header(path, segment=segment).num_samples,
                segment=segment,
                split=split,
            )
        )
    counts = Counter(recording.id for recording in recordings)
    return [
        replace(each, id=f"{each.audio_path}@{each.segment}") if counts[each.id] > 1 else each
        for each in recordings
    ]


def evaluate_whole(
    loaded: Checkpoint,
    recordings: Sequence[Utterance],
    title: str,
    decoders: Sequence[str],
    options: SearchOptions | None = None,
    *,
    hotwords: Sequence[Hotword] = (),
    temperature: float = 1.0,
    standard: Standard = UNCHANGED,
    detector: SpeechDetector | None = None,
) -> Evaluation:
    """Transcribe each recording of `join_segments` with each decoder, and score it against its whole text.

    What is said outside the segments, and recognised, counts as insertions. The real-time factor of a decoder
    is that of `vox transcribe`. standard: as in `evaluate_split`. detector: as of a Transcriber. Raises
    CorpusError if no recording can be read or nothing is left to score against.
    """
    tally = Tally.begin(loaded, decoders, standard)
    tally.seconds[""] = 0.0
    options = options or SearchOptions()
    transcribers = {name: Transcriber(loaded, name, options, temperature=temperature) for name in decoders}
    for recording in recordings:
        try:
            samples_S = (
                map_audio(recording.audio_path)
                if recording.segment is None
                else read_audio(recording.audio_path, segment=recording.segment)
            )
        except AudioError as error:
            log.warning("excluded %s: %s", recording.id, error)
            tally.excluded[recording.id] = str(error)
            continue
        tally.num_samples += len(samples_S)
        waveform_S, start = torch.from_numpy(samples_S), time.perf_counter()
        spans = None if detector is None else detector.find_spans(waveform_S)
        tally.seconds[""] += time.perf_counter() - start
        for name, transcriber in transcribers.items():
            _transcribe(transcriber, recording.id, waveform_S, name, tally, spans)
    if len(tally.excluded) == len(recordings):
        raise CorpusError("no recording could be read", where=title, remedy="see the reasons above")
    evaluation = score_tally(title, recordings, tally, {}, options, hotwords)
    return evaluation if detector is None else replace(evaluation, vad=detector.identity)


def _transcribe(
    transcriber: Transcriber,
    recording_id: str,
    waveform_S: torch.Tensor,
    name: str,
    tally: Tally,
    spans: Sequence[Span] | None,
) -> None:
    start = time.perf_counter()
    found = transcriber.recognise(waveform_S, f"{recording_id}, {name}", spans=spans)
    tally.seconds[name] = tally.seconds.get(name, 0.0) + time.perf_counter() - start
    best, tokenizer = found.hypotheses[0], transcriber.loaded.tokenizer
    tally.texts[name][recording_id] = tokenizer.decode(best.ids)
    _, tally.confidences.setdefault(name, {})[recording_id] = found.list_words(tokenizer)
    if best.is_truncated:
        tally.truncated[name].append(recording_id)

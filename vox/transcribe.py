"""Transcribe recordings with a trained recogniser.

Shape letters: B batch, S samples.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vox.audio import hash_recording
from vox.audio.mapped import map_audio
from vox.checkpoint.files import Checkpoint
from vox.data.batch import AudioBatch
from vox.decode import (
    Hypothesis,
    Search,
    SearchOptions,
    make_search,
    preferred_decoder,
)
from vox.decode.confidence import silence_confidence
from vox.decode.ctc import decode_ctc
from vox.decode.found import Found
from vox.decode.scorer import hash_scorer
from vox.decode.words import time_labels
from vox.decoder_names import check_decoder
from vox.device import autocast, pick_precision
from vox.disk import hash_file
from vox.errors import AudioError, name_count, name_first
from vox.hear import device_of, hear
from vox.hotword_list import Hotword, HotwordMatcher
from vox.long import DEFAULT_LONGEST_SAMPLES, recognise_long
from vox.model.recogniser import Recogniser
from vox.partial import PartialFile
from vox.runs.layout import CHECKSUMS
from vox.transcript import Alternative, SpottedHotword, Transcript, Word
from vox.units import samples_to_frames, samples_to_seconds
from vox.vad import Span, SpeechDetector

log = logging.getLogger(__name__)

# If the texts of two decoders differ in length by more than this, one of them is wrong.
MAX_LENGTH_DIFFERENCE = 0.25  # of the longer one
MIN_LENGTH_DIFFERENCE = 5  # labels; short texts may differ by chance


class Transcriber:
    """A loaded checkpoint that transcribes recordings, one at a time.

    for transcript in vox.load("runs/stage2/best").transcribe(["talk.wav"]):
        print(transcript.text, [(word.text, word.start) for word in transcript.words])
    """

    def __init__(
        self,
        loaded: Checkpoint,
        decoder: str | None = None,
        options: SearchOptions | None = None,
        hotwords: Sequence[Hotword] = (),
        temperature: float = 1.0,
        detector: SpeechDetector | None = None,
    ) -> None:
        """Choose the decoder. None: the greedy one with the lower dev WER in the checkpoint's state.

        options: None for the defaults. hotwords: the phrases of the hotword scorer in options.scorers, if
        there is one; in a text their spellings are replaced by their phrases. temperature: of confidences.
        detector: finds where somebody speaks; the rest is not heard.

        Raises ConfigError for an unknown decoder.
        """
        self.temperature = temperature
        self._detector = detector
        self.loaded = loaded
        self.decoder = decoder or preferred_decoder(loaded.state)
        check_decoder(self.decoder)
        self._options = options or SearchOptions()
        self._search = (
            None if self.decoder == "ctc" else make_search(self.decoder, self._options, loaded.tokenizer)
        )
        self._matcher = HotwordMatcher(hotwords) if hotwords else None
        self._longest_samples = loaded.state.get("longest_train_samples") or DEFAULT_LONGEST_SAMPLES

    def transcribe(
        self,
        recordings: Path | str | np.ndarray | Iterable[Path | str | np.ndarray],
        partial: PartialFile | None = None,
    ) -> Iterator[Transcript]:
        """Yield a Transcript for each recording, in order, as soon as it is decoded.

        A recording is a file, or an array: float32 [S], 16 kHz (nothing can tell another rate), one channel.

        A recording longer than the longest training recording is encoded in windows and decoded in pieces
        (vox/long/). With a detector, each span of speech is treated as a recording. Logs a warning if a
        text is much longer or shorter than greedy CTC's. A recording that cannot be read does not stop the
        others: it is logged, and after the last recording an AudioError gives the number of failures. The
        AudioError of a single recording is raised and not logged.

        partial: keeps what is decoded; what it has already, from this transcriber's `identity`, is not
        decoded again.
        """
        if isinstance(recordings, str | Path | np.ndarray):
            recordings = [recordings]
        failures: list[tuple[str, AudioError]] = []
        num_recordings = 0
        for recording in recordings:
            if num_recordings == 1:
                for _, error in failures:  # of the first recording, which is not the only one
                    log.warning("%s", error)
            num_recordings += 1
            name = f"array {num_recordings}" if isinstance(recording, np.ndarray) else str(recording)
            try:
                sha256 = "" if partial is None else hash_content(recording)
                waveform_S = _read_recording(recording, name)
            except AudioError as error:
                if num_recordings > 1:
                    log.warning("%s", error)
                failures.append((name, error))
                continue
            if partial is None:
                yield self._transcribe(waveform_S, name)
            else:
                done = partial.begin(name, sha256 or hash_samples(waveform_S))
                yield self._transcribe(waveform_S, name, done, partial.add)
        if failures and num_recordings == 1:
            raise failures[0][1]
        if failures:
            raise AudioError(
                f"{len(failures)} of {num_recordings} recordings could not be transcribed",
                where=name_first([name for name, _ in failures]),
                remedy="see the reasons above"
                + ("; the others were transcribed" if len(failures) < num_recordings else ""),
            )

    def identity(self) -> dict[str, Any]:
        """Return what a text depends on except for the recording, as JSON: checkpoint, decoder, options."""
        options = self._options
        scorers = [[scorer.name, weight, hash_scorer(scorer)] for scorer, weight in options.scorers]
        return {
            "checkpoint": hash_file(self.loaded.folder / CHECKSUMS),
            "device": str(device_of(self.loaded.recogniser)),
            "decoder": self.decoder,
            "options": {**{f.name: getattr(options, f.name) for f in fields(options)}, "scorers": scorers},
            "temperature": self.temperature,
            "speech": None if self._detector is None else self._detector.identity,
        }

    def _transcribe(
        self,
        waveform_S: torch.Tensor,
        name: str,
        done: Sequence[Found] = (),
        keep: Callable[[Found], None] = lambda piece: None,
    ) -> Transcript:
        spans = None if self._detector is None else self._detector.find_spans(waveform_S)
        found = self.recognise(waveform_S, name, done, keep, spans)
        hypotheses, ctc = found.hypotheses, found.ctc
        best, tokenizer = hypotheses[0], self.loaded.tokenizer
        words, confidence = found.list_words(tokenizer)
        self._warn(name, best, ctc)
        transcript = Transcript(
            audio=name,
            seconds=samples_to_seconds(len(waveform_S)),
            decoder=self.decoder,
            text=tokenizer.decode(best.ids),
            words=words,
            confidence=confidence,
            alternatives=_keep_different(
                Alternative(tokenizer.decode(found.ids), found.score, dict(found.parts))
                for found in hypotheses
            ),
        )
        return transcript if self._matcher is None else show_hotwords(transcript, self._matcher)

    @torch.inference_mode()
    def recognise(
        self,
        waveform_S: torch.Tensor,
        name: str,
        done: Sequence[Found] = (),
        keep: Callable[[Found], None] = lambda piece: None,
        spans: Sequence[Span] | None = None,
    ) -> Found:
        """Recognise float32 [S] at 16 kHz, on the CPU, whole or in pieces; at least one frame.

        name: shown by the progress bar. done, keep, spans: see `recognise_long`.
        """
        recogniser = self.loaded.recogniser
        device = device_of(recogniser)
        with autocast(device, pick_precision("auto", device)):
            if spans is not None or len(waveform_S) > self._longest_samples:
                return recognise_long(
                    recogniser,
                    waveform_S,
                    self._search,
                    self._longest_samples,
                    nbest=self._options.nbest,
                    temperature=self.temperature,
                    name=name,
                    done=done,
                    keep=keep,
                    spans=spans,
                    tokenizer=self.loaded.tokenizer,
                )
            if done:
                return done[0]
            found = _recognise_whole(recogniser, waveform_S, self._search, self.temperature)
            keep(found)
            return found

    def _warn(self, name: str, best: Hypothesis, ctc: Hypothesis) -> None:
        if best.is_truncated:
            log.warning("%s: the text was cut off at the label limit for its length", name)
        elif is_far_apart(len(best.ids), len(ctc.ids)):
            log.warning(
                "%s: the %s decoder found %s and CTC %d: words may be missing or repeated; compare "
                "with --decoder ctc",
                name,
                self.decoder,
                name_count(len(best.ids), "label"),
                len(ctc.ids),
            )


def show_hotwords(transcript: Transcript, matcher: HotwordMatcher) -> Transcript:
    """Return a transcript with its hotwords listed and each spelling replaced by its phrase.

    A phrase that replaces several words becomes one word, from the start of the first to the end of the last,
    with the smallest of their confidences.
    """
    texts = [word.text for word in transcript.words]
    words = transcript.words
    spotted = tuple(
        SpottedHotword(phrase, " ".join(texts[first:end]), words[first].start, words[end - 1].end)
        for phrase, first, end in matcher.match(texts)
    )
    return replace(
        transcript,
        text=matcher.replace_spellings(transcript.text),
        words=tuple(_join_words(words[first:end], phrase) for phrase, first, end in matcher.cut(texts)),
        alternatives=_keep_different(
            replace(found, text=matcher.replace_spellings(found.text)) for found in transcript.alternatives
        ),
        hotwords=spotted,
    )


def _keep_different(alternatives: Iterable[Alternative]) -> tuple[Alternative, ...]:
    """Return the first of each text: one text may be several sequences of pieces, or of spellings."""
    first: dict[str, Alternative] = {}
    for each in alternatives:
        first.setdefault(each.text, each)
    return tuple(first.values())


def _join_words(words: Sequence[Word], phrase: str | None) -> Word:
    if phrase is None:
        return words[0]
    sure = [word.confidence for word in words if word.confidence is not None]
    return Word(phrase, words[0].start, words[-1].end, min(sure, default=None))


def _read_recording(recording: Path | str | np.ndarray, name: str) -> torch.Tensor:
    """Return [S] float32 at 16 kHz; raise AudioError if it cannot be read or is shorter than a frame."""
    if isinstance(recording, np.ndarray):
        samples_S = recording
        what = None
        if samples_S.ndim != 1 or samples_S.dtype != np.float32:
            what = f"an array of {samples_S.dtype} {list(samples_S.shape)}"
        elif not np.isfinite(samples_S).all():
            what = "an array with a number that is not finite"
        if what is not None:
            remedy = "give float32 [samples], one channel, 16,000 a second, from -1 to 1"
            raise AudioError(what, where=name, remedy=remedy)
    else:
        if Path(recording).is_dir():
            raise AudioError("a folder", where=name, remedy=f"give files, or a glob such as {name}/*.flac")
        samples_S = map_audio(recording)
    if samples_to_frames(len(samples_S)) == 0:
        raise AudioError(
            f"recording of {name_count(len(samples_S), 'sample')} is shorter than one frame",
            where=name,
            remedy="give at least 25 ms",
        )
    return torch.from_numpy(samples_S)


def is_far_apart(num_labels: int, num_ctc_labels: int) -> bool:
    """Return whether two decoders' texts differ so much in length that one of them must be wrong."""
    longer, difference = max(num_labels, num_ctc_labels), abs(num_labels - num_ctc_labels)
    if longer > 0 and min(num_labels, num_ctc_labels) == 0:
        return True
    return difference >= MIN_LENGTH_DIFFERENCE and difference > MAX_LENGTH_DIFFERENCE * longer


def _recognise_whole(
    recogniser: Recogniser, waveform_S: torch.Tensor, search: Search | None, temperature: float
) -> Found:
    """Encode one recording and decode it; without a search, by greedy CTC."""
    waveforms_BS = waveform_S[None].to(device_of(recogniser))
    num_samples_B = torch.tensor([len(waveform_S)], device=waveforms_BS.device)
    encoded = hear(recogniser, AudioBatch([""], waveforms_BS, num_samples_B))
    (ctc,) = decode_ctc(recogniser, encoded)
    hypotheses = [ctc] if search is None else search(recogniser, encoded)[0]
    log_probs_TV = encoded.ctc_log_probs_BTV[0]
    return Found(
        log_probs_TV.shape[0],
        hypotheses,
        ctc,
        time_labels(log_probs_TV, hypotheses[0].ids, temperature),
        silence_confidence(log_probs_TV, temperature),
    )


def hash_content(recording: Path | str | np.ndarray) -> str:
    """Return the sha256 of a recording's file; empty for what is no regular file, and for an array.

    The file's rather than the samples': one MP3 decoded twice differs in its last bits.
    """
    if isinstance(recording, np.ndarray) or not Path(recording).is_file():
        return ""
    return hash_recording(Path(recording))


def hash_samples(waveform_S: torch.Tensor) -> str:
    """Return the sha256 of float32 samples."""
    return hashlib.sha256(waveform_S.numpy().data).hexdigest()

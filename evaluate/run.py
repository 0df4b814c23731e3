"""Decode a split with each requested decoder, and score the hypotheses.

The encoder runs once a batch. Its time is added to each decoder's, so a decoder's real-time factor is the one
it would have alone. Reading the files is not counted, because other processes do it in parallel.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from evaluate.results import Evaluation
from evaluate.standard import UNCHANGED, Standard
from evaluate.tally import Tally, score_tally
from vox.checkpoint.files import Checkpoint
from vox.corpus import Utterance
from vox.data.batch import AudioBatch, AudioFailure
from vox.data.sources import iterate_by_length
from vox.decode import Search, SearchOptions, make_search
from vox.decode.words import find_words
from vox.device import autocast, synchronize
from vox.errors import CorpusError
from vox.hear import device_of, hear
from vox.hotword_list import Hotword
from vox.progress import ProgressBar
from vox.units import samples_to_seconds

log = logging.getLogger(__name__)


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
    are added to them and excluded from all figures. standard: applied to all texts before they are scored.

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


@contextmanager
def _count_seconds(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    synchronize(device)
    start = time.perf_counter()
    yield
    synchronize(device)
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

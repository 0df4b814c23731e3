"""What `vox check` measures of phase 1: cached features against live ones (T2), and its rates.

T frames, C channels.
"""

from collections.abc import Iterable, Iterator

import torch

from precompute.estimate import measure_disk
from precompute.extract import compute_at_once, compute_batch, computing_precision, count_at_once
from precompute.pace import choose_pace
from precompute.write import ComputedBatch
from vox.check.audio import make_voices
from vox.check.promises import PRECISION_BOUND, compute_features, relative_l2
from vox.check.rates import count_flops, matrix_rate, time_work
from vox.check.results import Promise, Rate, Step
from vox.check.subject import CheckSubject
from vox.data.batch import AudioBatch
from vox.device import autocast, synchronize
from vox.units import samples_to_seconds
from vox.wavlm.extractor import FeatureExtractor

LONGEST_SECONDS, SHORTEST_SECONDS = 16.0, 8.0  # of the utterances of a batch


def list_promises() -> list[Step[CheckSubject]]:
    """Return the steps that compare figures with bounds."""
    return [Step("T2: cached features", check_cached)]


def list_rates() -> list[Step[CheckSubject]]:
    """Return the steps that measure speeds."""
    return [Step("extraction", check_extraction), Step("writing to the disk", check_writing)]


def count_workers(device: torch.device) -> int:
    """Return how many processes decode audio by default."""
    return choose_pace(None, None, device.type).workers


def compute(extractor: FeatureExtractor, batch: AudioBatch, device: torch.device) -> ComputedBatch:
    """Compute one batch as `vox precompute` does."""
    keys = [(0, row) for row in range(len(batch.ids))]
    with torch.inference_mode(), autocast(device, computing_precision(device)):
        return compute_batch(extractor, batch, keys, [], {}, device)


def compute_all(extractor: FeatureExtractor, batches: Iterable[AudioBatch], device: torch.device) -> None:
    """Compute batches as `vox precompute` does, a few at once on a CPU, and let their features go."""
    for _ in compute_at_once(lambda batch: compute(extractor, batch, device), batches, device):
        pass
    synchronize(device)


def check_cached(subject: CheckSubject) -> Iterator[Promise]:
    """Compare what would be cached with live features in float32."""
    computed = compute(subject.extractor, make_voices(subject.amounts.clip_seconds), subject.device)
    synchronize(subject.device)
    error = relative_l2(computed.features_BTC, compute_features(subject, torch.float32))
    name = str(computing_precision(subject.device)).removeprefix("torch.")
    what = f"cached features, computed in {name}, against live float32"
    yield Promise("T2", what, error, PRECISION_BOUND)


def check_extraction(subject: CheckSubject) -> Iterator[Rate]:
    """Time batches of which no two are of one length; on a GPU again, when it has met all lengths."""
    subject.extractor.eval()
    warm_up, *timed = make_batches(subject)
    with torch.inference_mode():
        flops = count_flops(lambda: compute(subject.extractor, warm_up, subject.device))

    def work() -> None:
        compute_all(subject.extractor, timed, subject.device)

    seconds = sum(samples_to_seconds(int(batch.num_samples_B.sum())) for batch in timed)
    new = seen = time_work(work, subject.device, warm_up=0)
    if subject.device.type == "cuda":
        seen = time_work(work, subject.device, warm_up=0)
        yield Rate("extraction_new", "extraction, lengths not met before", seconds / new, "x real time")
    flops_per_sample = flops / warm_up.waveforms_BS.numel()  # of padded audio
    achieved = flops_per_sample * sum(batch.waveforms_BS.numel() for batch in timed) / seen
    share = achieved / matrix_rate(subject, computing_precision(subject.device))
    yield Rate("extraction", "extraction", seconds / seen, "x real time", share)


def make_batches(subject: CheckSubject) -> list[AudioBatch]:
    """Make batches of the size that phase 1 computes, each of another length, one of them to warm up."""
    amounts = subject.amounts
    longest = min(LONGEST_SECONDS, amounts.batch_seconds)
    shortest = longest * SHORTEST_SECONDS / LONGEST_SECONDS
    num_batches = amounts.num_batches * count_at_once(subject.device) + 1
    lengths = torch.linspace(longest, shortest, num_batches).tolist()
    return [
        make_voices([length] * max(1, int(amounts.batch_seconds / length)), seed=index)
        for index, length in enumerate(lengths)
    ]


def check_writing(subject: CheckSubject) -> Iterator[Rate]:
    """Measure how fast bytes reach the disk under the data root."""
    yield Rate("write_disk", "writing to the disk", measure_disk(subject.root) / 1e6, "MB/s")

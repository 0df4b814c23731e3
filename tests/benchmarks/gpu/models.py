"""The models on a card: precision, waits for the GPU, decoders, long recordings, updates cut in other ways.

B batch, S samples, T frames.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch

import precompute.check
from tests.benchmarks.clock import find_waits
from tests.benchmarks.gpu.bench import CTC_BOUND, Bench, Found, say
from train.check.gradients import (
    HALF_BOUND,
    SMALL_MODEL,
    check_infinity,
    gradients_of,
    make_small_recogniser,
)
from train.check.made import make_update
from train.check.rates import measure_updates, stage2_config
from train.check.trainer import Trainer
from vox.check.audio import make_voices
from vox.check.decoding import encode
from vox.check.promises import PRECISION_BOUND, check_extremes, compute_features, relative_l2
from vox.check.results import Promise, Rate
from vox.decode import DECODERS, SearchOptions

LONG_SECONDS = 35.0  # more than WavLM's attention takes in one pass
NUM_UPDATES = 30
PROFILE_ROWS = 15


def compare_stems(bench: Bench) -> Found:
    """Compare features in half precision with float32: as they are, and with WavLM's stem in half too."""
    dtype = torch.float16 if bench.is_cuda else torch.bfloat16
    exact_BTC = compute_features(bench.subject, torch.float32)
    error = relative_l2(compute_features(bench.subject, dtype), exact_BTC)
    yield Promise("T2", f"features in {_name(dtype)}", error, PRECISION_BOUND)


def compare_convolutions(bench: Bench) -> Found:
    """Give the features' error and extraction's rate with more and more of the stem in half precision."""
    exact_BTC = compute_features(bench.subject, torch.float32)
    dtype = torch.float16 if bench.is_cuda else torch.bfloat16
    for layers in ((), (1,), (1, 2), (1, 2, 3), tuple(range(1, 7))):
        with patch("vox.wavlm.stem.HALF_LAYERS", layers):
            name = f"convolutions {layers} multiplied in half precision"
            error = relative_l2(compute_features(bench.subject, dtype), exact_BTC)
            yield Rate("", f"features, {name}", error, "relative L2")
            if bench.is_cuda:
                for rate in precompute.check.check_extraction(bench.subject):
                    yield replace(rate, key="", what=f"{rate.what}, {name}")


def check_other_precisions(bench: Bench) -> Found:
    """Repeat the checks of training in each half precision, whichever this card trains in by itself."""
    dtypes = (torch.bfloat16, torch.float16) if bench.is_cuda else (torch.bfloat16,)
    for dtype in dtypes:
        subject = replace(bench.subject, precision=dtype)
        for promise in (*check_extremes(subject), *check_infinity(subject)):
            yield replace(promise, what=f"{promise.what}, {_name(dtype)}")


def check_long_gradient(bench: Bench) -> Found:
    """Compare the gradient of one long utterance, through WavLM's layers, with float64 on the CPU."""
    seconds = LONG_SECONDS if bench.is_cuda else 3.0
    recogniser = make_small_recogniser()
    update = make_update([seconds], SMALL_MODEL, 1, live=True)
    exact = copy.deepcopy(recogniser).double()
    expected = torch.cat(gradients_of(exact, update, torch.device("cpu"), torch.float32))
    for dtype, bound in ((torch.float32, CTC_BOUND), (torch.bfloat16, HALF_BOUND)):
        moved = copy.deepcopy(recogniser).to(bench.device)
        found = torch.cat(gradients_of(moved, update, bench.device, dtype))
        what = f"gradient of one of {seconds:.0f} s in {_name(dtype)} against float64"
        yield Promise("", what, relative_l2(found, expected), bound)


def count_waits(bench: Bench) -> Found:
    """Count how often an update, a batch of extraction and a decoding step wait for the GPU, and where."""
    if not bench.is_cuda:
        say("a CPU is never waited for")
        return
    subject, amounts = bench.subject, bench.subject.amounts
    lengths = [amounts.utterance_seconds] * amounts.update_utterances
    for key, config, live in (
        ("stage1_cached", subject.config, False),
        ("stage2_live", stage2_config(subject), True),
    ):
        trainer = Trainer(subject.recogniser, config, bench.device, subject.precision, cached=not live)
        update = make_update(lengths, subject.config.model, amounts.micro_utterances, live=live, pin=True)
        trainer.update(update.totals, update.batches)
        work = partial(trainer.update, update.totals, update.batches)
        yield _count(f"an update of {key}", key, work)
    batch = precompute.check.make_batches(subject)[0]
    extract = partial(precompute.check.compute, subject.extractor.eval(), batch, bench.device)
    extract()
    yield _count("a batch of extraction", "extraction", extract)
    with torch.inference_mode():
        encoded = encode(subject, make_voices([2.0] * 8))
        decoder = subject.recogniser.eval().decoder
        cache = decoder.start(encoded)
        token_B = torch.full_like(encoded.num_frames_B, 3)
        decoder.step(token_B, cache)
        yield _count("a decoding step", "decoding", lambda: decoder.step(token_B, cache))


@torch.inference_mode()
def compare_decoders(bench: Bench) -> Found:
    """Count the utterances that a decoder hears otherwise than on the CPU, in float32."""
    subject = bench.subject
    batch = make_voices(subject.amounts.clip_seconds)
    on_cpu = replace(
        subject, device=torch.device("cpu"), recogniser=copy.deepcopy(subject.recogniser).cpu().eval()
    )
    subject.recogniser.eval()
    for name, decode in DECODERS.items():
        found = decode(subject.recogniser, encode(subject, batch), SearchOptions())
        expected = decode(on_cpu.recogniser, encode(on_cpu, batch), SearchOptions())
        different = sum(one[0].ids != other[0].ids for one, other in zip(found, expected, strict=True))
        yield Promise("", f"utterances that {name} decodes otherwise than on the CPU", different, 0)


def time_extraction(bench: Bench) -> Found:
    """Time extraction as `vox check` does, and with half as much audio in a batch."""
    amounts = bench.subject.amounts
    for divisor in (2, 1):
        seconds = amounts.batch_seconds / divisor
        subject = replace(bench.subject, amounts=replace(amounts, batch_seconds=seconds))
        for rate in precompute.check.check_extraction(subject):
            yield replace(rate, what=f"{rate.what}, batches of {seconds:.0f} s")


def time_cuts(bench: Bench) -> Found:
    """Time cached updates as micro-batches of the default size, and as one."""
    amounts = bench.subject.amounts
    num_updates = NUM_UPDATES if bench.is_cuda else 1
    subject = replace(bench.subject, amounts=replace(amounts, num_updates=num_updates))
    for micro in (amounts.micro_utterances, amounts.update_utterances):
        trainer = Trainer(subject.recogniser, subject.config, subject.device, subject.precision, cached=True)
        what = f"stage 1 from a cache, {micro} at once"
        yield measure_updates(subject, trainer, f"cached_{micro}", what, micro=micro)


def profile_extraction(bench: Bench) -> Found:
    """Print what one batch of extraction spends its time in."""
    batch = precompute.check.make_batches(bench.subject)[0]
    extractor = bench.subject.extractor.eval()
    _profile("a batch of extraction", bench, lambda: precompute.check.compute(extractor, batch, bench.device))
    return []


def profile_update(bench: Bench) -> Found:
    """Print what one cached update spends its time in."""
    subject, amounts = bench.subject, bench.subject.amounts
    trainer = Trainer(subject.recogniser, subject.config, subject.device, subject.precision, cached=True)
    lengths = [amounts.utterance_seconds] * amounts.update_utterances
    update = make_update(
        lengths, subject.config.model, amounts.update_utterances, live=False, pin=bench.is_cuda
    )
    _profile("a cached update", bench, lambda: trainer.update(update.totals, update.batches))
    return []


def _count(what: str, key: str, work: Callable[[], object]) -> Rate:
    waits = find_waits(work)
    for line, count in waits.most_common():
        say(f"{what} waits {count} times at {line}")
    return Rate(f"waits_{key}", f"waits of {what}", sum(waits.values()), "times")


def _profile(what: str, bench: Bench, work: Callable[[], object]) -> None:
    work()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if bench.is_cuda:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiler:
        work()
        if bench.is_cuda:
            torch.cuda.synchronize()
    say(f"profile of {what}")
    column = "self_device_time_total" if bench.is_cuda else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=column, row_limit=PROFILE_ROWS, max_name_column_width=60)
    print(table, flush=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

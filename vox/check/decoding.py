"""The promises about scores and decoding, measured on this device: T3 and T5; and how fast decoding is.

B batch, T frames, U labels, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vox.check.audio import make_voices
from vox.check.promises import split_batch
from vox.check.rates import time_work
from vox.check.results import Promise, Rate
from vox.check.subject import CheckSubject
from vox.data.batch import AudioBatch
from vox.decode.ctc import decode_ctc
from vox.device import autocast
from vox.hear import hear
from vox.model.encoded import Encoded
from vox.text import BOS_ID, PAD_ID, UNK_ID

SCORES_BOUND = 1e-4  # largest difference of a score, float32: T3, T5
LABELS_PER_SECOND = 4
TIMED_STEPS = 20  # of the attention decoder
STEP_UTTERANCES = 8


@torch.inference_mode()
def check_scores(subject: CheckSubject) -> Iterator[Promise]:
    """Compare the scores of each utterance alone, from its audio on, with the same in a padded batch."""
    recogniser, batch = subject.recogniser, make_voices(subject.amounts.clip_seconds)
    tokens = make_tokens(subject)
    together = encode(subject, batch)
    batched_BUV = recogniser.decoder(pad_sequence(tokens, batch_first=True, padding_value=PAD_ID), together)
    ctc = attention = 0.0
    for row, lone in enumerate(encode(subject, part) for part in split_batch(batch)):
        num_frames, num_tokens = int(lone.num_frames_B), len(tokens[row])
        ctc = max(ctc, largest(together.ctc_log_probs_BTV[row, :num_frames] - lone.ctc_log_probs_BTV[0]))
        lone_UV = recogniser.decoder(tokens[row][None], lone)[0]
        attention = max(attention, largest(batched_BUV[row, :num_tokens] - lone_UV))
    yield Promise("T3", f"CTC's scores alone and among {len(tokens)}, padded", ctc, SCORES_BOUND)
    yield Promise("T3", f"the decoder's scores alone and among {len(tokens)}", attention, SCORES_BOUND)


@torch.inference_mode()
def check_steps(subject: CheckSubject) -> Iterator[Promise]:
    """Compare each step of decoding with the scores of the whole sequence at once."""
    decoder = subject.recogniser.decoder
    encoded = encode(subject, make_voices(subject.amounts.clip_seconds))
    tokens_BU = pad_sequence(make_tokens(subject), batch_first=True, padding_value=PAD_ID)
    forced_BUV = decoder(tokens_BU, encoded)
    cache = decoder.start(encoded)
    error = max(
        largest(decoder.step(token_B, cache) - forced_BV)
        for token_B, forced_BV in zip(tokens_BU.unbind(1), forced_BUV.unbind(1), strict=True)
    )
    what = f"{tokens_BU.shape[1]} decoding steps against teacher forcing"
    yield Promise("T5", what, error, SCORES_BOUND)


@torch.inference_mode()
def check_speed(subject: CheckSubject) -> Iterator[Rate]:
    """Time a step of the attention decoder, and CTC's greedy search over encoded audio."""
    seconds = max(subject.amounts.clip_seconds)
    with autocast(subject.device, subject.precision):
        encoded = encode(subject, make_voices([seconds] * STEP_UTTERANCES))
        decoder = subject.recogniser.decoder
        cache = decoder.start(encoded)
        token_B = torch.full_like(encoded.num_frames_B, UNK_ID)
        step = time_work(lambda: decoder.step(token_B, cache), subject.device, repeats=TIMED_STEPS)
        search = time_work(lambda: decode_ctc(subject.recogniser, encoded), subject.device, repeats=3)
    what = f"a step of the attention decoder, {STEP_UTTERANCES} utterances"
    yield Rate("decoding_step", what, 1000 * step, "ms")
    yield Rate("decode_ctc", "CTC's greedy search", STEP_UTTERANCES * seconds / search, "x real time")


def encode(subject: CheckSubject, batch: AudioBatch) -> Encoded:
    """Run the recogniser over a batch, on the device, in evaluation mode from here on."""
    moved = batch.to(subject.device)
    return hear(subject.recogniser.eval(), moved)


def make_tokens(subject: CheckSubject) -> list[Tensor]:
    """Make what the decoder reads, int64 [U] on the device, for each of the promises' utterances."""
    generator = torch.Generator().manual_seed(0)
    tokens = []
    for seconds in subject.amounts.clip_seconds:
        count = max(1, int(seconds * LABELS_PER_SECOND))
        labels_U = torch.randint(UNK_ID, subject.config.model.num_pieces, (count,), generator=generator)
        tokens.append(torch.cat([torch.tensor([BOS_ID]), labels_U]).to(subject.device))
    return tokens


def largest(difference: Tensor) -> float:
    """Return the largest absolute value; NaN if there is one."""
    return float(difference.abs().max())

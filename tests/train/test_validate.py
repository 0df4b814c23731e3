"""Validation results: error rates and losses computed by hand, the same for any number of ranks."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.processes import join, run_ranks
from tests.support.tiny_model import FEATURE_DIM, make_recogniser
from train.judge.validate import DevResult, validate
from train.ranks import Ranks
from train.splits import TrainingSplit
from train.update.step import compute_losses
from vox.corpus import Utterance
from vox.data.batch import FeatureBatch, make_label_batch
from vox.decode import Hypothesis
from vox.model.encoded import Encoded
from vox.model.recogniser import Recogniser
from vox.units import SAMPLE_RATE

# Decoders know an utterance by its number of frames.
REFERENCES = {20: "go stop", 21: "left", 22: "right up down", 23: "go go", 24: "stop"}
DELETIONS = {20: "go", 21: "", 22: "right up down", 23: "go", 24: "stop"}  # 3 of 9 words
INSERTIONS = {20: "go stop now", 21: "left left left", 22: "right up down", 23: "go go", 24: "stop stop"}  # 4
TRUNCATED = {"attention": {21, 24}}
WORDS = sorted({word for text in INSERTIONS.values() for word in text.split()} | set(DELETIONS[22].split()))


class FakeSource:
    """Features drawn from the utterance's number; records the requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def lengths_samples(self, ids: Sequence[str]) -> list[int]:
        raise AssertionError("the split knows its lengths")

    def read(self, batches: Sequence[Sequence[str]]) -> Iterator[FeatureBatch]:
        for batch in batches:
            self.asked += batch
            rows = [make_features(int(name)) for name in batch]
            padded_BTC = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            yield FeatureBatch(list(batch), padded_BTC, torch.tensor([len(row) for row in rows]))


def make_features(num_frames: int) -> torch.Tensor:
    """Draw [num_frames, C] features."""
    return torch.randn(num_frames, FEATURE_DIM, generator=torch.Generator().manual_seed(num_frames))


def make_split() -> TrainingSplit:
    """Make a split of five utterances of about a second, with two labels a word."""
    utterances = [
        Utterance(str(frames), Path("none"), text, "", num_samples=SAMPLE_RATE + 320 * frames)
        for frames, text in REFERENCES.items()
    ]
    labels = {str(frames): [4 + len(word) for word in text.split()] for frames, text in REFERENCES.items()}
    return TrainingSplit("dev", utterances, labels, FakeSource())


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Let each decoder return its script; return the tokenizer that spells it."""
    scripts = {"ctc": DELETIONS, "attention": INSERTIONS}

    def make_decoder(name: str) -> Any:
        def decode(_: Recogniser, encoded: Encoded) -> list[Hypothesis]:
            counts = encoded.num_frames_B.tolist()
            spelled = [[WORDS.index(word) for word in scripts[name][count].split()] for count in counts]
            cut = [count in TRUNCATED.get(name, ()) for count in counts]
            return [Hypothesis(ids, is_cut) for ids, is_cut in zip(spelled, cut, strict=True)]

        return decode

    def make_search(name: str, *_: object) -> Any:
        return lambda *arguments: [[found] for found in make_decoder(name)(*arguments)]

    monkeypatch.setattr("train.judge.validate.make_search", make_search)
    return SimpleNamespace(has_words=True, rate="WER", decode=lambda ids: " ".join(WORDS[i] for i in ids))


def run_validation(tokenizer: Any, split: TrainingSplit, ranks: Ranks) -> DevResult:
    cpu = torch.device("cpu")
    return validate(make_recogniser(), split, tokenizer, device=cpu, precision=torch.float32, ranks=ranks)


def test_error_rates_and_losses_are_those_counted_by_hand(scripted):
    """Errors over the references' words: 3 and 4 of 9; with sides swapped it would be 3 of 6 and 4 of 13."""
    split = make_split()
    found = run_validation(scripted, split, Ranks())
    assert found.wer == {"ctc": pytest.approx(3 / 9), "attention": pytest.approx(4 / 9)}
    assert found.num_truncated == 2
    assert [sum(found.errors[name]) for name in ("ctc", "attention")] == [3, 4]
    assert (sum(found.num_words), len(found.num_words)) == (9, 5)
    assert found.errors["ctc"] != found.errors["attention"]
    assert found.wer_by_split == {}  # there is one
    first = {"id": "20", "reference": "go stop", "ctc": "go", "attention": "go stop now"}
    assert found.examples[0] == first and len(found.examples) == 3
    recogniser, ctc, attention = make_recogniser(), 0.0, 0.0
    for name, row in split.labels.items():
        features_1TC = make_features(int(name))[None]
        with torch.no_grad():
            encoded = recogniser.encode(features_1TC, torch.tensor([features_1TC.shape[1]]))
            sums = compute_losses(recogniser, encoded, make_label_batch([row]))
        ctc, attention = ctc + float(sums.ctc), attention + float(sums.attention)
    num_labels = sum(map(len, split.labels.values()))
    assert found.ctc == pytest.approx(ctc / num_labels, rel=1e-4)
    assert found.attention == pytest.approx(attention / (num_labels + 5), rel=1e-4)


def test_several_splits_have_error_rates_of_their_own(scripted):
    """Errors of the first two utterances: 2 and 3 of 3 words; of the others: 1 and 1 of 6."""
    split = make_split()
    named = [
        replace(utterance, split="a" if utterance.id in ("20", "21") else "b")
        for utterance in split.utterances
    ]
    found = run_validation(scripted, replace(split, utterances=named), Ranks())
    assert found.wer == {"ctc": pytest.approx(3 / 9), "attention": pytest.approx(4 / 9)}
    wers = {"a": (2 / 3, 3 / 3), "b": (1 / 6, 1 / 6)}
    assert found.wer_by_split == {
        name: {"ctc": pytest.approx(ctc), "attention": pytest.approx(attention)}
        for name, (ctc, attention) in wers.items()
    }
    assert found.scalars()["a/wer_ctc"] == pytest.approx(2 / 3)


def test_ranks_share_the_batches_and_agree(scripted, monkeypatch, tmp_path):
    """Five batches on three ranks: each is read once, and all ranks get the result of one process."""
    monkeypatch.setattr("train.judge.validate.DEV_BATCH_SECONDS", 0.1)
    alone = run_validation(scripted, make_split(), Ranks())

    def work(rank: int) -> None:
        split = make_split()
        found = run_validation(scripted, split, join(rank, 3))
        report = {"asked": split.source.asked, "found": vars(found)}  # type: ignore[attr-defined]
        (tmp_path / str(rank)).write_text(json.dumps(report))

    assert run_ranks(3, work) == [0] * 3
    reports = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert sorted(name for report in reports for name in report["asked"]) == sorted(make_split().ids)
    for report in reports:
        found = DevResult(**report["found"])
        assert found.ctc == pytest.approx(alone.ctc, rel=1e-5)
        assert found.attention == pytest.approx(alone.attention, rel=1e-5)
        same = {"ctc": alone.ctc, "attention": alone.attention, "seconds": alone.seconds}
        assert replace(found, **same) == alone
    with_source = replace(alone, source=alone).to_dict()
    assert alone.errors and not {"errors", "num_words"} & (with_source.keys() | with_source["source"].keys())

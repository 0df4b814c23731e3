"""Splits prepared for training: exactly the utterances that CTC can align are used (T4)."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train.splits import label_split
from vox.corpus import Utterance
from vox.errors import CorpusError

# As many labels as letters; "aab" has a repeat, between which CTC needs a blank: four frames.
SPELLING: Any = SimpleNamespace(encode=lambda text: [4 + ord(letter) - ord("a") for letter in text])
SOURCE: Any = None


def label(frames: dict[str, int], *, skip_bad: bool = False, spare_frames: int = 0) -> list[str]:
    """Label utterances named by their spelling, with given frames; return the names that are kept."""
    utterances = [
        Utterance(text, Path("none"), text, "", num_samples=count) for text, count in frames.items()
    ]
    settings = {"skip_bad": skip_bad, "spare_frames": spare_frames}
    return label_split("train", utterances, SOURCE, SPELLING, lambda samples: samples, **settings).ids


def test_exactly_as_many_frames_as_ctc_needs_are_enough():
    assert label({"abc": 3, "aab": 4}) == ["abc", "aab"]


def test_concatenated_utterances_need_a_frame_more():
    """Between "aab" and "bca" stands a blank, for which neither has a frame."""
    with pytest.raises(CorpusError, match="2 transcripts with more labels than"):
        label({"aab": 4, "bca": 3}, spare_frames=1)
    assert label({"aab": 5, "bca": 4}, spare_frames=1) == ["aab", "bca"]


@pytest.mark.parametrize(("text", "frames"), [("abc", 2), ("aab", 3)])
def test_one_frame_less_is_refused_by_name(text, frames, caplog):
    with pytest.raises(CorpusError, match=rf"1 transcript with more labels than.*train: {text}"):
        label({"ab": 2, text: frames})
    assert label({"ab": 2, text: frames}, skip_bad=True) == ["ab"]
    assert f"1 transcript with more labels than frames of audio: {text}" in caplog.text

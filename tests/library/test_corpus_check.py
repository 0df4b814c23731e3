"""`vox corpus check`: each finding is reported for the right utterance and for no other."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from tests.support.speech import make_speech
from vox.cli import main
from vox.corpora.check import check_split, describe, find_shared
from vox.corpora.check_page import NUM_BINS, count_bins, render_check
from vox.units import SAMPLE_RATE


def write_corpus(root: Path) -> dict[str, str]:
    """Write one good utterance and one of each kind of fault; return the kind by name."""
    good_S = 0.5 * make_speech(32_000, 0)
    recordings = {
        "good": good_S,
        "silent": np.zeros(32_000),
        "very quiet": 0.02 * make_speech(32_000, 1) * 0.3,
        "clipped": np.clip(20 * make_speech(32_000, 2), -1, 1),
        "DC offset": 0.05 + 0.5 * make_speech(32_000, 3),
        "channels cancel": np.stack([good_S[::-1], -good_S[::-1]], 1),
        "long": 0.5 * make_speech(31 * SAMPLE_RATE, 4),
        "too few words": 0.5 * make_speech(5 * SAMPLE_RATE, 5),
        "too many words": 0.5 * make_speech(16_000, 6),
        "text longer than audio": 0.5 * make_speech(6_400, 7),
    }
    texts = {"long": "go on " * 10, "too many words": "a b c d e f g h", "text longer than audio": "x" * 19}
    lines = []
    for number, (kind, samples) in enumerate(recordings.items()):
        soundfile.write(root / f"{number}.wav", samples, SAMPLE_RATE)
        row = {"audio": f"{number}.wav", "text": texts.get(kind, "go"), "id": kind.replace(" ", "-")}
        lines.append(json.dumps(row))
    lines.append(json.dumps({"audio": "lost.wav", "text": "go", "id": "cannot-be-used"}))
    (root / "s.jsonl").write_text("\n".join(lines))
    return {kind.replace(" ", "-"): kind for kind in ("cannot be used", *list(recordings)[1:])}


def test_each_fault_is_found_where_it_is_and_nowhere_else(tmp_path: Path) -> None:
    expected = write_corpus(tmp_path)
    checked = check_split(tmp_path, "s", 2)
    assert {(finding.name, finding.kind) for finding in checked.findings} == set(expected.items())
    facts = dict(describe(checked))
    assert facts["utterances"].startswith("10 (")
    assert facts["recorded as"] == "9 at 16000 Hz x 1, 1 at 16000 Hz x 2"
    assert facts["seconds"].startswith("0.40 to 31.00 ")


def test_what_is_not_spoken_may_be_silent(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(32_000), SAMPLE_RATE)
    (tmp_path / "s.jsonl").write_text(json.dumps({"audio": "a.wav", "speech": False}))
    checked = check_split(tmp_path, "s", 1)
    assert checked.findings == []
    facts = dict(describe(checked))
    assert facts["no speech"] == "1 utterance" and "words/s" not in facts
    ElementTree.fromstring(render_check([checked], []).removeprefix("<!doctype html>\n"))


def test_letters_that_fill_the_frames_exactly_are_not_too_many(tmp_path: Path) -> None:
    """6,400 samples have 19 frames: 19 letters fit if none are equal neighbours."""
    soundfile.write(tmp_path / "a.wav", 0.5 * make_speech(6_400, 0), SAMPLE_RATE)
    for text, expected in (("abcdefghij klmnopqrs", False), ("abcdefghij klmnopqrr", True)):
        (tmp_path / "s.jsonl").write_text(json.dumps({"audio": "a.wav", "text": text}))
        kinds = {finding.kind for finding in check_split(tmp_path, "s", 1).findings}
        assert ("text longer than audio" in kinds) == expected


def test_a_recording_in_two_splits_is_said(tmp_path: Path) -> None:
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", 0.5 * make_speech(48_000, number), SAMPLE_RATE)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "0.wav").read_bytes())
    part = {"audio": "copy.wav", "text": "go", "id": "part", "offset": 1.0, "duration": 1.0}
    rest = {"audio": "0.wav", "text": "go", "id": "rest", "offset": 1.5}
    begin = {"audio": "0.wav", "text": "go", "id": "begin", "duration": 0.9}
    (tmp_path / "a.jsonl").write_text(json.dumps(rest) + "\n" + json.dumps(begin))
    (tmp_path / "b.jsonl").write_text(json.dumps(part) + "\n" + json.dumps({"audio": "1.wav", "text": "go"}))
    checked = [check_split(tmp_path, split, 1) for split in "ab"]
    found = [(finding.kind, finding.name, finding.detail) for finding in find_shared(checked, 1)]
    assert found == [("in two splits", "b: part", "and a: rest")]


def test_the_command_prints_what_to_act_on_and_refuses_what_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = write_corpus(tmp_path)
    command = ["corpus", "check", "--root", str(tmp_path), "--split"]
    assert main([*command, "s", "--out", str(tmp_path / "found.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "clipped (1, 0.00 hours): clipped (" in out and "-> record with less gain" in out
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert {(row["id"], row["finding"]) for row in rows} == set(expected.items())
    soundfile.write(tmp_path / "gone.wav", np.full(8_000, np.nan), SAMPLE_RATE, subtype="FLOAT")
    (tmp_path / "bad.jsonl").write_text('{"audio": "gone.wav", "text": "go"}')
    assert main([*command, "bad"]) == 2
    assert "nothing in split bad can be used: gone (samples that are NaN" in capsys.readouterr().err
    assert main([*command, "nowhere"]) == 2


def test_the_page_shows_every_finding_and_counts_every_utterance(tmp_path: Path) -> None:
    """Well-formed, with nothing of the corpus as markup, and nothing to fetch."""
    expected = write_corpus(tmp_path)
    with (tmp_path / "s.jsonl").open("a") as file:
        row = {"audio": "lost.wav", "text": "go", "id": "<script>alert(1)</script>"}
        file.write("\n" + json.dumps(row))
    page = tmp_path / "check.html"
    assert main(["corpus", "check", "--split", "s", "--root", str(tmp_path), "--html", str(page)]) == 0
    text = page.read_text()
    tree = ElementTree.fromstring(text.removeprefix("<!doctype html>\n"))
    shown = [cell.text for cell in tree.iter("td")]
    assert {name for name in expected if name in shown} == set(expected)
    assert "<script>alert(1)</script>" in shown and "<script" not in text
    assert "http://" not in text and "https://" not in text
    for figure in tree.iter("figure"):
        counts = [int((title.text or "").rpartition(" ")[2]) for title in figure.iter("title")]
        assert sum(counts) == 10 and len(counts) == NUM_BINS


def test_bins_are_from_the_smallest_to_the_largest_value() -> None:
    assert count_bins([1.0, 1.1, 3.0, 5.0], 4) == ([2, 0, 1, 1], 1.0, 5.0)
    assert sum(count_bins([2.0, 2.0])[0]) == 2  # one value, no width

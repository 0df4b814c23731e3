"""The evaluation page, parsed as a browser would parse it."""

import base64
import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.calibration import bin_confidences, calibration_error
from evaluate.intervals import measure_intervals
from evaluate.page import render_page, split_evenly
from evaluate.results import DecoderResult, Evaluation
from vox.corpus import Utterance
from vox.decode import SearchOptions
from vox.score import score

HOSTILE = "<script>alert(1)</script> $title \"'><img onerror=alert(1)> &lt; {a>b}"
Pair = tuple[str, str]  # reference, hypothesis


class Page(HTMLParser):
    """Every element with its attributes and classes, and the texts of the utterances."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[dict[str, str]] = []  # decoders, count, words; spoken, recognised: words of either
        self.kinds: list[Counter[str]] = []  # coloured words of each of `texts`
        self.data: list[str] = []
        self._open: list[tuple[str, str]] = []  # tag and class
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an element; start a text if it begins one."""
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        class_name = attributes.get("class", "")
        if class_name == "text":
            self.texts.append({"decoders": attributes["data-decoders"]})
            self.kinds.append(Counter())
        elif tag == "span" and class_name in ("sub", "del", "ins") and self.texts:
            self.kinds[-1][class_name] += 1
        if tag not in ("meta", "input", "img", "link", "br"):
            self._open.append((tag, class_name))

    def handle_endtag(self, tag: str) -> None:
        """Close an element; elements must be closed in the reverse order of opening."""
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        """Append data to the current part of the text."""
        self.data.append(data)
        tags, classes = {tag for tag, _ in self._open}, {name for _, name in self._open}
        for part in {"count", "words"} & classes:
            self._add(part, data)
        if "words" in classes:
            for part, other in (("spoken", "ins"), ("recognised", "del")):
                if other not in tags:
                    self._add(part, data)

    def _add(self, part: str, data: str) -> None:
        self.texts[-1][part] = self.texts[-1].get(part, "") + data


def make_page(
    pairs: dict[str, list[Pair]],
    folder: Path,
    *,
    name: str = "u",
    speakers: tuple[str, ...] = ("",),
    confidences: list[float | None] | None = None,
    out_dir: Path | None = None,
) -> tuple[str, Evaluation]:
    """Render an evaluation with these texts by decoder; utterances are a second or longer."""
    references = [reference for reference, _ in next(iter(pairs.values()))]
    utterances = {
        f"{name}{number}": Utterance(
            f"{name}{number}",
            folder / f"{number}.flac",
            reference,
            speakers[number % len(speakers)],
            16_000 + number,
        )
        for number, reference in enumerate(references)
    }
    decoders = {}
    for decoder, some in pairs.items():
        hypotheses = [hypothesis for _, hypothesis in some]
        decoders[decoder] = DecoderResult(
            score(references, hypotheses), hypotheses, [None] * len(hypotheses), [], 0.5
        )
    evaluation = Evaluation(
        "test", list(utterances), references, {f"{name}x": name}, 60.0, "float32", decoders, SearchOptions()
    )
    rows: dict[str, list[dict[str, object]]] = {
        decoder: [{"errors": one.num_errors} for one in result.score.utterances]
        for decoder, result in decoders.items()
    }
    for some_rows in rows.values() if confidences else ():
        for row, confidence in zip(some_rows, confidences or [], strict=True):
            row["confidence"] = confidence
    intervals = measure_intervals(evaluation, utterances)
    html = render_page(evaluation, intervals, rows, utterances, {"path": name}, out_dir or folder)
    return html, evaluation


words = st.lists(st.sampled_from(["go", "stop", "left", "a"]), min_size=1, max_size=6).map(" ".join)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(words, words | st.just(""), words), min_size=1, max_size=4))
def test_the_alignment_shown_gives_the_counts_shown(rows: list[tuple[str, str, str]]) -> None:
    pairs = {"ctc": [(row[0], row[1]) for row in rows], "attention": [(row[0], row[2]) for row in rows]}
    html, evaluation = make_page(pairs, Path("nowhere"))
    page = Page(html)
    totals: dict[str, Counter[str]] = {name: Counter() for name in pairs}
    shown_pairs: dict[str, list[tuple[str, ...]]] = {name: [] for name in pairs}
    for text, kinds in zip(page.texts, page.kinds, strict=True):
        counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (sub|del|ins)", text["count"])}
        assert counts == {kind: kinds[kind] for kind in counts}
        assert bool(counts) == bool(kinds), "errors without counts"
        for name in text["decoders"].split():
            totals[name] += kinds
            shown = (text["spoken"], text.get("recognised", ""))
            shown_pairs[name].append(tuple(" ".join(words.split()) for words in shown))
    for name, result in evaluation.decoders.items():
        assert sorted(shown_pairs[name]) == sorted(pairs[name])
        counts = result.score
        assert totals[name] == Counter(
            {"sub": counts.substitutions, "del": counts.deletions, "ins": counts.insertions}
        )
        start = html.index(f'data-decoder="{name}"')
        kinds_shown = re.findall(r"(\d+) (?:subst|delet|insert)", html[start : html.index("CER", start)])
        assert [int(number) for number in kinds_shown] == [totals[name][k] for k in ("sub", "del", "ins")]


def test_what_a_corpus_or_a_model_says_is_never_markup(tmp_path: Path) -> None:
    # Right, inserted, deleted, substituted.
    texts = [(f"a {HOSTILE}", f"{HOSTILE} b"), ("a", f"a {HOSTILE}"), (f"a {HOSTILE}", "a")]
    pairs = {name: [*texts, ("<script>a", "<script>b")] for name in ("ctc", HOSTILE)}
    html, _ = make_page(pairs, tmp_path, name=HOSTILE, speakers=(HOSTILE, "other"))
    page = Page(html)
    tags = Counter(tag for tag, _ in page.elements)
    assert (tags["script"], tags["img"]) == (1, 0)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    shown = " ".join(page.data)
    # The checkpoint, the decoder, a speaker, the excluded one, an id: each shown as it is.
    assert shown.count(HOSTILE) >= 8
    cards = [attributes for _, attributes in page.elements if attributes.get("class") == "card"]
    assert all(f"a {HOSTILE}" in card["data-text"] for card in cards[:3])


def test_utterances_with_the_most_errors_come_first(tmp_path: Path) -> None:
    pairs = {
        "ctc": [("go", "go"), ("go left", "go"), ("go up", "go up")],
        "attention": [("go", "go"), ("go left", "stop"), ("go up", "go down")],
    }
    page = Page(make_page(pairs, tmp_path)[0])
    cards = [attributes for _, attributes in page.elements if attributes.get("class") == "card"]
    assert [(card["data-id"], card["data-errors"]) for card in cards] == [
        ("u1", "1 2"),
        ("u2", "0 1"),
        ("u0", "0 0"),
    ]
    # One alignment for decoders that agree.
    assert [text["decoders"] for text in page.texts] == [
        "ctc",
        "attention",
        "ctc",
        "attention",
        "ctc attention",
    ]
    assert "go {-left}" in cards[0]["data-text"]


def audio_sources(html: str) -> list[str]:
    """Return the sources of all recordings of a page."""
    return [attributes["src"] for tag, attributes in Page(html).elements if tag == "audio"]


def test_small_splits_bring_their_recordings_and_large_ones_link_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio_dir = tmp_path / "a corpus: #1 é"
    audio_dir.mkdir()
    for number in range(2):
        (audio_dir / f"{number}.flac").write_bytes(bytes([number]) * 5)
    pairs = {"ctc": [("go", "go")] * 3}  # the third recording is not there any more
    monkeypatch.setattr("evaluate.utterance_cards.MAX_EMBEDDED_BYTES", 10)
    *embedded, missing = audio_sources(make_page(pairs, audio_dir)[0])
    for number, source in enumerate(embedded):
        head, _, data = source.partition(",")
        assert (head, base64.b64decode(data)) == ("data:audio/flac;base64", bytes([number]) * 5)
    assert missing == "2.flac"

    monkeypatch.setattr("evaluate.utterance_cards.MAX_EMBEDDED_BYTES", 9)
    html, _ = make_page(pairs, audio_dir, out_dir=tmp_path / "out")
    for number, source in enumerate(audio_sources(html)):
        link = urlsplit(source)
        assert not (link.scheme or link.netloc or link.query or link.fragment)
        assert (tmp_path / "out" / unquote(link.path)).resolve() == audio_dir / f"{number}.flac"


def test_nothing_is_fetched(tmp_path: Path) -> None:
    html, _ = make_page({"ctc": [("go", "go")]}, tmp_path)
    for tag, attributes in Page(html).elements:
        assert tag not in ("link", "iframe", "object"), tag
        assert tag == "audio" or "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?:|url\(|@import", html)
    assert "default-src 'none'" in html


def test_speakers_are_drawn_where_there_are_several(tmp_path: Path) -> None:
    pairs = {"ctc": [("go", "go"), ("go", "up")]}
    assert "draws of 2 speakers" in make_page(pairs, tmp_path, speakers=("ann", "bob"))[0]
    for speakers in (("ann",), ("ann", "")):
        assert "draws of 2 utterances" in make_page(pairs, tmp_path, speakers=speakers)[0]
    assert "By speaker<" not in make_page(pairs, tmp_path)[0]


def test_confidence_is_shown_where_every_text_has_one(tmp_path: Path) -> None:
    pairs = {"ctc": [("go", "go"), ("go", "up")]}
    for confidences in (None, [0.9, None]):
        assert "calibration" not in make_page(pairs, tmp_path, confidences=confidences)[0]
    # Called 0.75 and right, called 0.5 and wrong: 0.25 and 0.5 off.
    assert "ctc: calibration error 0.375" in make_page(pairs, tmp_path, confidences=[0.75, 0.5])[0]


def test_calibration_of_a_hand_counted_set() -> None:
    bins = bin_confidences([0.92, 0.98, 1.0, 0.0, 0.31], [True, False, True, False, True])
    assert [(one.count, round(one.confidence, 4), round(one.share_right, 4)) for one in bins] == [
        (1, 0.0, 0.0),
        (1, 0.31, 1.0),
        (3, 0.9667, 0.6667),
    ]
    assert calibration_error(bins) == pytest.approx((0 + 0.69 + 3 * 0.3) / 5)


def test_groups_that_look_alike_are_one_and_lose_nobody() -> None:
    groups = split_evenly([1 + k / 1_000 for k in range(50)], "{:.1f} to {:.1f} s")
    assert {label: len(group) for label, group in groups.items()} == {"1.0 to 1.0 s": 50}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=80))
def test_groups_are_even_and_keep_equal_values_together(values: list[int]) -> None:
    groups = split_evenly(values, "{} to {}")
    assert sorted(index for group in groups.values() for index in group) == list(range(len(values)))
    spans = [(min(values[i] for i in group), max(values[i] for i in group)) for group in groups.values()]
    assert all(high < low for (_, high), (low, _) in pairwise(spans))
    if len(set(values)) == len(values):
        sizes = [len(group) for group in groups.values()]
        assert max(sizes) - min(sizes) < len(values) / len(groups)
    assert json.dumps(list(groups)) == json.dumps([f"{low} to {high}" for low, high in spans])

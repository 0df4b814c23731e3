"""ARPA files and their automaton: agreement with a slow reading of the same file, and bad files."""

import gzip
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.support.untrained import make_tokenizer
from vox.errors import LanguageModelError
from vox.lm.arpa import read_arpa, write_arpa
from vox.lm.ngram import Ngram, WordNgram, load_ngram

CPU = torch.device("cpu")
Ngrams = dict[tuple[str, ...], tuple[float, float]]

TOY = """\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-0.5\t</s>
-0.4\ta\t-0.2
-0.8\tb\t-0.1

\\2-grams:
-0.3\t<s> a\t-0.05
-0.6\ta b\t-0.7
-0.2\tb </s>

\\3-grams:
-0.1\t<s> a b

\\end\\
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "model.arpa"
    path.write_text(text, encoding="utf-8")
    return path


def read_slowly(path: Path) -> Ngrams:
    """Read an ARPA file line by line into a dictionary: words to log10 of probability and back-off weight."""
    ngrams = {}
    order = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\\(\d)-grams:", line):
            order = int(match[1])
        elif order and line and not line.startswith("\\"):
            prob, words, *backoff = line.split("\t")
            ngrams[tuple(words.split(" "))] = (float(prob), float(backoff[0]) if backoff else 0.0)
    return ngrams


def score_slowly(ngrams: Ngrams, context: tuple[str, ...], word: str) -> float:
    """Return the natural log-probability of a word given all words before it."""
    word = word if (word,) in ngrams else "<unk>"
    context = tuple(w if (w,) in ngrams else "<unk>" for w in context)
    longest = max(map(len, ngrams))
    paid = 0.0
    for first in range(max(0, len(context) + 1 - longest), len(context) + 1):
        if (*context[first:], word) in ngrams:
            return (paid + ngrams[(*context[first:], word)][0]) * math.log(10)
        paid += ngrams.get(context[first:], (0.0, 0.0))[1]
    raise AssertionError("not even a unigram")


def make_model(path: Path, seed: int, order: int) -> Sequence[str]:
    """Write a random model whose longer n-grams have their contexts but not always their suffixes."""
    draw = random.Random(seed)
    words = ["<unk>", "<s>", "</s>", *"abcdef"]
    levels = [[(word,) for word in words]]
    for _ in range(order - 1):
        contexts = [ngram for ngram in levels[-1] if ngram[-1] != "</s>"]
        chosen = {(*draw.choice(contexts), draw.choice(words[2:])) for _ in range(25)}
        levels.append(draw.sample(sorted(chosen), len(chosen)))
    lines = ["\\data\\", *(f"ngram {k}={len(level)}" for k, level in enumerate(levels, start=1))]
    for k, level in enumerate(levels, start=1):
        lines += ["", f"\\{k}-grams:"]
        for ngram in level:
            backoff = f"\t{draw.uniform(-1, 0.3):.4f}" if k < order and draw.random() < 0.7 else ""
            lines.append(f"{draw.uniform(-3, 0):.4f}\t{' '.join(ngram)}{backoff}")
    path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")
    return words


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_row_is_the_slow_back_off(tmp_path: Path, order: int) -> None:
    path = tmp_path / "model.arpa"
    words = [*make_model(path, order, order), "unheard"]  # a label that the model does not know
    slow = read_slowly(path)
    model = Ngram.build(read_arpa(path), {word: label for label, word in enumerate(words)})
    draw = random.Random(0)
    histories = [["<s>"] for _ in range(20)]
    states_N = model.start(len(histories), CPU)
    for _ in range(12):
        rows_NV = model.scores(states_N)
        expected_NV = [[score_slowly(slow, tuple(h), word) for word in words] for h in histories]
        torch.testing.assert_close(rows_NV, torch.tensor(expected_NV), rtol=0, atol=1e-5)
        labels_N = torch.tensor([draw.choice([0, *range(3, len(words))]) for _ in histories])
        logps_N, next_N = model.step(states_N, labels_N)
        torch.testing.assert_close(logps_N, rows_NV.gather(1, labels_N[:, None])[:, 0])
        states_N = model.advance(states_N, labels_N)
        assert torch.equal(states_N, next_N)
        for history, label in zip(histories, labels_N.tolist(), strict=True):
            history.append(words[label])


def test_a_sentence_counted_by_hand(tmp_path: Path) -> None:
    """P(a|<s>) P(b|<s> a) P(</s>|a b): the last backs off once. An unknown word backs off twice."""
    model = WordNgram.load(write(tmp_path, TOY))
    known, unknown, empty = model.score_texts(["a b", "a q", ""])
    assert known == pytest.approx((-0.3 - 0.1 + (-0.7 - 0.2)) * math.log(10))
    assert unknown == pytest.approx((-0.3 + (-0.05 - 0.2 - 1.0) - 0.5) * math.log(10))
    assert empty == pytest.approx((-0.3 - 0.5) * math.log(10))


def test_equal_contexts_are_equal_states(tmp_path: Path) -> None:
    label_of = {word: label for label, word in enumerate(["<s>", "</s>", "<unk>", "a", "b"])}
    model = Ngram.build(read_arpa(write(tmp_path, TOY)), label_of)

    def state_after(text: str) -> int:
        states_N = model.start(1, CPU)
        for word in text.split():
            states_N = model.advance(states_N, torch.tensor([label_of[word]]))
        return int(states_N)

    assert state_after("b") == state_after("a b b") == state_after("<unk> b")
    assert state_after("<unk>") == state_after("a <unk>") == 0
    assert len({state_after(text) for text in ("", "a", "b a", "b", "<unk>", "b a b")}) == 6


def test_a_model_without_unk_gives_a_finite_score(tmp_path: Path) -> None:
    text = TOY.replace("ngram 1=5", "ngram 1=4").replace("-1.0\t<unk>\n", "")
    (total,) = WordNgram.load(write(tmp_path, text)).score_texts(["q"])
    assert total == pytest.approx((-0.3 - 100 - 0.5) * math.log(10))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    first = read_arpa(write(tmp_path, TOY))
    for name in ("again.arpa", "again.arpa.gz"):
        write_arpa(tmp_path / "models" / "new" / name, first.vocabulary, first.tables)
        again = read_arpa(tmp_path / "models" / "new" / name)
        assert again.vocabulary == first.vocabulary
        for one, other in zip(first.tables, again.tables, strict=True):
            assert one.words_Mk.tolist() == other.words_Mk.tolist()
            assert one.log10_probs_M.tolist() == other.log10_probs_M.tolist()
            assert one.log10_backoffs_M.tolist() == other.log10_backoffs_M.tolist()
    names = sorted(path.name for path in (tmp_path / "models" / "new").iterdir())
    assert names == ["again.arpa", "again.arpa.gz"]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "\\end\\\n",
            "",
            r"a truncated ARPA file \(it ends at line 20\): .*model.arpa; make or copy it again",
        ),
        (TOY, "", r"not an ARPA file, or a truncated one \(it ends at line 0\): .*"),
        (
            TOY[TOY.index("\\1-grams:") :],
            "",
            r"not an ARPA file, or a truncated one \(it ends at line 5\): .*",
        ),
        (TOY[TOY.index("b </s>") :], "", r"not one of the 3 2-grams that the header announces: .*:16; .*"),
        (TOY[TOY.index("-0.2\tb") :], "", r"a truncated ARPA file \(it ends at line 15\): .*"),
        ("-0.8\tb", "0.8\tb", r"the positive log-probability 0.8: .*:11; make the model again"),
        ("-0.8\tb", "nan\tb", r"nan is not a finite number: .*:11; .*"),
        ("-0.8\tb", "x\tb", r"'x' is not a number: .*:11; .*"),
        ("-0.7\n", "-inf\n", r"-inf is not a finite number: .*:15; .*"),
        ("ngram 2=3", "ngram 2=4", r"not one of the 4 2-grams that the header announces: .*:17; .*"),
        ("ngram 2=3", "ngram 2=2", r"more than the 2 2-grams that the header announces: '-0.2.*: .*:16; .*"),
        ("ngram 2=3", "ngram 3=3", r"the count of order 3 where order 2 belongs: .*:3; .*"),
        ("ngram 3=1\n", "", r"'\\\\\\\\3-grams:' where .*|no \\end\\ after the last n-gram: .*:17; .*"),
        ("a b\t", "a c\t", r"the word 'c' is not among the unigrams: .*:15; .*"),
        ("-0.8\tb", "-0.8\ta", r"the unigram 'a' occurs twice: .*:11; .*"),
        ("a b\t", "a b c\t", r"not one of the 3 2-grams that the header announces: .*:15; .*"),
        ("<s> a b\n", "a a b\n", r"an n-gram whose context is not listed: .*:19; .*"),
        ("b </s>\n", "a b\n", r"an n-gram that occurs twice: .*:16; .*"),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in TOY
    with pytest.raises(LanguageModelError) as caught:
        WordNgram.load(write(tmp_path, TOY.replace(old, new)))
    assert re.fullmatch(line, str(caught.value)), caught.value


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.arpa.gz"
    path.write_bytes(gzip.compress(TOY.encode())[:60])
    with pytest.raises(LanguageModelError, match="a damaged gzip file"):
        read_arpa(path)
    path = tmp_path / "model.arpa"
    path.write_bytes(b"\\data\\\n\xff\xfe")
    with pytest.raises(LanguageModelError, match="not a text in UTF-8"):
        read_arpa(path)
    with pytest.raises(LanguageModelError, match="no such language model"):
        read_arpa(tmp_path / "nothing.arpa")


def test_a_model_over_words_is_refused_under_a_search_over_pieces(tmp_path: Path) -> None:
    with pytest.raises(LanguageModelError, match=r"another vocabulary \('below' is not one .*:11; .*vox lm"):
        load_ngram(write(tmp_path, TOY.replace("b", "below")), make_tokenizer(), CPU)

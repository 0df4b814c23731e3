"""Normalisation and the tokenizer: known answers, round trips, suitable vocabulary sizes."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.power import watch_renames
from vox.errors import TextError
from vox.text import (
    BOS_ID,
    EOS_ID,
    MAX_QUOTATIONS,
    PAD_ID,
    UNK_ID,
    Tokenizer,
    choose_vocab_size,
    fit_vocab_size,
    get_tokenizer,
    normalise_text,
    tokenizer_path,
    train_tokenizer,
)

TEXTS = ["go left", "stop the run", "don't open the left door", "jump and run", "close the door now"]

words = st.text("abcdefghijklmnopqrstuvwxyz'", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MISTER QUILTER IS THE APOSTLE", "mister quilter is the apostle"),
        ("Don\u2019t \u2018stop\u2019 \u2014 it`s O\u00b4Brien!", "don't stop it's o'brien"),
        ("\u2018I\u2019m not a serpent!\u2019", "i'm not a serpent"),
        ("\u2018Not all of it is here", "not all of it is here"),
        ("he said 'go home' and 'stay'", "he said go home and stay"),
        ("'go to the dogs' house', he said", "go to the dogs' house he said"),
        ("'tis th' dogs' and \u2018em rock 'n' roll goin'", "'tis th' dogs' and 'em rock 'n' roll goin'"),
        ("'e took the dogs' bone", "'e took the dogs' bone"),
        ("  twenty-one,two\tthree\u00a0four\n", "twenty one two three four"),
        ("Caf\u00e9 na\u00efve \u00dcber \u0130stanbul \u0141\u00f3d\u017a", "cafe naive uber istanbul lodz"),
        ("Stra\u00dfe \u00c6sop \ufb01ne \uff21\uff22", "strasse aesop fine ab"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("''quoted'' ' alone", "quoted alone"),
        ("'tis the boys'", "'tis the boys'"),
        ("... \u2014 ?!", ""),
        ("", ""),
    ],
)
def test_normalise_text_known_answers(text: str, expected: str) -> None:
    assert normalise_text(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("route 66 and 7", r"\(6 7\); write numbers as words$"),
        ("fifty % off & more", r"\(% &\); spell them out as words"),
        ("a \u20ac b", r"\(\u20ac\); spell them out"),
        ("привет", r"letters a to z"),
        ("bell \x07", r"U\+0007"),
        ("the cat [Noise] sat", r"in brackets \(\[Noise\]\)"),
        ("(laughs) well <unk>", r"\(\(laughs\)\)"),
        ("*sighs* well", r"\(\*sighs\*\)"),
    ],
)
def test_characters_outside_the_alphabet_are_named(text: str, message: str) -> None:
    with pytest.raises(TextError, match=message):
        normalise_text(text)


def test_many_quotation_marks_take_no_time() -> None:
    """Deep nesting took cubic time: minutes for a line of 800 words."""
    text = " ".join(["'bcc"] * 1_500 + ["db'"] * 1_500)
    assert normalise_text(text).count("'") == 2 * (1_500 - MAX_QUOTATIONS)


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(max_size=30), st.text("ab' \u2018\u2019.\u00e9E", max_size=30)))
def test_normalised_text_is_in_the_alphabet_and_stays_as_it_is(text: str) -> None:
    try:
        normalised = normalise_text(text)
    except TextError:
        return
    assert normalised == "" or re.fullmatch(r"[a-z']+( [a-z']+)*", normalised)
    assert normalise_text(normalised) == normalised


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    alphabet = " ".join("abcdefghijklmnopqrstuvwxyz'")
    return train_tokenizer([*TEXTS, alphabet], 50)


@settings(deadline=None, max_examples=100)
@given(st.lists(words, max_size=8).map(" ".join))
def test_encoding_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(UNK_ID < i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([BOS_ID, *ids, EOS_ID, PAD_ID, UNK_ID]) == text


def test_a_frequent_word_is_one_piece(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("the")) == 1
    assert len(tokenizer.encode("zzz")) >= 3


def test_training_is_deterministic_in_bytes_and_across_processes() -> None:
    program = f"from vox.text import train_tokenizer; print(train_tokenizer({TEXTS!r}, 40).model_bytes.hex())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert bytes.fromhex(done.stdout.strip()) == train_tokenizer(TEXTS, 40).model_bytes
    assert done.stderr == ""  # SentencePiece is silent


def test_a_vocabulary_is_chosen_by_the_different_words() -> None:
    digits = ["zero one two three four", "five six seven eight nine"] * 100
    assert choose_vocab_size(digits) == 4 + 28 + 10  # specials, letters and word mark, the least merges
    many = [f"{a}{b}{c}" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefghij"]
    assert choose_vocab_size(many) == 4 + 28 + 640 // 32
    with pytest.raises(TextError, match="no text"):
        choose_vocab_size(["", ""])


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(words, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=6))
@example(["aaa aaa aaa ba", "a aaa"])  # how many merges there are depends on how often each word comes
def test_a_chosen_vocabulary_can_always_be_trained(texts: list[str]) -> None:
    size = fit_vocab_size(texts, choose_vocab_size(texts))
    assert train_tokenizer(texts, size).vocab_size == size


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(words, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=6))
def test_vocabularies_named_in_errors_are_the_true_limits(texts: list[str]) -> None:
    with pytest.raises(TextError, match="too large") as too_large:
        train_tokenizer(texts, 5000)
    with pytest.raises(TextError, match="too small") as too_small:
        train_tokenizer(texts, 4)
    (largest,) = re.findall(r"fits is (\d+)", str(too_large.value))
    (smallest,) = re.findall(r"fits is (\d+)", str(too_small.value))
    assert train_tokenizer(texts, int(largest)).vocab_size == int(largest)
    characters_only = train_tokenizer(texts, int(smallest))  # no room for a single merge
    for text in texts:
        assert len(characters_only.encode(text)) == len(text.replace(" ", "")) + len(text.split())
    for outside in (int(largest) + 1, int(smallest) - 1):
        with pytest.raises(TextError, match="this corpus"):
            train_tokenizer(texts, outside)


def test_a_very_long_transcript_is_not_left_out() -> None:
    long = "quiz " * 1200  # SentencePiece drops more than 4,192 bytes in silence
    assert UNK_ID not in train_tokenizer(["a b", long.strip()], 12).encode("quiz")


def test_training_without_text_is_an_error() -> None:
    with pytest.raises(TextError, match="no text"):
        train_tokenizer(["", ""], 90)


def test_saved_and_pickled_tokenizers_are_the_same(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "folder" / "t.model"
    renames = watch_renames(monkeypatch)
    tokenizer.save(path)
    assert [rename.not_on_disk for rename in renames] == [[]]
    assert [p.name for p in path.parent.iterdir()] == ["t.model"]
    for copy in (Tokenizer.load(path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.model_bytes == tokenizer.model_bytes
        assert copy.encode("open the door") == tokenizer.encode("open the door")


def test_get_tokenizer_trains_once_and_says_which(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    made = get_tokenizer(tmp_path, "train-x", TEXTS, 40)
    path = tmp_path / "tokenizers" / "train-x-bpe40.model"
    assert tokenizer_path(tmp_path, "train-x", 40) == path
    changed_at = path.stat().st_mtime_ns
    assert get_tokenizer(tmp_path, "train-x", TEXTS[::-1], 40).model_bytes == made.model_bytes
    assert path.stat().st_mtime_ns == changed_at
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "made a tokenizer of 40 pieces from 5 transcripts",
        "tokenizer of 40 pieces",
    ]


def test_a_stored_tokenizer_that_cannot_be_right_is_refused(tmp_path: Path) -> None:
    get_tokenizer(tmp_path, "train-x", TEXTS, 28)
    path = tokenizer_path(tmp_path, "train-x", 28)
    with pytest.raises(TextError, match=r"other transcripts \(it lacks i q z\).*bpe28.model; delete it"):
        get_tokenizer(tmp_path, "train-x", [*TEXTS, "quiz"], 28)
    whole = path.read_bytes()
    train_tokenizer(TEXTS, 29).save(path)
    with pytest.raises(TextError, match=r"29 pieces where 28 belong.*delete it"):
        get_tokenizer(tmp_path, "train-x", TEXTS, 28)
    for damaged in (b"", b"junk", whole[:200]):
        path.write_bytes(damaged)
        with pytest.raises(TextError, match=r"tokenizer.*bpe28.model; delete it"):
            get_tokenizer(tmp_path, "train-x", TEXTS, 28)


def test_words_that_the_texts_do_not_have_can_be_spelled() -> None:
    """Adaptation keeps the tokenizer: one of ten digits must be able to write any name."""
    tokenizer = train_tokenizer(["zero one two three four", "five six seven eight nine"] * 20, 42)
    assert tokenizer.decode(tokenizer.encode("alexa's jacqueline kemp")) == "alexa's jacqueline kemp"
    assert all(not piece.endswith(tuple("abcdjklmpqy'")) for piece in tokenizer.pieces if len(piece) > 1)


def test_a_missing_tokenizer_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"no such tokenizer.*t\.model"):
        Tokenizer.load(tmp_path / "t.model")

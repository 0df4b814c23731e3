"""Alphabets other than English: known answers, tables of a user's own, numbers, texts without words."""

import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vox.config import TextConfig, dump_config, load_config, load_saved_config
from vox.errors import ConfigError, TextError
from vox.score import score
from vox.text import (
    ENGLISH,
    Normaliser,
    Tokenizer,
    choose_vocab_size,
    fit_vocab_size,
    load_normaliser,
    tokenizer_path,
    train_tokenizer,
)
from vox.transcript import Transcript, Word, to_srt

LETTERS = Normaliser(TextConfig(alphabet="letters"), has_set=True)
CHARACTERS = Normaliser(TextConfig(alphabet="characters"), has_set=True)
CHINESE = ["我爱北京", "北京爱我你"]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("tr", "IĞDIR, İstanbul'da: ISPARTA", "ığdır istanbul'da ısparta"),
        ("az-Latn", "I\u0307ZMI\u0307R QIZ", "izmir qız"),
        (None, "IŞIK \u0130zmir", "işik izmir"),  # no dot is left over the i
        ("lt", "\u00ccS \u012e i\u0307\u0300s lįstaS", "ìs į ìs lįstas"),
        ("de", "Straße GROẞ „Hallo“, sagte ‚er‘ - ja!", "straße groß hallo sagte er ja"),
        ("el", "ΟΔΟΣ οδοσ, ΣΑΣ. Σ' ΑΓΑΠΩ", "οδος οδος σας σ' αγαπω"),
        ("ko", unicodedata.normalize("NFD", "한국어, 말"), "한국어 말"),
        ("ar", "السَّلَامُ عَلَيْكُم، كـــتاب؟", "السَّلَامُ عَلَيْكُم كتاب"),
        ("hi", "हिन्दी में क्या है? क्\u200dष।", "हिन्दी में क्या है क्\u200dष"),
        ("fa", "می\u200cخواهم\u200c ", "می\u200cخواهم"),
        ("ru", "Ёлка «и» под\u2019езд\u00ad", "ёлка и под'езд"),
        ("uz", "o\u2018zbek \u2018salom\u2019", "o'zbek salom"),
        (
            "fr",
            "L\u2019homme\u00a0: \u201cc\u2019est\u201d l'\u00c9t\u00e9 na\u00efve",
            "l'homme c'est l'été naïve",
        ),
        ("it", "un po' di 'sto vino", "un po' di 'sto vino"),
        ("it", "dice 'vieni qui' 'dai'", "dice vieni qui dai"),
        ("ca", "col\u00b7legi fi\u00b7 ara", "col·legi fi ara"),
        ("en", "\uff21\uff22\uff23 \ufb01ne", "abc fine"),
        (None, "... \u2014 ?!", ""),
    ],
)
def test_letters_known_answers(language: str | None, text: str, expected: str) -> None:
    assert Normaliser(TextConfig(alphabet="letters", language=language))(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Haus 5", r"\(5\); write numbers as words, or --set text.language=CODE --set text.numbers=spell"),
        ("cup \u00bd", r"write numbers as words$"),
        ("5 \u20ac", r"\(5 \u20ac\)"),
        ("a \u20ac b & c", r"\(& \u20ac\); spell them out"),
        ("\u3010\u7b11\u3011\u306f\u3044", r"in brackets"),
        ("\uff08\u7b11\uff09", r"in brackets"),
        ("bell \x07", r"U\+0007"),
    ],
)
def test_what_letters_refuse_is_named(text: str, message: str) -> None:
    for normaliser in (LETTERS, CHARACTERS):
        with pytest.raises(TextError, match=message):
            normaliser(text)


@pytest.mark.parametrize("text", ["привет", "route 66"])
def test_a_setting_is_advised_where_the_command_has_settings(text: str) -> None:
    with pytest.raises(TextError, match=r"--set text\.\w+=\w+"):
        load_normaliser(None, [])(text)
    with pytest.raises(TextError, match=r"; write (it in the letters a to z|numbers as words)$"):
        ENGLISH(text)


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(st.text(max_size=20), st.text("aIİiσςΣ' ‘’.\u0307\u0301ßé·l\u200dक्ष", max_size=20)),
    st.sampled_from([None, "tr", "lt"]),
)
@example("i\u0307\u0307", None)
@example("\u2018'a'", None)
def test_letters_are_lower_case_and_stay_as_they_are(text: str, language: str | None) -> None:
    normaliser = Normaliser(TextConfig(alphabet="letters", language=language))
    try:
        normalised = normaliser(text)
    except TextError:
        return
    assert unicodedata.is_normalized("NFC", normalised)
    assert normalised == " ".join(normalised.split())
    assert normaliser(normalised) == normalised


def test_characters_have_no_spaces() -> None:
    assert CHARACTERS("我 爱，北京。 ｶﾞｽ") == "我爱北京ガス"
    assert CHARACTERS("二〇〇八年") == "二〇〇八年"
    assert CHARACTERS("ผู้ใหญ่ ดื่มน้ำ") == "ผู้ใหญ่ดื่มน้ำ"


def test_a_character_is_a_token_and_no_word_begins() -> None:
    size = choose_vocab_size(CHINESE, CHARACTERS)
    assert size == 4 + 5 == fit_vocab_size(CHINESE, size, CHARACTERS)
    tokenizer = train_tokenizer(CHINESE, size, CHARACTERS)
    assert sorted(tokenizer.pieces[4:]) == sorted("我爱北京你")
    assert not tokenizer.has_words and not Tokenizer(tokenizer.model_bytes).has_words
    ids = tokenizer.encode("我爱北京")
    assert len(ids) == 4 and tokenizer.decode(ids) == "我爱北京"
    assert tokenizer.group_words(ids) == [[0], [1], [2], [3]]
    for outside in (8, 10):
        with pytest.raises(TextError, match=r"5 characters of this corpus.*\b9\b"):
            train_tokenizer(CHINESE, outside, CHARACTERS)


def test_errors_are_counted_in_characters_where_there_are_no_words() -> None:
    found = score(["我爱北京", "你"], ["我北京", "你你"], by_character=True)
    assert (found.substitutions, found.deletions, found.insertions) == (0, 1, 1)
    assert found.num_words == 5 and found.wer == found.cer == 2 / 5 and found.rate == "CER"
    assert score(["我爱北京", "你"], ["我北京", "你你"]).wer == 1


def test_captions_of_a_script_without_words_have_no_spaces() -> None:
    words = tuple(Word(c, k / 10, (k + 1) / 10, 0.9) for k, c in enumerate("我爱"))
    assert "\n我爱\n" in to_srt(Transcript("a", 1.0, "ctc", "我爱", words, 0.9, ()))
    words = tuple(Word(c, k / 10, (k + 1) / 10, 0.9) for k, c in enumerate(("go", "left")))
    assert "\ngo left\n" in to_srt(Transcript("a", 1.0, "ctc", "go left", words, 0.9, ()))


def test_a_tokenizer_of_letters_spells_its_corpus_and_has_a_name_of_its_own(tmp_path: Path) -> None:
    texts = [LETTERS(text) for text in ("Straße über Köln", "größer, schöner", "हिन्दी में क्या है")]
    size = fit_vocab_size(texts, choose_vocab_size(texts, LETTERS), LETTERS)
    tokenizer = train_tokenizer(texts, size, LETTERS)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    paths = [tokenizer_path(tmp_path, "s", 50, each) for each in (ENGLISH, LETTERS, CHARACTERS)]
    folders = [str(path.parent.relative_to(tmp_path)) for path in paths]
    assert folders == ["tokenizers", "tokenizers/letters", "tokenizers/characters"]


TABLE = """# Hausa, roughly
abcdefghijklmnorstuwyzɓɗƙƴ - '
q -> k
qu -> kw
U+20A6 -> U+0020naira
x ->
"""


def write_table(folder: Path, text: str = TABLE) -> Path:
    path = folder / "hausa.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    config = load_config(None, [f"text.alphabet={path}"])
    normaliser = Normaliser(config.text, has_set=True)
    assert normaliser("Ƙasa QUIZ-q xa ‘ɗan’ 'yanci, ₦.") == "ƙasa kwiz-k a ɗan 'yanci naira"
    with pytest.raises(TextError, match=r"\(p v\); add them to your table, or a line"):
        normaliser("pv")
    tokenizer = train_tokenizer(["ƙasa"], 4 + 28 + 1, normaliser)  # can spell what the texts do not have
    assert tokenizer.decode(tokenizer.encode("ɗan-'yanci")) == "ɗan-'yanci"

    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(config), encoding="utf-8")
    path.unlink()  # the checkpoint has the table
    assert Normaliser(load_saved_config(saved).text).letters == normaliser.letters
    assert normaliser.name.startswith("table-")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("abC", "allows C"),
        ("abc\nÄ -> a", "replaces Ä"),
        ("abc\nq -> k", r"does not allow \(k\)"),
        ("abc\n -> a", "replaces nothing"),
        ("abc\nx -> a\nx -> b", "what another line does"),
        ("# nothing", "without letters"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(TextError, match=message):
        Normaliser(load_config(None, [f"text.alphabet={write_table(tmp_path, table)}"]).text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["text.alphabet=german"], r"text.*german: take english, letters, characters, or the file"),
        (["text.language=de"], "set text.alphabet=letters"),
        (["text.alphabet=letters", "text.numbers=spell"], "set text.language"),
        (["text.alphabet=letters", "text.language=x y"], "text.language"),
        (["text.table=[a]"], "text.table"),
    ],
)
def test_settings_that_contradict_each_other(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


def test_yaml_reads_norwegian_as_false_and_vox_does_not() -> None:
    assert load_config(None, ["text.alphabet=letters", "text.language=no"]).text.language == "no"


def test_a_config_of_before_there_was_a_choice_is_english(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {vocab_size: 50}\n")
    assert Normaliser(load_saved_config(path).text)("Café") == "cafe"


def test_spelling_numbers_needs_num2words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(TextError, match="pip install num2words"):
        Normaliser(TextConfig(numbers="spell"))


@pytest.mark.parametrize(
    ("language", "remedy"),
    [("de", "write numbers as words, or --set text.numbers=spell"), ("hi", "write numbers as words")],
)
def test_spelling_is_advised_where_num2words_has_the_language(language: str, remedy: str) -> None:
    pytest.importorskip("num2words")
    with pytest.raises(TextError, match=rf"; {remedy}$"):
        Normaliser(TextConfig(alphabet="letters", language=language), has_set=True)("5 \u0968")


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "He is 42, she 7!", "he is forty two she seven"),
        ("de", "Kapitel 21.", "kapitel einundzwanzig"),
        ("tr", "٣ elma", "üç elma"),
        ("en", "3.5 miles", r"several ways \(3.5\)"),
        ("en", "the 1st", r"\(1st\)"),
        ("en", "1,000 and", r"\(1,000\)"),
        ("en", "-5 or 007", r"\(-5\)"),
        ("en", "agent 007", r"\(007\)"),
        ("de", "1'234 Franken", r"\(1'234\)"),
        ("en", "10:30", r"\(10:30\)"),
        ("de", "am 3. Mai", r"\(3\.\)"),
        ("xx", "1", "num2words cannot spell the numbers of xx"),
    ],
)
def test_numbers_as_words(language: str, text: str, expected: str) -> None:
    pytest.importorskip("num2words")
    config = TextConfig(alphabet="letters", language=language, numbers="spell")
    if "\\" in expected or language == "xx":
        with pytest.raises(TextError, match=expected):
            Normaliser(config)(text)
    else:
        assert Normaliser(config)(text) == expected
        assert Normaliser(config).count_spelled(text) == sum(
            word.strip("(),.!").isdigit() for word in text.split()
        )

"""Transcripts: one alphabet (a-z, apostrophe, space), and its byte-pair-encoding tokenizer."""

import errno
import io
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from vox.disk import write_whole
from vox.errors import TextError

log = logging.getLogger(__name__)

# Ids of the special tokens in every tokenizer. CTC's blank and the padding of labels share one.
PAD_ID = BLANK_ID = 0
BOS_ID = 1
EOS_ID = 2
UNK_ID = 3
NUM_SPECIAL_IDS = 4

WORD_MARK = "\u2581"  # what SentencePiece writes for the space before a word

ALPHABET = "abcdefghijklmnopqrstuvwxyz'"
# The smallest vocabulary with all letters: the special tokens, these, and the mark of a word's beginning.
ALPHABET_VOCAB_SIZE = NUM_SPECIAL_IDS + len(ALPHABET) + 1

# How `choose_vocab_size` counts merges.
WORDS_PER_MERGE = 32
MIN_MERGES = 10

_NORMALISED = re.compile(r"[a-z']+(?: [a-z']+)*")

# Each is written for an apostrophe in practice: typographic, modifier letter, prime, grave, acute.
_APOSTROPHES = dict.fromkeys(map(ord, "\u2019\u02bb\u02bc\u2032\uff07\u0060\u00b4"), "'")

# Opening quotation marks: an apostrophe only where a word in front of which letters are left out begins.
_OPENING_QUOTES = dict.fromkeys(map(ord, "\u2018\u201b"), " \u2018")
_ELISIONS = frozenset(
    """
    ad appy as ave bout cause cept e em er ere fore fraid gainst im is less mid mongst neath n nother nough
    nuff ome ouse ow pon round scuse spose stead til till tis tisn't twas twasn't tween twere twill twixt
    twould un way
    """.split()  # noqa: SIM905 - easier to read
)
# A word whose last letters are left out, or a plural's genitive: its apostrophe is no closing quotation mark.
_ENDS_WITH_APOSTROPHE = re.compile(r".*(?:s|x|z|in)'|(?:an|o|ol|th|wi|t|i|a|d|mo|po|fo|ha|gi|fu)'")

MAX_QUOTATIONS = 8  # one inside another; what is deeper keeps its marks
# Not spoken, and not distinguishable from what is: noises, speakers, editor's remarks.
_TAG = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>|\{[^}]*\}|\*\w[^*]*\*")

# Latin letters that Unicode does not decompose into a letter and a mark.
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "\u0131": "i"}
)

# Punctuation to Unicode, words to a speaker: removing them would make the transcript wrong.
_SPOKEN_SYMBOLS = frozenset("%&@#")


class _Reduction(dict[int, str]):
    """A table for str.translate that works out each character when it first meets it."""

    def __missing__(self, code: int) -> str:
        self[code] = _reduce_character(chr(code))
        return self[code]


def _reduce_character(character: str) -> str:
    category = unicodedata.category(character)
    if character in "'\u2018" or character in _SPOKEN_SYMBOLS:
        return character
    if category in ("Mn", "Cf"):  # marks left by decomposition; soft hyphens and zero-width characters
        return ""
    return " " if character.isspace() or category[0] == "P" else character


_REDUCTION = _Reduction()


def normalise_text(text: str) -> str:
    """Reduce a transcript to lower-case a-z, apostrophes and single spaces.

    Accents are stripped, typographic apostrophes mapped, quotation marks removed, other punctuation replaced
    by a space. Returns "" if nothing is left. Raises TextError naming what is in brackets (a noise, a remark,
    or words that are spoken: only a person can tell), and the characters that remain (digits, symbols that
    are spoken, other alphabets).
    """
    lowered = text.lower()
    if _NORMALISED.fullmatch(lowered) and "'" not in lowered:
        return lowered  # nearly every line of a large corpus
    if tag := _TAG.search(text):
        raise TextError(
            f"words in brackets ({tag[0]})", remedy="remove them, or the brackets if the words are spoken"
        )
    lowered = lowered.translate(_OPENING_QUOTES).translate(_APOSTROPHES)
    decomposed = unicodedata.normalize("NFKD", lowered).lower().translate(_LETTERS)
    spelled = decomposed.translate(_REDUCTION)
    bad = sorted(set(spelled) - set(ALPHABET + "\u2018 "))
    if bad:
        raise TextError(f"characters outside the alphabet ({_describe(bad)})", remedy=_remedy(bad))
    words: list[str] = []
    for _ in range(MAX_QUOTATIONS):  # one inside another, until nothing changes
        before, words = words, _remove_quotes(re.sub("''+", " ", spelled).split())
        spelled = " ".join(words)
        if words == before:
            break
    return spelled


def _remove_quotes(words: list[str]) -> list[str]:
    """Remove the apostrophes that are quotation marks: those of a pair, and typographic opening ones.

    An opening mark stands before a word, and its closing mark after the same word or a later one; a word that
    ends with an apostrophe anyway (dogs', goin') closes only where no other does, at the text's end.
    """
    words = list(words)
    opening = closing = None
    for position, word in enumerate(words):
        is_quote = word.startswith("\u2018")
        word = words[position] = word.replace("\u2018", "'")
        if word.startswith("'") and word != "'" and opening is None:
            rest = word[1:].rstrip("'")
            closing = None if rest in _ELISIONS else _find_closing(words, position)
            if rest not in _ELISIONS and (is_quote or closing is not None):
                words[position] = word = word[1:]
                opening = position
        if opening is not None and position == closing:
            words[position] = word.removesuffix("'")
            opening = None
    return [word for word in words if word not in ("", "'")]


def _find_closing(words: Sequence[str], opening: int) -> int | None:
    """Return where the quotation that begins at a word ends; None if nothing closes it."""
    for position in range(opening, len(words)):
        if words[position].endswith("'") and not _ENDS_WITH_APOSTROPHE.fullmatch(words[position]):
            return position
    return next((k for k in (opening, len(words) - 1) if words[k].endswith("'")), None)


def _describe(characters: Sequence[str]) -> str:
    return " ".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in characters[:10])


def _remedy(characters: Sequence[str]) -> str:
    if any(character.isdigit() for character in characters):
        return "spell out numbers"
    if any(character.isalpha() for character in characters):
        return "write it in the letters a to z"
    return "spell them out as words"


class Tokenizer:
    """A SentencePiece BPE model over normalised text.

    vocab_size: pieces, the four special tokens included.
    model_bytes: the model as it is stored; equal bytes, equal tokenizer.
    """

    def __init__(self, model_bytes: bytes, where: object = None) -> None:
        """Load a serialised model; raise TextError if it is damaged or numbers its specials otherwise."""
        self.model_bytes = model_bytes
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model_bytes)
        except RuntimeError:
            raise TextError("a damaged tokenizer", where=where, remedy="delete it and run again") from None
        special_ids = (processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id())
        if special_ids != (PAD_ID, BOS_ID, EOS_ID, UNK_ID):
            raise TextError(
                "a tokenizer that Vox did not make", where=where, remedy="delete it and run again"
            )
        self._processor = processor
        self.vocab_size: int = processor.vocab_size()

    @property
    def pieces(self) -> list[str]:
        """The pieces by id, <pad> <s> </s> <unk> first. WORD_MARK stands for the space before a word."""
        return [self._processor.IdToPiece(i) for i in range(self.vocab_size)]

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Load a tokenizer from a file; raise TextError if it is missing or damaged."""
        try:
            model_bytes = Path(path).read_bytes()
        except FileNotFoundError:
            raise TextError("no such tokenizer", where=path, remedy="correct the path") from None
        return cls(model_bytes, where=path)

    def save(self, path: Path | str) -> None:
        """Write the tokenizer atomically, making its folder. Raises OSError."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self.model_bytes)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a normalised text, without bos and eos."""
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, single spaces between words; special ids are ignored."""
        text = self._processor.DecodeIds([int(i) for i in ids if i >= NUM_SPECIAL_IDS])
        return " ".join(text.split())

    def group_words(self, ids: Sequence[int]) -> list[list[int]]:
        """Return the positions of each word's ids, in order.

        A piece that begins with the mark of a word's beginning starts a word. Pieces that make no letter
        (the mark alone at the end) belong to no word, so the groups' texts are `decode(ids).split()`.
        """
        groups: list[list[int]] = []
        for position, piece_id in enumerate(ids):
            if not groups or self._processor.IdToPiece(int(piece_id)).startswith(WORD_MARK):
                groups.append([])
            groups[-1].append(position)
        return [group for group in groups if self.decode([ids[k] for k in group]).strip()]

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        """Pickle as bytes: a SentencePiece processor is a C++ object."""
        return type(self), (self.model_bytes,)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a BPE tokenizer on normalised texts: the same texts give the same bytes.

    It has all letters of the alphabet, so that it can spell words that the texts do not have, unless the
    vocabulary is smaller than `ALPHABET_VOCAB_SIZE`: then it has the letters of the texts only.

    Raises TextError if the texts are empty, hold more characters than the vocabulary, or hold too little
    for it; the last two name the smallest and the largest vocabulary that fits.
    """
    sentences = [text for text in texts if text]
    if not sentences:
        raise TextError("no text to train a tokenizer on", remedy="check the split's transcripts")
    num_characters = len(set().union(*sentences) - {" "}) + 1  # and the mark of a word's beginning
    smallest = NUM_SPECIAL_IDS + num_characters
    if vocab_size < smallest:
        raise TextError(
            f"a vocabulary of {vocab_size} is too small for the {num_characters} characters of this corpus",
            remedy=f"the smallest that fits is {smallest}: --set model.vocab_size={smallest}",
        )
    try:
        return Tokenizer(_train_bpe(sentences, vocab_size))
    except RuntimeError as error:
        raise _explain_too_large(error, vocab_size) from None


def _train_bpe(sentences: Sequence[str], vocab_size: int) -> bytes:
    """Return a serialised model; raises RuntimeError for a vocabulary that is too large."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=writer,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=1.0,
        normalization_rule_name="identity",
        pad_id=PAD_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        unk_id=UNK_ID,
        required_chars=ALPHABET if vocab_size >= ALPHABET_VOCAB_SIZE else "",
        num_threads=1,
        input_sentence_size=0,
        shuffle_input_sentence=False,
        max_sentence_length=max(4192, *map(len, sentences)) + 1,  # longer ones are dropped in silence
        minloglevel=2,
    )
    return writer.getvalue()


def _explain_too_large(error: RuntimeError, vocab_size: int) -> Exception:
    largest = _largest_that_fits(error)
    if largest is None:
        return error  # nothing that a user can correct: keep the traceback
    return TextError(
        f"a vocabulary of {vocab_size} is too large for this corpus (the largest that fits is {largest})",
        remedy=f"pass --config configs/small.yaml, --set model.vocab_size=auto, or {largest} at most",
    )


def _largest_that_fits(error: RuntimeError) -> int | None:
    found = re.search(r"Vocabulary size too high .* <= (\d+)", str(error))
    return None if found is None else int(found[1])


def choose_vocab_size(texts: Sequence[str]) -> int:
    """Return how many BPE pieces suit normalised texts: the special tokens, the alphabet, and merges.

    One merge for every 32 different words, and at least ten: a piece needs examples, and different words are
    what merges are learnt from. 100 hours of LibriSpeech, with 34,000 different words, get about 1,100
    pieces, an hour of it about 110, a corpus of ten digits 42. Very few words may not have that many merges:
    `fit_vocab_size` tells. Raises TextError where there is no text.
    """
    words = set().union(*(text.split() for text in texts))
    if not words:
        raise TextError("no text to choose a vocabulary for", remedy="check the split's transcripts")
    return ALPHABET_VOCAB_SIZE + max(MIN_MERGES, len(words) // WORDS_PER_MERGE)


def fit_vocab_size(texts: Sequence[str], wanted: int) -> int:
    """Return the size wanted, or the largest for which there are enough merges in the texts."""
    try:
        _train_bpe([text for text in texts if text], wanted)
    except RuntimeError as error:
        return _largest_that_fits(error) or wanted
    return wanted


def tokenizer_path(root: Path | str, split: str, vocab_size: int) -> Path:
    """Return where the tokenizer of a split lies under a data root."""
    return Path(root) / "tokenizers" / f"{split}-bpe{vocab_size}.model"


def get_tokenizer(root: Path | str, split: str, texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Load the tokenizer of a split, or train it on the split's texts and store it; log which.

    Raises TextError if the stored file is damaged, has another vocabulary than its name says, or lacks a
    character of the texts (the split has changed), or as `train_tokenizer` does.
    """
    path = tokenizer_path(root, split, vocab_size)
    if not path.exists():
        tokenizer = train_tokenizer(texts, vocab_size)
        log.info("made a tokenizer of %d pieces from %d transcripts: %s", vocab_size, len(texts), path)
        try:
            tokenizer.save(path)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS):
                raise
            log.warning("cannot write %s: the tokenizer is kept in the run's checkpoints only", path.parent)
        return tokenizer
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size != vocab_size:
        reason = f"a tokenizer of {tokenizer.vocab_size} pieces where {vocab_size} belong"
        raise TextError(reason, where=path, remedy="delete it and run again")
    unknown = sorted(c for c in set().union(*texts) - {" "} if UNK_ID in tokenizer.encode(c))
    if unknown:
        reason = f"a tokenizer made from other transcripts (it lacks {_describe(unknown)})"
        raise TextError(reason, where=path, remedy="delete it and run again")
    log.info("tokenizer of %d pieces: %s", vocab_size, path)
    return tokenizer

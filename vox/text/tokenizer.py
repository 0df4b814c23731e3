"""The tokenizer: byte-pair encoding of words, or a piece for each character. Ids of the special tokens."""

import errno
import io
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from vox.disk import write_whole
from vox.errors import TextError
from vox.text.marks import describe_characters
from vox.text.normaliser import ENGLISH, Normaliser

log = logging.getLogger(__name__)

# Ids of the special tokens in every tokenizer. CTC's blank and the padding of labels share one.
PAD_ID = BLANK_ID = 0
BOS_ID = 1
EOS_ID = 2
UNK_ID = 3
NUM_SPECIAL_IDS = 4

WORD_MARK = "\u2581"  # what SentencePiece writes for the space before a word

# How `choose_vocab_size` counts merges.
WORDS_PER_MERGE = 32
MIN_MERGES = 10


class Tokenizer:
    """A SentencePiece model over normalised text.

    vocab_size: pieces, the four special tokens included. word_starts: ids of the pieces that begin a word.
    word_mark: the one that does nothing else. has_words: False where none does, so that each piece is a unit
    by itself. rate: the error rate that leads, WER or CER.
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
        self.word_starts = frozenset(i for i, piece in enumerate(self.pieces) if piece.startswith(WORD_MARK))
        self.has_words = bool(self.word_starts)
        self.word_mark: int | None = self.pieces.index(WORD_MARK) if WORD_MARK in self.pieces else None
        self.rate = "WER" if self.has_words else "CER"

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

        A piece that begins with the mark of a word's beginning starts a word; without words, every piece is a
        group. Pieces that make no letter
        (the mark alone at the end) belong to no word, so the groups' texts are `decode(ids).split()`.
        """
        groups: list[list[int]] = []
        for position, piece_id in enumerate(ids):
            is_first = not groups or not self.has_words
            if is_first or int(piece_id) in self.word_starts:
                groups.append([])
            groups[-1].append(position)
        return [group for group in groups if self.decode([ids[k] for k in group]).strip()]

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        """Pickle as bytes: a SentencePiece processor is a C++ object."""
        return type(self), (self.model_bytes,)


def train_tokenizer(texts: Iterable[str], vocab_size: int, normaliser: Normaliser = ENGLISH) -> Tokenizer:
    """Train a BPE tokenizer on normalised texts: the same texts give the same bytes.

    It has all letters of the normaliser's alphabet, so that it can spell words that the texts do not have,
    unless the vocabulary is too small for them: then it has the letters of the texts only. Where there are no
    words, a piece is a character.

    Raises TextError if the texts are empty, hold more characters than the vocabulary, or hold too little
    for it; the last two name the smallest and the largest vocabulary that fits.
    """
    sentences = [text for text in texts if text]
    if not sentences:
        raise TextError("no text to train a tokenizer on", remedy="check the split's transcripts")
    num_characters = len(set().union(*sentences) - {" "}) + normaliser.has_words  # the mark of a word
    smallest = NUM_SPECIAL_IDS + num_characters
    if vocab_size < smallest:
        raise TextError(
            f"a vocabulary of {vocab_size} is too small for the {num_characters} characters of this corpus",
            remedy=f"the smallest that fits is {smallest}: --set model.vocab_size={smallest}",
        )
    if vocab_size > smallest and not normaliser.has_words:
        raise TextError(
            f"a vocabulary of {vocab_size} is too large for the {num_characters} characters of this corpus",
            remedy=f"pass --set model.vocab_size=auto, or {smallest}",
        )
    try:
        return Tokenizer(_train_model(sentences, vocab_size, normaliser))
    except RuntimeError as error:
        raise _explain_too_large(error, vocab_size) from None


def _train_model(sentences: Sequence[str], vocab_size: int, normaliser: Normaliser) -> bytes:
    """Return a serialised model; raises RuntimeError for a vocabulary that is too large."""
    writer = io.BytesIO()
    has_room = vocab_size >= NUM_SPECIAL_IDS + len(normaliser.letters) + 1
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=writer,
        model_type="bpe" if normaliser.has_words else "char",
        add_dummy_prefix=normaliser.has_words,
        vocab_size=vocab_size,
        character_coverage=1.0,
        normalization_rule_name="identity",
        pad_id=PAD_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        unk_id=UNK_ID,
        required_chars=normaliser.letters if has_room else "",
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


def choose_vocab_size(texts: Sequence[str], normaliser: Normaliser = ENGLISH) -> int:
    """Return how many pieces suit normalised texts: the special tokens, the alphabet, and merges.

    One merge for every 32 different words, and at least ten: a piece needs examples, and different words are
    what merges are learnt from. 100 hours of LibriSpeech, with 34,000 different words, get about 1,100
    pieces, an hour of it about 110, a corpus of ten digits 42. Very few words may not have that many merges:
    `fit_vocab_size` tells. Without words there is nothing to merge. Raises TextError where there is no text.
    """
    words = set().union(*(text.split() for text in texts))
    if not words:
        raise TextError("no text to choose a vocabulary for", remedy="check the split's transcripts")
    num_letters = len(set(normaliser.letters).union(*words))
    if not normaliser.has_words:
        return NUM_SPECIAL_IDS + num_letters
    return NUM_SPECIAL_IDS + num_letters + 1 + max(MIN_MERGES, len(words) // WORDS_PER_MERGE)


def fit_vocab_size(texts: Sequence[str], wanted: int, normaliser: Normaliser = ENGLISH) -> int:
    """Return the size wanted, or the largest for which there are enough merges in the texts."""
    try:
        _train_model([text for text in texts if text], wanted, normaliser)
    except RuntimeError as error:
        return _largest_that_fits(error) or wanted
    return wanted


def tokenizer_path(root: Path | str, split: str, vocab_size: int, normaliser: Normaliser = ENGLISH) -> Path:
    """Return where the tokenizer of a split lies under a data root. Each alphabet has one of its own."""
    folder = Path(root) / "tokenizers" / normaliser.name  # English has none: its files are where they were
    return folder / f"{split}-bpe{vocab_size}.model"


def get_tokenizer(
    root: Path | str,
    split: str,
    texts: Sequence[str],
    vocab_size: int,
    normaliser: Normaliser = ENGLISH,
) -> Tokenizer:
    """Load the tokenizer of a split, or train it on the split's texts and store it; log which.

    Raises TextError if the stored file is damaged, has another vocabulary than its name says, or lacks a
    character of the texts (the split has changed), or as `train_tokenizer` does.
    """
    path = tokenizer_path(root, split, vocab_size, normaliser)
    if not path.exists():
        tokenizer = train_tokenizer(texts, vocab_size, normaliser)
        num_texts = sum(map(bool, texts))
        log.info("made a tokenizer of %d pieces from %d transcripts: %s", vocab_size, num_texts, path)
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
        reason = f"a tokenizer made from other transcripts (it lacks {describe_characters(unknown)})"
        raise TextError(reason, where=path, remedy="delete it and run again")
    log.info("tokenizer of %d pieces: %s", vocab_size, path)
    return tokenizer

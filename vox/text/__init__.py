"""Transcripts: how they are brought into an alphabet (docs/languages.md), and their tokenizer."""

from vox.text.english import ALPHABET, MAX_QUOTATIONS, normalise_text
from vox.text.normaliser import ENGLISH, Normaliser, accept_any_text, load_normaliser
from vox.text.tokenizer import (
    BLANK_ID,
    BOS_ID,
    EOS_ID,
    NUM_SPECIAL_IDS,
    PAD_ID,
    UNK_ID,
    WORD_MARK,
    Tokenizer,
    choose_vocab_size,
    fit_vocab_size,
    get_tokenizer,
    tokenizer_path,
    train_tokenizer,
)

__all__ = [
    "ALPHABET",
    "BLANK_ID",
    "BOS_ID",
    "ENGLISH",
    "EOS_ID",
    "MAX_QUOTATIONS",
    "NUM_SPECIAL_IDS",
    "PAD_ID",
    "UNK_ID",
    "WORD_MARK",
    "Normaliser",
    "Tokenizer",
    "accept_any_text",
    "choose_vocab_size",
    "fit_vocab_size",
    "get_tokenizer",
    "load_normaliser",
    "normalise_text",
    "tokenizer_path",
    "train_tokenizer",
]

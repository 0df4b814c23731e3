"""Corpora: the utterances of a split, what is said in them, and what is wrong with the others."""

from vox.corpus.layouts import (
    AUDIO_SUFFIXES,
    LIBRISPEECH_SPLITS,
    find_split,
    list_chapter,
    read_split,
    walk_chapters,
)
from vox.corpus.load import (
    KnownLength,
    load_split,
    probe_audio,
    refuse_without_words,
)
from vox.corpus.utterance import Problem, Utterance

__all__ = [
    "AUDIO_SUFFIXES",
    "LIBRISPEECH_SPLITS",
    "KnownLength",
    "Problem",
    "Utterance",
    "find_split",
    "list_chapter",
    "load_split",
    "probe_audio",
    "read_split",
    "refuse_without_words",
    "walk_chapters",
]

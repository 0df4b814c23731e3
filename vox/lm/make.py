"""Estimate an n-gram model from text files and write it as an ARPA file."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vox.disk import check_writable
from vox.errors import LanguageModelError
from vox.lm.arpa import BOS, EOS, UNK, NgramTable, write_arpa
from vox.lm.estimate import estimate, join_sentences
from vox.lm.text import Encode, WordVocabulary, piece_vocabulary, read_sentences
from vox.text import ENGLISH, Tokenizer

Words = NDArray[np.int32]
Floats = NDArray[np.float64]

HELD_OUT_STEP = 10  # every tenth sentence


def make_model(
    texts: Sequence[Path],
    out: Path,
    order: int,
    tokenizer: Tokenizer | None,
    *,
    held_out: Path | None = None,
    skip_bad: bool = False,
    normalise: Callable[[str], str] = ENGLISH,
) -> Iterator[str]:
    """Write a model of texts over a tokenizer's pieces, or over words if there is no tokenizer.

    Yields the lines of a report. With held-out text, each text gets a weight; without, they count as one
    text. Raises LanguageModelError.
    """
    sources = {path.resolve() for path in (*texts, *([] if held_out is None else [held_out]))}
    if out.resolve() in sources or out.is_dir():
        raise LanguageModelError(
            "the model cannot be written over a text or a folder", where=out, remedy="choose another --out"
        )
    check_writable(out, "--out", folder=out.parent)
    vocabulary, parts, held_tokens = _read_all(texts, tokenizer, held_out, skip_bad, normalise)
    if held_tokens is None:
        tables = estimate(np.concatenate(parts), vocabulary, order)
    else:
        models = [estimate(part, vocabulary, order) for part in parts]
        weights_I = yield from _weigh(models, vocabulary, held_tokens, texts)
        tables = _mix(models, vocabulary, weights_I)
    write_arpa(out, vocabulary, tables)
    yield _describe(out, tables)


def _read_all(
    texts: Sequence[Path],
    tokenizer: Tokenizer | None,
    held_out: Path | None,
    skip_bad: bool,
    normalise: Callable[[str], str],
) -> tuple[list[str], list[Words], Words | None]:
    """Return the vocabulary, the words of each text, and those of the held-out text."""
    if tokenizer is None:
        words = WordVocabulary()
        encode: Encode = words.encode
        encode_held_out: Encode = words.encode_known
    else:
        vocabulary, encode = piece_vocabulary(tokenizer)
        encode_held_out = encode
    specials = (BOS, EOS, UNK)  # the first entries of either vocabulary
    parts = [
        join_sentences(read_sentences(path, encode, skip_bad=skip_bad, normalise=normalise), specials)
        for path in texts
    ]
    if tokenizer is None:
        vocabulary = list(words.place_of)
    if held_out is None:
        return vocabulary, parts, None
    held_out_sentences = read_sentences(held_out, encode_held_out, skip_bad=skip_bad, normalise=normalise)
    return vocabulary, parts, join_sentences(held_out_sentences, specials)


def make_mixture(
    texts: Mapping[str, Sequence[Sequence[int]]], main: str, out: Path, order: int, tokenizer: Tokenizer
) -> Iterator[str]:
    """Write a mixture of the models of several texts; yield the lines of a report.

    texts: by name, sentences as indices from `piece_vocabulary`. main: the text whose every tenth sentence is
    held out to fit the weights, which are equal if it has fewer than ten. Then it counts whole.
    """
    vocabulary, _ = piece_vocabulary(tokenizer)
    held_out = texts[main][HELD_OUT_STEP - 1 :: HELD_OUT_STEP]
    wholes = {name: _estimate_sentences(sentences, vocabulary, order) for name, sentences in texts.items()}
    weights_I = np.full(len(texts), 1.0 / len(texts))
    if held_out:
        seen = [sentence for place, sentence in enumerate(texts[main], start=1) if place % HELD_OUT_STEP]
        models = wholes | {main: _estimate_sentences(seen, vocabulary, order)}
        held_tokens = join_sentences(held_out, vocabulary)
        weights_I = yield from _weigh(list(models.values()), vocabulary, held_tokens, list(texts))
    tables = _mix(list(wholes.values()), vocabulary, weights_I)
    write_arpa(out, vocabulary, tables)
    yield _describe(out, tables)


def _estimate_sentences(
    sentences: Sequence[Sequence[int]], vocabulary: Sequence[str], order: int
) -> list[NgramTable]:
    return estimate(join_sentences(sentences, vocabulary), vocabulary, order)


def _describe(out: Path, tables: Sequence[NgramTable]) -> str:
    counts = ", ".join(f"{len(table.words_Mk):,} {k}-grams" for k, table in enumerate(tables, start=1))
    return f"{out}: {counts}"


def _weigh(
    models: Sequence[list[NgramTable]],
    vocabulary: Sequence[str],
    held_tokens: Words,
    names: Sequence[object],
) -> Generator[str, None, Floats]:
    """Yield the perplexity of each model and of the mixture; return the weights."""
    from vox.lm.mix import fit_weights, make_machine, score_words

    machines = [make_machine(tables, vocabulary) for tables in models]
    logps_TI = np.column_stack([score_words(machine, held_tokens, vocabulary) for machine in machines])
    for name, logps_T in zip(names, logps_TI.T, strict=True):
        yield f"perplexity of the held-out text by {name}: {np.exp(-logps_T.mean()):.2f}"
    if len(models) == 1:
        return np.ones(1)
    weights_I = fit_weights(logps_TI)
    together = np.exp(-np.log(np.exp(logps_TI) @ weights_I).mean())
    shown = ", ".join(f"{weight:.3f}" for weight in weights_I)
    yield f"perplexity by all, with weights {shown}: {together:.2f}"
    return weights_I


def _mix(
    models: Sequence[list[NgramTable]], vocabulary: Sequence[str], weights_I: Floats
) -> list[NgramTable]:
    from vox.lm.mix import make_machine, mix

    if len(models) == 1:
        return models[0]
    return mix([make_machine(tables, vocabulary) for tables in models], models, weights_I)

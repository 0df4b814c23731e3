"""The text of a domain and of its source: which words are new, and a language model of both."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vox.checkpoint.files import Checkpoint, read_words
from vox.corpus import read_split
from vox.errors import CorpusError, LanguageModelError, name_count
from vox.hotword_list import list_lines, parse_hotwords
from vox.lm.make import make_mixture
from vox.lm.text import piece_vocabulary, read_sentences

log = logging.getLogger(__name__)

DOMAIN, SOURCE = "the domain", "the source"


@dataclass(frozen=True)
class DomainText:
    """Normalised sentences of a domain and of the source, and how often the source has each word."""

    sentences: list[str]
    source_sentences: list[str]  # empty if only the source's word counts are known
    source_words: Counter[str]
    has_words: bool = True  # False in alphabets without spaces, whose hotwords Vox does not have
    left_out: list[str] = field(default_factory=list)  # lines of the domain that cannot be used, and why

    def find_new_words(self) -> list[tuple[str, int]]:
        """Return the domain's words that the source does not have, most frequent first, with their counts."""
        if not self.has_words:
            return []
        counts = count_words(self.sentences)
        new = [(word, count) for word, count in counts.items() if word not in self.source_words]
        return sorted(new, key=lambda item: (-item[1], item[0]))


def count_words(sentences: Iterable[str]) -> Counter[str]:
    """Count the words of normalised sentences."""
    return Counter(word for sentence in sentences for word in sentence.split())


def read_texts(
    loaded: Checkpoint, texts: Sequence[Path], source_texts: Sequence[Path], root: Path
) -> DomainText:
    """Read the text of a domain, and of the source: files, or else the checkpoint's training transcripts.

    Where the transcripts are not under root, the checkpoint's word counts are used. Lines that cannot be used
    are left out; those of the domain are listed. Raises LanguageModelError for a file that cannot be read or
    has no usable line, and if nothing is known of the source.
    """
    left_out: list[str] = []
    sentences = [s for path in texts for s in _read_file(loaded, path, left_out)]
    if source_texts:
        source = [s for path in source_texts for s in _read_file(loaded, path, [])]
    else:
        source = _read_transcripts(loaded, root)
    words = count_words(source) if source else Counter(read_words(loaded.folder))
    if not words:
        raise LanguageModelError(
            "the transcripts that this checkpoint was trained on are not there",
            where=root,
            remedy="name their folder with --root, or a text with --source-text",
        )
    return DomainText(sentences, source, words, loaded.tokenizer.has_words, left_out)


def _read_file(loaded: Checkpoint, path: Path, left_out: list[str]) -> list[str]:
    _, encode = piece_vocabulary(loaded.tokenizer)
    bad: list[str] = []

    def check(text: str) -> str:
        encode(text)  # raises TextError for letters that the tokenizer does not have
        return text

    sentences = list(read_sentences(path, check, skip_bad=True, left_out=bad, normalise=loaded.normaliser))
    left_out += [f"{path.name}:{reason}" for reason in bad]
    return sentences


def _read_transcripts(loaded: Checkpoint, root: Path) -> list[str]:
    """Return the transcripts of the splits that a checkpoint was trained on; none if one is missing."""
    config = loaded.config
    splits = dict.fromkeys([*config.data.train_weights, *(config.adapt.replay_split or ())])
    try:
        return [
            utterance.text for split in splits for utterance in read_split(root, split, loaded.normaliser)[0]
        ]
    except CorpusError as error:
        log.warning("the training transcripts cannot be read: %s", error)
        return []


def write_language_model(text: DomainText, loaded: Checkpoint, out: Path, order: int) -> list[str]:
    """Write a model of the domain mixed with one of the source; return the lines of a report."""
    _, encode = piece_vocabulary(loaded.tokenizer)
    texts = {DOMAIN: [encode(sentence) for sentence in text.sentences]}
    if text.source_sentences:
        texts[SOURCE] = [encode(sentence) for sentence in text.source_sentences]
    else:
        log.warning("the language model is made of the domain's text alone: no transcripts of the source")
    return list(make_mixture(texts, DOMAIN, out, order, loaded.tokenizer))


def write_hotwords(text: DomainText, given: Path | None, out: Path, normalise: Callable[[str], str]) -> int:
    """Write the list of hotwords: the given one, or the new words; return how many phrases are active.

    New words that a given list lacks are written as comments. Raises TextError for a list that is wrong.
    """
    new = text.find_new_words()
    if given is None:
        head = [
            "# Words of the domain that the source's transcripts do not have, with their counts in the text."
        ]
        head += ["# Edit: `phrase`, `phrase: spelling, spelling`, `phrase @2` for twice the weight."]
        lines = [*head, *(f"{word}  # {count}" for word, count in new)]
    else:
        listed = list_lines(given)
        known = count_words(s for hotword in parse_hotwords(listed, normalise) for s in hotword.spellings)
        missing = [(word, count) for word, count in new if word not in known]
        lines = "\n".join(line.rstrip() for _, line in listed).rstrip().split("\n")
        if missing:
            lines += ["# New words of the domain's text that this list does not have, with their counts:"]
            lines += [f"# {word}  # {count}" for word, count in missing]
    out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    hotwords = parse_hotwords(list_lines(out), normalise)
    log.info(
        "%s: %s; the text has %s", out, name_count(len(hotwords), "phrase"), name_count(len(new), "new word")
    )
    return len(hotwords)

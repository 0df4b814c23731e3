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
from vox.runs.layout import WORDS

log = logging.getLogger(__name__)

MOST_KNOWN = 50  # known words that a list and a report name

DOMAIN, SOURCE = "the domain", "the source"


@dataclass(frozen=True)
class KnownWord:
    """A word of a domain that the source has too: how often each has it."""

    word: str
    in_text: int
    in_source: dict[str, int]  # by split or file

    def describe(self) -> str:
        """Write the counts, as a comment in a list of hotwords."""
        places = ", ".join(f"{count} in {place}" for place, count in self.in_source.items() if count)
        return f"{self.in_text} in the text, {places}"


@dataclass(frozen=True)
class DomainText:
    """Normalised sentences of a domain and of the source, and how often the source has each word.

    source_words: by split or file; after stage 3 these are the target's splits and the source's.
    """

    sentences: list[str]
    source_sentences: list[str]  # empty if only the source's word counts are known
    source_words: dict[str, Counter[str]]
    has_words: bool = True  # False in alphabets without spaces, whose hotwords Vox does not have
    left_out: list[str] = field(default_factory=list)  # lines of the domain that cannot be used, and why

    def find_new_words(self) -> list[tuple[str, int]]:
        """Return the domain's words that the source does not have, most frequent first, with their counts."""
        if not self.has_words:
            return []
        counts, known = count_words(self.sentences), self._sum_source()
        new = [(word, count) for word, count in counts.items() if word not in known]
        return sorted(new, key=lambda item: (-item[1], item[0]))

    def find_known_words(self) -> list[KnownWord]:
        """Return the domain's words that the source has, rarest in the source first."""
        if not self.has_words:
            return []
        counts, known = count_words(self.sentences), self._sum_source()
        words = sorted(known.keys() & counts.keys(), key=lambda word: (known[word], word))
        return [
            KnownWord(word, counts[word], {place: found[word] for place, found in self.source_words.items()})
            for word in words
        ]

    def _sum_source(self) -> Counter[str]:
        return sum(self.source_words.values(), Counter())


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
        source = {str(path): _read_file(loaded, path, []) for path in source_texts}
    else:
        source = _read_transcripts(loaded, root)
    words = {place: count_words(some) for place, some in source.items()}
    if not source:
        words = {WORDS: Counter(read_words(loaded.folder))}
    if not any(words.values()):
        raise LanguageModelError(
            "the transcripts that this checkpoint was trained on are not there",
            where=root,
            remedy="name their folder with --root, or a text with --source-text",
        )
    source_sentences = [sentence for some in source.values() for sentence in some]
    return DomainText(sentences, source_sentences, words, loaded.tokenizer.has_words, left_out)


def _read_file(loaded: Checkpoint, path: Path, left_out: list[str]) -> list[str]:
    _, encode = piece_vocabulary(loaded.tokenizer)
    bad: list[str] = []

    def check(text: str) -> str:
        encode(text)  # raises TextError for letters that the tokenizer does not have
        return text

    sentences = list(read_sentences(path, check, skip_bad=True, left_out=bad, normalise=loaded.normaliser))
    left_out += [f"{path.name}:{reason}" for reason in bad]
    return sentences


def _read_transcripts(loaded: Checkpoint, root: Path) -> dict[str, list[str]]:
    """Return the transcripts that a checkpoint was trained on, by split; none if a split is missing."""
    config = loaded.config
    splits = dict.fromkeys([*config.data.train_weights, *(config.adapt.replay_split or ())])
    try:
        return {
            split: [
                utterance.text
                for utterance in read_split(root, split, loaded.normaliser, needs_audio=False)[0]
            ]
            for split in splits
        }
    except CorpusError as error:
        log.warning("the training transcripts cannot be read: %s", error)
        return {}


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

    New words that a given list lacks are written as comments, and so are the rarest known ones where no list
    is given. Raises TextError for a list that is wrong.
    """
    new = text.find_new_words()
    if given is None:
        head = [
            "# Words of the domain that the source's transcripts do not have, with their counts in the text."
        ]
        head += ["# Edit: `phrase`, `phrase: spelling, spelling`, `phrase @2` for twice the weight."]
        lines = [*head, *(f"{word}  # {count}" for word, count in new)]
        if known_words := text.find_known_words()[:MOST_KNOWN]:
            lines += ["# No hotwords, because training had them; rarest first. To make one a hotword, delete"]
            lines += ["# the # before it.", *(f"# {each.word}  # {each.describe()}" for each in known_words)]
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

"""The utterances of the splits to evaluate on."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from evaluate.standard import WHISPER_ENGLISH, Standard
from vox.corpus import Problem, Utterance, load_split, refuse_without_words
from vox.errors import CorpusError, TextError
from vox.text import ENGLISH, Normaliser


class TranscriptNormaliser(Normaliser):
    """A checkpoint's normaliser; its errors name the option with which digits can be scored in English."""

    def __call__(self, text: str) -> str:
        """Return a text in the alphabet, or raise TextError, as Normaliser does."""
        try:
            return super().__call__(text)
        except TextError as error:
            if not self.is_english or not any(map(str.isdigit, text)):
                raise
            raise TextError(f"{error}, or score with --normalise {WHISPER_ENGLISH}") from None


def load_splits(
    root: Path, splits: Sequence[str], *, skip_bad: bool, normalise: Callable[[str], str] = ENGLISH
) -> tuple[list[Utterance], dict[str, str]]:
    """List the utterances of splits that can be used, and why others cannot, by id.

    Of several splits an id is `<split>/<id>`. Raises CorpusError as `load_split` does.
    """
    utterances: list[Utterance] = []
    left_out: dict[str, str] = {}
    for split in splits:
        problems: list[Problem] = []
        found = load_split(root, split, skip_bad=skip_bad, normalise=normalise, left_out=problems)
        prefix = f"{split}/" if len(splits) > 1 else ""
        utterances += [replace(each, id=prefix + each.id, split=split) for each in found]
        left_out |= {prefix + problem.name: problem.reason for problem in problems}
    return utterances, left_out


def check_words(utterances: Sequence[Utterance], standard: Standard) -> None:
    """Raise CorpusError if there is no word to score against, or none is left of a split by the standard.

    Nothing needs to be spoken in some of the splits.
    """
    refuse_without_words(", ".join(sorted({each.split for each in utterances})), utterances)
    spoken = [each for each in utterances if each.text]
    with_words = {each.split for each in spoken if standard.apply(each.text)}
    if without := sorted({each.split for each in spoken} - with_words):
        raise CorpusError(
            f"no transcript has a word left after --normalise {standard.name}",
            where=without[0] or None,
            remedy="leave the option out",
        )

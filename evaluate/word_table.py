"""A table of chosen words: how often each is said, how it is spelled, and how well each decoder finds it."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from evaluate.results import Evaluation
from vox.errors import TextError
from vox.hotword_list import Hotword, read_hotwords
from vox.score_hotwords import PhraseCount


def read_words(path: Path, normalise: Callable[[str], str]) -> tuple[Hotword, ...]:
    """Read a file of words or phrases, in the form of a hotword file; raise TextError if it has none."""
    words = tuple(read_hotwords(path, normalise))
    if not words:
        raise TextError("a file without a word", where=path, remedy="write a word or a phrase on each line")
    return words


def format_words(evaluation: Evaluation) -> list[str]:
    """Format a line a word; no lines if no words are listed."""
    if not evaluation.word_pieces:
        return []
    width = max(16, *(len(word) + 2 for word in evaluation.word_pieces))
    decoders = "".join(f"{name + ': recall %':>24}{'false alarms':>14}" for name in evaluation.decoders)
    lines = [f"{'word':<{width}}{'said':>6}{decoders}  pieces"]
    for word, pieces in evaluation.word_pieces.items():
        counts = [result.words[word] for result in evaluation.decoders.values()]
        cells = "".join(f"{_format_recall(count):>24}{count.false_alarms:>14}" for count in counts)
        lines.append(f"{word:<{width}}{counts[0].num_said:>6}{cells}  {pieces}")
    return lines


def describe_words(evaluation: Evaluation) -> dict[str, Any]:
    """Return the counts of each word for report.json."""
    return {
        word: {
            "pieces": pieces.split(),
            "said": next(iter(evaluation.decoders.values())).words[word].num_said,
            "decoders": {
                name: {"found": result.words[word].num_found, "right": result.words[word].num_right}
                for name, result in evaluation.decoders.items()
            },
        }
        for word, pieces in evaluation.word_pieces.items()
    }


def render_words(evaluation: Evaluation) -> str:
    """Render the section of the page; empty if no words are listed."""
    if not evaluation.word_pieces:
        return ""
    heads = "".join(f"<th>{escape(name)}: recall %</th><th>false alarms</th>" for name in evaluation.decoders)
    lines = []
    for word, pieces in evaluation.word_pieces.items():
        counts = [result.words[word] for result in evaluation.decoders.values()]
        cells = "".join(f"<td>{_format_recall(count)}</td><td>{count.false_alarms}</td>" for count in counts)
        lines.append(
            f"<tr><td>{escape(word)}</td><td>{counts[0].num_said}</td>{cells}<td>{escape(pieces)}</td></tr>"
        )
    return (
        '<section id="listed"><h2>Chosen words</h2><div class="scroll tall"><table><thead><tr><th>word</th>'
        f"<th>said</th>{heads}<th>pieces</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _format_recall(count: PhraseCount) -> str:
    return "-" if count.recall is None else f"{100 * count.recall:.1f}"

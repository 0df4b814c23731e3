"""The utterances of an evaluation's page: each with its recording and its alignments.

Decoders that found the same text share one alignment.
"""

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from evaluate.run import Evaluation
from vox.corpus import Utterance
from vox.score import UtteranceScore, WordPair
from vox.units import samples_to_seconds

MAX_EMBEDDED_BYTES = 20 * 2**20  # of all recordings together; above it they are linked


def render_cards(evaluation: Evaluation, recordings: Sequence[Utterance], out_dir: Path) -> str:
    """Write a card for every utterance, those with the most errors (of all decoders together) first.

    recordings: in the order of `evaluation.ids`. out_dir: the folder that links start from.
    """
    decoders = list(evaluation.decoders)
    embeds = _total_bytes(recordings) <= MAX_EMBEDDED_BYTES
    cards = []
    for index, utterance in enumerate(recordings):
        scores = [evaluation.decoders[name].score.utterances[index] for name in decoders]
        num_errors = sum(one.num_errors for one in scores)
        source = _embed(utterance.audio_path) if embeds else None
        card = _render_card(utterance, decoders, scores, source or _link(utterance.audio_path, out_dir))
        cards.append((-num_errors, utterance.id, card))
    return "\n".join(card for _, _, card in sorted(cards))


def _render_card(
    utterance: Utterance, decoders: Sequence[str], scores: Sequence[UtteranceScore], source: str
) -> str:
    seconds = samples_to_seconds(utterance.num_samples or 0)
    by_text: dict[tuple[WordPair, ...], list[str]] = {}
    for name, one in zip(decoders, scores, strict=True):
        by_text.setdefault(one.pairs, []).append(name)
    score_of = {one.pairs: one for one in scores}
    texts = "".join(_render_text(names, score_of[pairs]) for pairs, names in by_text.items())
    facts = [f"speaker {utterance.speaker}"] if utterance.speaker else []
    facts += [f"{seconds:.1f} s", f"{scores[0].num_words / seconds:.1f} words/s"]
    # What the search looks into: the texts whole, and with their errors marked.
    found = [utterance.id, *facts[:1], utterance.text]
    for pairs in by_text:
        if score_of[pairs].num_errors:
            found += [" ".join(word for _, word in pairs if word is not None), score_of[pairs].alignment]
    errors = " ".join(str(one.num_errors) for one in scores)
    return (
        f'<article class="card" data-id="{escape(utterance.id)}" data-errors="{errors}" '
        f'data-seconds="{seconds:.3f}" data-text="{escape(chr(10).join(found))}">'
        f"<header><h3>{escape(utterance.id)}</h3>{''.join(f'<span>{escape(fact)}</span>' for fact in facts)}"
        f'</header><audio controls preload="none" src="{escape(source)}" '
        f'aria-label="recording of {escape(utterance.id)}"></audio>{texts}</article>'
    )


def _render_text(names: Sequence[str], one: UtteranceScore) -> str:
    counts = "no error"
    if one.num_errors:
        kinds = f"{one.substitutions} sub, {one.deletions} del, {one.insertions} ins"
        counts = f"{kinds} of {one.num_words} words"
    words = " ".join(_render_pair(pair) for pair in one.pairs)
    return (
        f'<div class="text" data-decoders="{escape(" ".join(names))}"><p class="who">'
        f'{escape(", ".join(names))} <span class="count">{counts}</span></p>'
        f'<p class="words">{words}</p></div>'
    )


def _render_pair(pair: WordPair) -> str:
    spoken, recognised = pair
    if recognised is None:
        return f'<span class="del"><del>{escape(spoken or "")}</del></span>'
    if spoken is None:
        return f'<span class="ins"><ins>{escape(recognised)}</ins></span>'
    if spoken == recognised:
        return escape(spoken)
    return f'<span class="sub"><del>{escape(spoken)}</del> <ins>{escape(recognised)}</ins></span>'


def _total_bytes(recordings: Sequence[Utterance]) -> int:
    return sum(path.stat().st_size for path in {one.audio_path for one in recordings} if path.exists())


def _embed(path: Path) -> str | None:
    """Return a recording as a data URI; None if it cannot be read any more."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return f"data:audio/{path.suffix.lower().removeprefix('.')};base64,{base64.b64encode(data).decode()}"


def _link(path: Path, out_dir: Path) -> str:
    """Return a recording's address relative to the page, which opens wherever both are moved together."""
    return quote(os.fsencode(os.path.relpath(path.resolve(), out_dir.resolve())))

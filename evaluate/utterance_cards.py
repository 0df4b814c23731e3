"""The utterances on the evaluation page, each with its recording and alignments.

Decoders with the same text share one alignment.
"""

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import soundfile

from evaluate.results import Evaluation
from vox.audio import read_audio
from vox.corpus import Utterance
from vox.errors import AudioError, name_count
from vox.score import UtteranceScore, WordPair
from vox.units import SAMPLE_RATE, samples_to_seconds

MAX_EMBEDDED_BYTES = 20 * 2**20  # of all recordings together; above it they are linked


def render_cards(evaluation: Evaluation, recordings: Sequence[Utterance], out_dir: Path) -> str:
    """Render a card for every utterance, sorted by the errors of all decoders together, most first.

    recordings: in the order of `evaluation.ids`. out_dir: links are relative to this folder.
    """
    decoders = list(evaluation.decoders)
    embeds = _total_bytes(recordings) <= MAX_EMBEDDED_BYTES
    cards = []
    for index, utterance in enumerate(recordings):
        scores = [evaluation.decoders[name].score.utterances[index] for name in decoders]
        originals = _render_originals(evaluation, index) if evaluation.standard.name else ""
        num_errors = sum(one.num_errors for one in scores)
        source = _embed(utterance) if embeds else None
        card = _render_card(
            utterance, decoders, scores, source or _link(utterance, out_dir), originals, evaluation.unit
        )
        cards.append((-num_errors, utterance.id, card))
    return "\n".join(card for _, _, card in sorted(cards))


def _render_card(
    utterance: Utterance,
    decoders: Sequence[str],
    scores: Sequence[UtteranceScore],
    source: str,
    originals: str,
    unit: str,
) -> str:
    seconds = samples_to_seconds(utterance.num_samples or 0)
    by_text: dict[tuple[WordPair, ...], list[str]] = {}
    for name, one in zip(decoders, scores, strict=True):
        by_text.setdefault(one.pairs, []).append(name)
    score_of = {one.pairs: one for one in scores}
    texts = "".join(_render_text(names, score_of[pairs], unit) for pairs, names in by_text.items())
    facts = [f"speaker {utterance.speaker}"] if utterance.speaker else []
    facts += [f"{seconds:.1f} s", f"{scores[0].num_words / seconds:.1f} {unit}s/s"]
    # Text that the page's search reads: the plain texts, and the texts with errors marked.
    found = [utterance.id, *facts[:1], utterance.text]
    for pairs in by_text:
        if score_of[pairs].num_errors:
            found += [score_of[pairs].hypothesis, score_of[pairs].alignment]
    errors = " ".join(str(one.num_errors) for one in scores)
    return (
        f'<article class="card" data-id="{escape(utterance.id)}" data-errors="{errors}" '
        f'data-seconds="{seconds:.3f}" data-text="{escape(chr(10).join(found))}">'
        f"<header><h3>{escape(utterance.id)}</h3>{''.join(f'<span>{escape(fact)}</span>' for fact in facts)}"
        f'</header><audio controls preload="none" src="{escape(source)}" '
        f'aria-label="recording of {escape(utterance.id)}"></audio>{texts}{originals}</article>'
    )


def _render_originals(evaluation: Evaluation, index: int) -> str:
    """Render the texts before they were brought to the standard that they are scored by."""
    texts = [("as written", evaluation.references[index])]
    texts += [(name, result.hypotheses[index]) for name, result in evaluation.decoders.items()]
    lines = "".join(f"<p>{escape(name)}: {escape(text)}</p>" for name, text in texts)
    return f"<details><summary>before {escape(evaluation.standard.name)}</summary>{lines}</details>"


def _render_text(names: Sequence[str], one: UtteranceScore, unit: str) -> str:
    counts = "no error"
    if one.num_errors:
        kinds = f"{one.substitutions} sub, {one.deletions} del, {one.insertions} ins"
        counts = f"{kinds} of {name_count(one.num_words, unit)}"
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
    whole = {one.audio_path for one in recordings if one.segment is None}
    in_segments = sum(one.num_samples or 0 for one in recordings if one.segment is not None)
    return sum(path.stat().st_size for path in whole if path.exists()) + 2 * in_segments  # of 16 bits


def _embed(utterance: Utterance) -> str | None:
    """Return a recording as a data URI, a segment as a WAV file; None if it can no longer be read."""
    try:
        if utterance.segment is None:
            data = utterance.audio_path.read_bytes()
            kind = utterance.audio_path.suffix.lower().removeprefix(".")
        else:
            file, kind = io.BytesIO(), "wav"
            samples_S = read_audio(utterance.audio_path, segment=utterance.segment)
            soundfile.write(file, samples_S, SAMPLE_RATE, format="WAV", subtype="PCM_16")
            data = file.getvalue()
    except (OSError, AudioError):
        return None
    return f"data:audio/{kind};base64,{base64.b64encode(data).decode()}"


def _link(utterance: Utterance, out_dir: Path) -> str:
    """Return a recording's URL relative to the page, so both can be moved together.

    The URL of a segment has its times (a media fragment), so a browser plays only that part.
    """
    path = os.path.relpath(utterance.audio_path.resolve(), out_dir.resolve())
    segment = utterance.segment
    if segment is None:
        return quote(os.fsencode(path))
    end = "" if segment.duration is None else f",{segment.end:g}"
    return f"{quote(os.fsencode(path))}#t={segment.offset:g}{end}"

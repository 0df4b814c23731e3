"""report.md of a domain: what it was made of, its weights, and what it does on the dev splits."""

from collections.abc import Sequence
from pathlib import Path

from evaluate.adapt import TunedDomain
from evaluate.domain_text import MOST_KNOWN, DomainText, KnownWord, count_words
from vox.checkpoint.files import Checkpoint
from vox.disk import write_whole
from vox.domain import HOTWORDS, Domain
from vox.errors import name_count
from vox.hotword_list import Hotword
from vox.text import NUM_SPECIAL_IDS

MOST_WORDS = 50  # listed in the report


def write_domain_report(
    path: Path,
    loaded: Checkpoint,
    text: DomainText,
    hotwords: Sequence[Hotword],
    model_lines: Sequence[str],
    domain: Domain,
    result: TunedDomain | None,
) -> None:
    """Write the report. result: of tuning; None where default weights were taken. Raises OSError."""
    tuned = domain.tuned
    new, known = text.find_new_words(), text.find_known_words()
    lines = [
        "# A domain from text",
        "",
        f"Made for {loaded.folder}: {name_count(len(text.sentences), 'sentence')}, "
        f"{name_count(len(new), 'word')} that training did not have, {len(known)} that it had, "
        f"{name_count(len(hotwords), 'hotword')}.",
        "",
        f"Search: {tuned.decoder}, beam {tuned.beam}, CTC weight {tuned.ctc_weight:g}, "
        f"{tuned.length_bonus:g} a label, language model {tuned.lm_weight:g}, "
        f"hotwords {domain.hotword_weight:g}.",
        "",
        *(_tuning_lines(result) if result else ["Default weights, not tuned: no --dev-split was given.", ""]),
        "## Language model",
        "",
        *(f"- {line}" for line in model_lines),
        "",
        "## New words",
        "",
        *_word_lines(loaded, text, new),
        *_known_lines(known),
        *_left_out_lines(text.left_out),
    ]
    write_whole(path, ("\n".join(lines).rstrip() + "\n").encode())


def _tuning_lines(result: TunedDomain) -> list[str]:
    target, source = result.before
    lines = ["| WER % | decoder | before | with the domain |", "|---|---|---|---|"]
    for split in (target, source):
        for name, wer in result.before[split].items():
            after = result.after[split].get(name)
            shown = "" if after is None else f"{100 * after:.2f}"
            chosen = " (chosen)" if name == result.tuned.decoder else ""
            lines.append(f"| {split} | {name}{chosen} | {100 * wer:.2f} | {shown} |")
    limit = f"{source} was allowed up to {100 * result.promise['limit']:.2f} %."
    return [*lines, "", f"{limit} These are dev splits that the weights were chosen on: test elsewhere.", ""]


def _word_lines(loaded: Checkpoint, text: DomainText, new: Sequence[tuple[str, int]]) -> list[str]:
    if not new:
        return ["None.", ""]
    pieces = loaded.tokenizer.pieces
    lines = ["| word | in the text | pieces |", "|---|---|---|"]
    for word, count in new[:MOST_WORDS]:
        spelled = " ".join(
            pieces[label] for label in loaded.tokenizer.encode(word) if label >= NUM_SPECIAL_IDS
        )
        lines.append(f"| {word} | {count} | {spelled} |")
    shares = sum(count for _, count in new) / count_words(text.sentences).total()
    more = f"{len(new) - MOST_WORDS:,} more. " if len(new) > MOST_WORDS else ""
    return [*lines, "", f"{more}They are {100 * shares:.1f} % of the text.", ""]


def _known_lines(known: Sequence[KnownWord]) -> list[str]:
    if not known:
        return []
    places = list(known[0].in_source)
    lines = [
        "## Known words",
        "",
        "No hotwords, because the recogniser was trained on them. Rarest first:",
        "",
    ]
    lines += [f"| word | in the text |{''.join(f' in {place} |' for place in places)}"]
    lines += ["|---" * (2 + len(places)) + "|"]
    for each in known[:MOST_KNOWN]:
        counts = "".join(f" {count} |" for count in each.in_source.values())
        lines.append(f"| {each.word} | {each.in_text} |{counts}")
    more = f"{len(known) - MOST_KNOWN:,} more. " if len(known) > MOST_KNOWN else ""
    remedy = f"To make one a hotword, delete the # before it in {HOTWORDS}, or list it with --hotwords."
    return [*lines, "", more + remedy, ""]


def _left_out_lines(left_out: Sequence[str]) -> list[str]:
    if not left_out:
        return []
    title = f"## Left out: {name_count(len(left_out), 'line')} that cannot be used"
    return [title, "", *(f"- {reason}" for reason in left_out), ""]

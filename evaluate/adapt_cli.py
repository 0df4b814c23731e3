"""`vox adapt`: a domain folder from text alone."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vox.demo.synthesize import TRAIN_VOICES
from vox.options import (
    batch_seconds_option,
    checkpoint_option,
    device_option,
    root_option,
    skip_bad_option,
    texts_option,
    workers_option,
)

if TYPE_CHECKING:
    from evaluate.adapt import DevSplit
    from vox.checkpoint.files import Checkpoint


@click.command()
@texts_option("Text of the domain, a sentence a line")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="A new folder.")
@checkpoint_option
@click.option(
    "--hotwords",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Your own list, in place of the new words of the text; these become comments in it.",
)
@click.option(
    "--source-text",
    "source_texts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What the recogniser was trained on; repeatable. [default: its splits under --root]",
)
@click.option(
    "--dev-split", metavar="SPLIT", help="Recordings of the domain to tune on. [default: no tuning]"
)
@click.option(
    "--source-dev-split", metavar="SPLIT", help="Where the WER may not rise. [default: the checkpoint's own]"
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    metavar="W",
    help="How much the source's WER may rise: 0.01 is one point. [default: up to its 95 % interval's end]",
)
@click.option(
    "--order", type=click.IntRange(1, 10), default=4, show_default=True, help="Of the n-gram model."
)
@click.option(
    "--beam", type=click.IntRange(1, 1000), default=8, show_default=True, help="Texts of an utterance."
)
@click.option(
    "--synthesize",
    metavar="SPLIT",
    help="Speak the sentences into this new split as well, to train stage 3 on (English; extra `demo`).",
)
@click.option(
    "--voices",
    type=click.IntRange(1, len(TRAIN_VOICES)),
    default=3,
    show_default=True,
    help="Of each sentence with --synthesize.",
)
@root_option
@device_option
@batch_seconds_option(120.0)
@workers_option(2)
@skip_bad_option
def adapt(
    texts: tuple[Path, ...],
    out: Path,
    checkpoint: Path | None,
    hotwords: Path | None,
    source_texts: tuple[Path, ...],
    dev_split: str | None,
    source_dev_split: str | None,
    tolerance: float | None,
    order: int,
    beam: int,
    synthesize: str | None,
    voices: int,
    root: Path,
    device: str,
    batch_seconds: float,
    workers: int,
    skip_bad: bool,
) -> None:
    """Adapt to a domain from its text alone, without training.

    Writes a folder for `--domain DIR` of `vox evaluate` and `vox transcribe`: a language model of the text
    mixed with one of the training transcripts, the words that these do not have as hotwords, and weights.
    With --dev-split the weights are tuned, so that the WER of the source's dev split does not rise.
    """
    from dataclasses import replace

    from vox.checkpoint.series import find_checkpoint
    from vox.corpus import find_split
    from vox.disk import check_writable
    from vox.errors import ConfigError

    # Before torch is imported, which takes seconds.
    for name, value in (("--source-dev-split", source_dev_split), ("--tolerance", tolerance)):
        if value is not None and dev_split is None:
            raise ConfigError(f"{name} without --dev-split", remedy="add --dev-split SPLIT")
    _refuse_existing(out)
    check_writable(out, "--out")
    folder = find_checkpoint(checkpoint).resolve()
    if dev_split is not None:
        find_split(root, dev_split)

    from evaluate.adapt import default_domain, tune_domain
    from evaluate.domain_report import write_domain_report
    from evaluate.domain_text import read_texts, write_hotwords, write_language_model
    from evaluate.synthesize import check_synthesis, synthesize_split
    from vox.additions import DEFAULT_HOTWORD_WEIGHT, plan_search, read_additions
    from vox.checkpoint.files import load_recogniser
    from vox.device import pick_device
    from vox.disk import hash_file
    from vox.domain import HOTWORDS, LM, REPORT, Domain, read_model_sha256, write_weights
    from vox.runs.layout import TOKENIZER

    place = pick_device(device)
    loaded = load_recogniser(folder, place)
    if not loaded.tokenizer.has_words:
        raise ConfigError(
            "vox adapt is about words, and the checkpoint's alphabet has none (characters)",
            where=loaded.folder,
            remedy="make a language model of the text with vox lm, and give it to --lm",
        )
    if synthesize is not None:
        check_synthesis(root, synthesize, loaded.normaliser)
    before = replace(plan_search(loaded.folder, []).options, beam=beam)
    splits = None
    if dev_split is not None:
        splits = _load_dev_splits(root, loaded, dev_split, source_dev_split, skip_bad=skip_bad)
    text = read_texts(loaded, texts, source_texts, root)
    out.mkdir(parents=True, exist_ok=True)
    write_hotwords(text, hotwords, out / HOTWORDS, loaded.normaliser)
    model_lines = write_language_model(text, loaded, out / LM, order)
    for line in model_lines:
        click.echo(line)
    additions = read_additions(out / LM, None, out / HOTWORDS, (), None, loaded.normaliser)
    additions.make_scorers(loaded.tokenizer, place)  # raises before the work for a list that does not fit
    result = None
    if splits is not None:
        result = tune_domain(
            loaded,
            additions,
            splits[0],
            splits[1],
            before,
            tolerance=tolerance,
            batch_seconds=batch_seconds,
            workers=workers,
        )
    tuned = default_domain(beam) if result is None else result.tuned
    hotword_weight = DEFAULT_HOTWORD_WEIGHT if result is None else result.hotword_weight
    domain = Domain(
        tuned, hotword_weight, hash_file(loaded.folder / TOKENIZER), read_model_sha256(loaded.folder)
    )
    write_domain_report(out / REPORT, loaded, text, additions.hotwords, model_lines, domain, result)
    click.echo((out / REPORT).read_text(encoding="utf-8"))
    click.echo(f"written: {write_weights(out, domain).parent}")
    if synthesize is not None:
        synthesize_split(root, synthesize, text.sentences, voices)


def _refuse_existing(out: Path) -> None:
    """Raise ConfigError if the folder holds more than what an interrupted run left: it has no weights."""
    from vox.domain import HOTWORDS, LM
    from vox.errors import ConfigError

    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {HOTWORDS, LM}):
        raise ConfigError(
            "the folder is there already", where=out, remedy="choose another --out, or delete it"
        )


def _load_dev_splits(
    root: Path, loaded: "Checkpoint", dev_split: str, source_dev_split: str | None, *, skip_bad: bool
) -> tuple["DevSplit", "DevSplit"]:
    """Load the target's dev split and the source's: the one named, or else those of the checkpoint."""
    from evaluate.adapt import DevSplit
    from evaluate.splits import load_splits
    from vox.corpus import refuse_without_words
    from vox.errors import ConfigError

    of_source = loaded.config.adapt.source_dev_split or loaded.config.data.dev_split
    names = of_source if source_dev_split is None else (source_dev_split,)
    if dev_split in names:
        raise ConfigError(
            "this dev split is the source's, so it cannot be the target's too",
            where=dev_split,
            remedy="name recordings of the domain with --dev-split, or another --source-dev-split",
        )
    target, source = (
        load_splits(root, some, skip_bad=skip_bad, normalise=loaded.normaliser)[0]
        for some in ((dev_split,), names)
    )
    for some, utterances in ((dev_split, target), (", ".join(names), source)):
        refuse_without_words(some, utterances)
    return DevSplit(dev_split, target), DevSplit("+".join(names), source)

"""`vox tune`: choose the search and its weights on a dev split, and keep them with the checkpoint."""

from dataclasses import replace
from pathlib import Path

import click

from vox.options import (
    batch_seconds_option,
    checkpoint_option,
    device_option,
    root_option,
    skip_bad_option,
    workers_option,
)


@click.command()
@click.option(
    "--split",
    "splits",
    multiple=True,
    required=True,
    help="A dev split, never a test split; several count as one.",
)
@checkpoint_option
@click.option(
    "--beam", type=click.IntRange(1, 1000), default=8, show_default=True, help="Texts of an utterance."
)
@click.option(
    "--lm",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Tune with this language model; its weights are kept separately.",
)
@root_option
@device_option
@batch_seconds_option(120.0)
@workers_option(2)
@skip_bad_option
def tune(
    splits: tuple[str, ...],
    checkpoint: Path | None,
    beam: int,
    lm: Path | None,
    root: Path,
    device: str,
    batch_seconds: float,
    workers: int,
    skip_bad: bool,
) -> None:
    """Choose the decoder of a checkpoint and its weights.

    Finds the weights of `rescore` (of CTC, a label, the language model) with the lowest WER on a split,
    compares it with `joint` and the greedy decoders, and fits the temperature of the confidences.
    Writes tuned.json into the checkpoint's folder, where `vox transcribe` and `vox evaluate` read it.
    """
    from vox.checkpoint.series import find_checkpoint
    from vox.corpus import find_split

    # Before torch is imported, which takes seconds.
    folder = find_checkpoint(checkpoint).resolve()
    splits = tuple(dict.fromkeys(splits))
    for split in splits:
        find_split(root, split)

    from evaluate.splits import load_splits
    from evaluate.tune import tune as tune_weights
    from vox.additions import read_additions
    from vox.checkpoint.files import load_recogniser
    from vox.corpus import refuse_without_words
    from vox.decode import SearchOptions
    from vox.device import pick_device
    from vox.disk import check_writable
    from vox.tuned import read_tuned, write_tuned

    check_writable(folder, "--checkpoint")
    place = pick_device(device)
    loaded = load_recogniser(folder, place)
    read_tuned(folder, lm)  # fail on a damaged tuned.json before the work
    scorers = read_additions(lm, None, None, (), None).make_scorers(loaded.tokenizer, place)
    utterances, _ = load_splits(root, splits, skip_bad=skip_bad, normalise=loaded.normaliser)
    title = "+".join(splits)
    refuse_without_words(title, utterances)
    tuned = tune_weights(
        loaded,
        utterances,
        title,
        replace(SearchOptions(), beam=beam, scorers=scorers),
        batch_seconds=batch_seconds,
        workers=workers,
    )
    for name, wer in tuned.wer.items():
        chosen = "  <- chosen" if name == tuned.decoder else ""
        click.echo(f"{name:<12}{100 * wer:>8.2f} % {loaded.tokenizer.rate}{chosen}")
    lm_weight = f", language model {tuned.lm_weight:g}" if lm is not None else ""
    click.echo(
        f"rescore: CTC weight {tuned.ctc_weight:g}, {tuned.length_bonus:g} a label{lm_weight}; "
        f"temperature {tuned.temperature:.2f}"
    )
    click.echo(f"written: {write_tuned(folder, lm, tuned)}")

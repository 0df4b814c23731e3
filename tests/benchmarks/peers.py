"""CTC search: Vox beside flashlight-text and pyctcdecode, over the same log-probabilities.

    python -m tests.benchmarks.peers --checkpoint RUN/best --split S --peer-python VENV/bin/python

The peers run in an environment of their own (`pip install flashlight-text pyctcdecode "numpy<2"`). Everything
runs on one thread of a CPU; seconds are the CPU's, of the search alone. `equal` is the share of utterances
with Vox's text, `score` the largest difference of scores where the texts are equal.

T frames, V pieces.
"""

import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from vox.additions import plan_search
from vox.checkpoint.files import Checkpoint, load_recogniser
from vox.corpus import load_split
from vox.data.batch import AudioBatch
from vox.data.sources import iterate_by_length
from vox.decode.ctc_beam import search_ctc
from vox.decode.options import SearchOptions
from vox.hear import hear
from vox.score import score
from vox.text import BOS_ID, EOS_ID, UNK_ID, WORD_MARK

NEVER = -1e4  # of the pieces that no search may write
BATCH_SECONDS, BATCH_UTTERANCES = 60.0, 16


@dataclass(frozen=True)
class Found:
    """What one search found: a text and a score for each utterance, and what it cost."""

    texts: list[str]
    scores: list[float]
    seconds: float


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--root", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
@click.option("--split", required=True)
@click.option("--peer-python", required=True, help="Python of the environment that has the peers.")
@click.option("--lm", type=click.Path(path_type=Path, exists=True), help="An ARPA file of `vox lm`.")
@click.option("--lm-weight", default=0.5, show_default=True)
@click.option("--beam", "beams", type=int, multiple=True, default=(4, 8, 16), show_default=True)
def main(
    checkpoint: Path,
    root: Path,
    split: str,
    peer_python: str,
    lm: Path | None,
    lm_weight: float,
    beams: tuple[int, ...],
) -> None:
    """Search with each, and print one table."""
    torch.set_num_threads(1)
    loaded = load_recogniser(checkpoint.resolve())
    references, log_probs = hear_split(loaded, root, split)
    click.echo(f"{split}: {len(references)} utterances; {'no LM' if lm is None else lm.name}")
    click.echo(f"{'':24}{'WER %':>8}{'equal %':>9}{'score':>10}{'CPU s':>8}{'of Vox':>8}")
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "log_probs.npz"
        np.savez(
            saved,
            pieces=np.array(loaded.tokenizer.pieces),
            num_frames=[len(each) for each in log_probs],
            log_probs_TV=torch.cat(log_probs).numpy(),
        )
        for beam in beams:
            weight = None if lm is None else lm_weight
            plan = plan_search(checkpoint, ["ctc_beam"], beam=beam, lm=lm, lm_weight=weight)
            ours = search_with_vox(loaded, log_probs, plan.options_for(loaded, torch.device("cpu")))
            _print_row(f"Vox, beam {beam}", ours, references, ours)
            peer_arguments = [peer_python, saved, beam, "" if lm is None else lm, weight or 0.0]
            for name, theirs in search_with_peers(peer_arguments).items():
                _print_row(f"{name}, beam {beam}", theirs, references, ours)


def hear_split(loaded: Checkpoint, root: Path, split: str) -> tuple[list[str], list[torch.Tensor]]:
    """Return the transcripts of a split and CTC's log-probabilities [T, V] of each utterance."""
    utterances = load_split(root, split)
    log_probs: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for batch in iterate_by_length(utterances, BATCH_SECONDS, 0):
            assert isinstance(batch, AudioBatch), f"cannot read {batch}"
            encoded = hear(loaded.recogniser, batch)
            encoded.ctc_log_probs_BTV[..., [BOS_ID, EOS_ID, UNK_ID]] = NEVER
            for row, name in enumerate(batch.ids):
                log_probs[name] = encoded.ctc_log_probs_BTV[row, : int(encoded.num_frames_B[row])]
    return [u.text for u in utterances], [log_probs[u.id] for u in utterances]


def search_with_vox(loaded: Checkpoint, log_probs: list[torch.Tensor], options: SearchOptions) -> Found:
    """Run Vox's CTC beam search, some utterances at a time."""
    start = time.process_time()
    best = []
    with torch.inference_mode():
        for first in range(0, len(log_probs), BATCH_UTTERANCES):
            some = log_probs[first : first + BATCH_UTTERANCES]
            num_frames_B = torch.tensor([len(each) for each in some])
            best += [found[0] for found in search_ctc(pad_sequence(some, True), num_frames_B, options)]
    seconds = time.process_time() - start
    return Found([loaded.tokenizer.decode(h.ids) for h in best], [h.score or 0.0 for h in best], seconds)


def search_with_peers(arguments: list[object]) -> dict[str, Found]:
    """Run the peers in their own environment."""
    python, *rest = map(str, arguments)
    command = [python, str(Path(__file__).with_name("peer_decoders.py")), *rest]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        name: Found([_join(text) for text in found["texts"]], found["scores"], found["seconds"])
        for name, found in json.loads(done.stdout).items()
    }


def _join(pieces: list[str]) -> str:
    """Return the text of pieces; of words where no piece has the mark of a word's beginning."""
    if not any(WORD_MARK in piece for piece in pieces):
        return " ".join(pieces)
    return " ".join("".join(pieces).replace(WORD_MARK, " ").split())


def _print_row(name: str, found: Found, references: list[str], ours: Found) -> None:
    equal = [mine == theirs for mine, theirs in zip(ours.texts, found.texts, strict=True)]
    gaps = [abs(a - b) for a, b, is_equal in zip(ours.scores, found.scores, equal, strict=True) if is_equal]
    click.echo(
        f"{name:24}{100 * score(references, found.texts).wer:8.2f}{100 * sum(equal) / len(equal):9.1f}"
        f"{max(gaps, default=0.0):10.4f}{found.seconds:8.1f}{found.seconds / ours.seconds:8.2f}"
    )


if __name__ == "__main__":
    main()

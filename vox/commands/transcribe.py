"""`vox transcribe`: one's own audio to text."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vox.disk import check_writable, write_whole
from vox.errors import AudioError
from vox.options import BEAM_OPTION, VAD_OPTION, add_scorer_options, checkpoint_option, device_option
from vox.transcript import FORMATS, Transcript

if TYPE_CHECKING:
    from vox.transcribe import Transcriber

log = logging.getLogger(__name__)

STDIN = Path("/dev/stdin")
PARTIAL_SUFFIX = ".partial"


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@checkpoint_option
@click.option(
    "--decoder",
    metavar="NAME",
    help="ctc, attention (greedy), ctc_beam, attention_beam, rescore or joint. "
    "[default: what vox tune chose; rescore where an option asks for a search; else the better of ctc and "
    "attention on the dev split]",
)
@BEAM_OPTION
@add_scorer_options
@VAD_OPTION
@click.option(
    "--nbest",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many texts of a search to write, best first.",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["text", *FORMATS]),
    default="text",
    show_default=True,
    help="text, or with the words' times: json and tsv (confidences too), ctm, and captions as srt or vtt.",
)
@click.option(
    "--out",
    type=click.Path(),
    metavar="PATH",
    help="Write a file, or for several FILEs a folder with a file each. Killed and started again, it goes "
    "on where it was. [default: the standard output]",
)
@device_option
def transcribe(
    files: tuple[Path, ...],
    checkpoint: Path | None,
    decoder: str | None,
    beam: int | None,
    lm: Path | None,
    lm_weight: float | None,
    hotwords: Path | None,
    hotword: tuple[str, ...],
    hotword_weight: float | None,
    domain: Path | None,
    vad: bool,
    nbest: int,
    format_name: str,
    out: str | None,
    device: str,
) -> None:
    """Write down what is said in audio files.

    Prints the text; for several files, one line each: path, tab, text. With --nbest, a line for each text,
    its score before it. Any sample rate, mono or not. A FILE may be a pipe, and - is the standard input.
    """
    import vox

    recordings = [STDIN if str(path) == "-" else path for path in files]
    if out is None and format_name in ("srt", "vtt", "tsv") and len(files) > 1:
        raise click.UsageError(f"--format {format_name} is for one FILE, or for several with --out FOLDER")
    if len(recordings) == 1 and not recordings[0].exists():  # found here, before seconds of imports
        raise AudioError("no such recording", where=recordings[0], remedy="correct the path")
    outputs = {} if out is None else plan_outputs(recordings, out, format_name)
    transcriber = vox.load(
        checkpoint,
        decoder=decoder,
        beam=beam,
        nbest=nbest,
        lm=lm,
        lm_weight=lm_weight,
        hotwords=hotword,
        hotword_file=hotwords,
        hotword_weight=hotword_weight,
        domain=domain,
        vad=vad,
        device=device,
    )
    if out is None:
        for transcript in transcriber.transcribe(recordings):
            name = f"{click.format_filename(transcript.audio)}\t" if len(files) > 1 else ""
            click.echo(format_transcript(transcript, format_name, nbest, name), nl=False)
    else:
        write_transcripts(transcriber, outputs, out, format_name, nbest)


def plan_outputs(recordings: Sequence[Path], out: str, format_name: str) -> dict[Path, Path]:
    """Return the file to write for each recording, and create the folder if there are several recordings.

    A single recording's is `out` itself unless that is a folder or ends with a slash. Raises UsageError where
    two recordings would have one file, where a recording would be replaced, and for a folder that is missing;
    VoxError for one that cannot be written.
    """
    path = Path(out)
    if len(recordings) == 1 and not path.is_dir() and not out.endswith(os.sep):
        if not path.parent.is_dir():
            raise click.UsageError(f"--out {out}: there is no folder {path.parent}")
        check_writable(out, "--out", folder=path.parent)
        outputs = {recordings[0]: path}
    else:
        suffix = ".txt" if format_name == "text" else f".{format_name}"
        outputs = {recording: path / f"{recording.stem}{suffix}" for recording in recordings}
        first: dict[Path, Path] = {}
        for recording in recordings:
            output = outputs[recording]
            if output in first:
                both = f"{first[output]} and {recording} would both be {output}"
                raise click.UsageError(f"--out {out}: {both}; transcribe them one by one")
            first[output] = recording
        check_writable(out, "--out")
        path.mkdir(parents=True, exist_ok=True)
    for output in outputs.values():
        if output.exists() and not output.is_file():
            raise click.UsageError(f"--out {out}: {output} is not a regular file; leave --out out to print")
        if any(output.exists() and output.samefile(each) for each in recordings if each.exists()):
            raise click.UsageError(f"--out {out}: it would replace the recording {output}")
    return outputs


def write_transcripts(
    transcriber: "Transcriber", outputs: dict[Path, Path], out: str, format_name: str, nbest: int
) -> None:
    """Write each recording's file as soon as it is decoded; keep what is decoded in a partial file."""
    from vox.partial import PartialFile

    paths = {str(recording): path for recording, path in outputs.items()}
    is_folder = Path(out).is_dir()
    partial_path = Path(out) / f"transcribe{PARTIAL_SUFFIX}" if is_folder else Path(f"{out}{PARTIAL_SUFFIX}")
    with PartialFile(partial_path, transcriber.identity()) as partial:
        try:
            for transcript in transcriber.transcribe(outputs, partial):
                path = paths[transcript.audio].resolve()  # a link stays one
                write_whole(path, format_transcript(transcript, format_name, nbest).encode())
                log.info("wrote %s", path)
        except KeyboardInterrupt:
            log.warning("%s keeps what is decoded; the same command goes on from there", partial_path)
            raise
        except AudioError:  # after the last recording: the others are written
            partial.remove()
            raise
        partial.remove()


def format_transcript(transcript: Transcript, format_name: str, nbest: int, name: str = "") -> str:
    """Format a transcript as one of FORMATS, or as text: a line for each of the n-best, after a name.

    Logs a warning if there is no word: in some formats nothing at all is written then.
    """
    if not transcript.text:
        log.warning("no word was recognised in %s", click.format_filename(transcript.audio))
    if format_name != "text":
        return FORMATS[format_name](transcript)
    lines = []
    for found in transcript.alternatives:
        score = "" if nbest == 1 or found.score is None else f"{found.score:.3f}\t"
        lines.append(f"{name}{score}{found.text}\n")
    return "".join(lines)

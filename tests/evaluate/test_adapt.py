"""vox adapt: which words are new, what a domain folder holds, who takes it, and what protects the source."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vox
import vox.demo.speak
from evaluate.adapt import DevSplit, tune_domain
from evaluate.domain_text import DomainText, write_hotwords
from evaluate.synthesize import check_synthesis
from tests.support.speech import make_speech, needs_espeak, write_split
from tests.support.untrained import make_tokenizer, save_arbitrary_checkpoint
from vox.additions import plan_search, read_additions
from vox.audio import read_audio
from vox.checkpoint.files import Checkpoint, load_recogniser
from vox.cli import main
from vox.config import TextConfig
from vox.corpus import Utterance, load_split
from vox.data.batch import AudioBatch
from vox.decode import Search, SearchOptions, make_search
from vox.disk import hash_file
from vox.domain import HOTWORDS, LM, REPORT, WEIGHTS, read_domain
from vox.errors import ConfigError, DomainError
from vox.hear import hear
from vox.hotword_list import list_lines, parse_hotwords
from vox.lm.arpa import BOS
from vox.lm.make import make_mixture
from vox.lm.text import piece_vocabulary
from vox.runs.layout import CHECKSUMS, MODEL, TOKENIZER, WORDS
from vox.text import ENGLISH, Normaliser
from vox.units import SAMPLE_RATE

DOMAIN_TEXT = "go zarn\n\nzarn quilp stop\nZarn, go!\n2 zarns\n"
SOURCE_TEXT = "go left\nstop right\ngo up\n"


@pytest.fixture(scope="module")
def checkpoint(tiny_wavlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a checkpoint with arbitrary outputs that depend on the audio."""
    return save_arbitrary_checkpoint(tmp_path_factory.mktemp("run") / "arbitrary", tiny_wavlm_dir)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data root with the texts, and two small dev splits."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "domain.txt").write_text(DOMAIN_TEXT)
    (folder / "source.txt").write_text(SOURCE_TEXT)
    write_split(folder, "target-dev", 3, speaker=8, first_seed=100)
    write_split(folder, "source-dev", 3, speaker=9, first_seed=200)
    return folder


def adapt(checkpoint: Path, root: Path, out: Path, *options: str) -> int:
    where = ["--checkpoint", str(checkpoint), "--root", str(root), "--device", "cpu", "--workers", "0"]
    texts = ["--text", str(root / "domain.txt"), "--source-text", str(root / "source.txt")]
    return main(["adapt", *texts, *where, "--out", str(out), *options])


@pytest.fixture(scope="module")
def domain(checkpoint: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a domain without dev splits."""
    out = tmp_path_factory.mktemp("adapt") / "domain"
    assert adapt(checkpoint, root, out) == 0
    return out


def test_new_words_are_ranked_and_lines_that_cannot_be_used_are_listed(domain: Path) -> None:
    lines = (domain / HOTWORDS).read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["zarn  # 3", "quilp  # 1"]
    report = (domain / REPORT).read_text()
    assert "| stop | 1 | 1 |\n| go | 2 | 2 |" in report  # known, rarest first
    assert "2 words that training did not have, 2 that it had, 2 hotwords" in report
    assert "not tuned: no --dev-split was given" in report
    assert "domain.txt:5: characters outside the alphabet (2)" in report


def test_known_words_are_listed_with_where_they_were_heard(tmp_path: Path) -> None:
    """A rare one, as a name of stage 3 that was heard once, becomes a hotword where a # is deleted."""
    sources = {"mine": Counter(zarn=1, go=3), "train": Counter(go=90, left=9)}
    text = DomainText(["go zarn", "quilp go"], [], sources)
    assert [(each.word, each.in_text, each.in_source) for each in text.find_known_words()] == [
        ("zarn", 1, {"mine": 1, "train": 0}),
        ("go", 2, {"mine": 3, "train": 90}),
    ]
    write_hotwords(text, None, tmp_path / "list", ENGLISH)
    lines = (tmp_path / "list").read_text()
    assert lines.endswith(
        "# zarn  # 1 in the text, 1 in mine\n# go  # 2 in the text, 3 in mine, 90 in train\n"
    )
    (tmp_path / "list").write_text(lines.replace("# zarn", "zarn"))
    hotwords = parse_hotwords(list_lines(tmp_path / "list"), ENGLISH)
    assert [each.phrase for each in hotwords] == ["quilp", "zarn"]


def test_a_domain_is_the_language_model_the_hotwords_and_the_weights(
    domain: Path, checkpoint: Path, root: Path, tmp_path: Path
) -> None:
    edited = tmp_path / "edited"
    edited.mkdir()
    for name in (LM, HOTWORDS, WEIGHTS):
        (edited / name).write_bytes((domain / name).read_bytes())
    content = json.loads((edited / WEIGHTS).read_text())
    content["tuned"] |= {"decoder": "joint", "beam": 5, "ctc_weight": 0.6, "length_bonus": 0.25}
    content["tuned"] |= {"lm_weight": 0.7, "temperature": 1.5}
    (edited / WEIGHTS).write_text(json.dumps(content | {"hotword_weight": 4.5}))
    plan = plan_search(checkpoint, [], domain=edited)
    assert (plan.decoders, plan.options.beam, plan.temperature) == (("joint",), 5, 1.5)
    assert (plan.options.ctc_weight, plan.options.length_bonus) == (0.6, 0.25)
    assert plan.additions == read_additions(edited / LM, 0.7, edited / HOTWORDS, (), 4.5)
    given = plan_search(checkpoint, ["rescore"], beam=3, lm_weight=0.1, hotword_weight=1, domain=edited)
    assert (given.decoders, given.options.beam) == (("rescore",), 3)
    assert (given.additions.lm_weight, given.additions.hotword_weight) == (0.1, 1)
    transcriber = vox.load(checkpoint, domain=edited, device="cpu")
    (transcript,) = transcriber.transcribe([make_speech(16_000, 1)])
    assert transcript.decoder == "joint"
    assert {"lm", "hotwords"} <= transcript.alternatives[0].parts.keys()
    # The command takes it, and counts each hotword by itself.
    out = tmp_path / "out"
    where = ["--split", "target-dev", "--checkpoint", str(checkpoint), "--root", str(root), "--device", "cpu"]
    assert main(["evaluate", *where, "--workers", "0", "--domain", str(edited), "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["decoders"]["joint"]["weights"] == {"lm": 0.7, "hotwords": 4.5}
    assert list(report["words"]) == ["zarn", "quilp"]


def test_tuned_on_both_splits(
    checkpoint: Path,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "domain"
    dev = ["--dev-split", "target-dev", "--source-dev-split", "source-dev", "--beam", "3"]
    root = shutil.copytree(root, tmp_path / "root")
    (root / "LibriSpeech" / "target-dev" / "8" / "1" / "8-1-0002.flac").write_bytes(b"")
    assert adapt(checkpoint, root, out, *dev) == 2
    assert "leave these out with --skip-bad" in capsys.readouterr().err
    assert adapt(checkpoint, root, out, *dev, "--skip-bad") == 0
    assert capsys.readouterr().out.endswith(f"written: {out}\n")
    tuned = read_domain(out, checkpoint).tuned
    assert (tuned.split, tuned.beam) == ("target-dev+source-dev", 3)
    assert "| source-dev | ctc |" in (out / REPORT).read_text()
    assert "source-dev was allowed up to" in (out / REPORT).read_text()
    assert "tuned on another checkpoint" not in caplog.text
    other = shutil.copytree(checkpoint, tmp_path / "other")
    (other / CHECKSUMS).write_text(json.dumps({MODEL: "another"}))
    read_domain(out, other)
    assert "tuned on another checkpoint" in caplog.text


@pytest.fixture
def tuning(checkpoint: Path, root: Path, domain: Path) -> dict:
    """Return the arguments of tune_domain for two splits of known texts."""
    additions = read_additions(domain / LM, None, domain / HOTWORDS, (), None)
    target, source = (DevSplit(name, load_split(root, name)) for name in ("target-dev", "source-dev"))
    return {
        "loaded": load_recogniser(checkpoint),
        "additions": additions,
        "target": target,
        "source": source,
        "options": SearchOptions(beam=3),
        "batch_seconds": 60.0,
        "workers": 0,
    }


def test_weights_that_make_the_source_worse_are_not_kept(
    tuning: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chosen weights are so large that every text is the domain's; the source is what was heard."""
    loaded, options = tuning["loaded"], tuning["options"]
    search = make_search("rescore", options, loaded.tokenizer)
    monkeypatch.setattr("evaluate.adapt._choose", lambda *_: ([0.5, 0.5, 0.0, 1000.0, 1000.0], 1.0))
    source = tuning["source"]
    heard = [replace(u, text=_hear(loaded, search, u) or "go") for u in source.utterances]
    split = DevSplit(source.name, heard)
    result = tune_domain(**tuning | {"source": split})
    assert result.before[source.name]["rescore"] < 0.5
    assert min(result.after[source.name].values()) <= result.promise["limit"]
    assert (result.tuned.lm_weight, result.hotword_weight) == (0.0, 0.0)  # nothing less would do
    tolerant = tune_domain(**tuning | {"source": split, "tolerance": 100.0})
    assert (tolerant.tuned.lm_weight, tolerant.hotword_weight) == (1000.0, 1000.0)


def _hear(loaded: Checkpoint, search: Search, utterance: Utterance) -> str:
    waveforms_BS = torch.from_numpy(read_audio(utterance.audio_path))[None]
    batch = AudioBatch([utterance.id], waveforms_BS, torch.tensor([waveforms_BS.shape[1]]))
    with torch.inference_mode():
        (found,) = search(loaded.recogniser, hear(loaded.recogniser, batch))
    return loaded.tokenizer.decode(found[0].ids)


def test_a_list_of_one_s_own_is_kept_and_new_words_are_comments(
    checkpoint: Path, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.txt").write_text("Zarn: zarn, sarn @2  # the hero\n")
    assert adapt(checkpoint, root, tmp_path / "out", "--hotwords", str(tmp_path / "own.txt")) == 0
    lines = (tmp_path / "out" / HOTWORDS).read_text().splitlines()
    assert lines[0] == "Zarn: zarn, sarn @2  # the hero"
    assert lines[2:] == ["# quilp  # 1"]
    (hotword,) = plan_search(checkpoint, [], domain=tmp_path / "out").additions.hotwords
    assert (hotword.phrase, hotword.spellings, hotword.weight) == ("Zarn", ("zarn", "sarn"), 2.0)


def test_without_transcripts_the_checkpoint_s_word_counts_are_used(
    checkpoint: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "adapt",
        "--text",
        str(root / "domain.txt"),
        "--checkpoint",
        str(checkpoint),
        "--device",
        "cpu",
    ]
    arguments += ["--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "name their folder with --root, or a text with --source-text" in capsys.readouterr().err
    (checkpoint / WORDS).write_text(json.dumps({"go": 3, "zarn": 1, "stop": 1}))
    try:
        assert main(arguments) == 0
    finally:
        (checkpoint / WORDS).unlink()
    lines = (tmp_path / "out" / HOTWORDS).read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["quilp  # 1"]
    assert "# go  # 2 in the text, 3 in words.json" in lines


def test_the_mixture_fits_its_weights_on_sentences_held_out_and_then_counts_all(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    vocabulary, encode = piece_vocabulary(tokenizer)
    texts = {
        "domain": [encode("go left")] * 9 + [encode("stop")],
        "source": [encode("stop")] * 20,
    }
    lines = list(make_mixture(texts, "domain", tmp_path / "lm.arpa", 2, tokenizer))
    assert lines[2].startswith("perplexity by all, with weights 0.0")  # the tenth sentence is of the source
    texts["domain"][9] = encode("jump")  # of neither text otherwise
    list(make_mixture(texts, "domain", tmp_path / "lm.arpa", 2, tokenizer))
    first_piece = vocabulary[encode("jump")[0]]
    assert f"{BOS} {first_piece}\n" in (tmp_path / "lm.arpa").read_text()
    few = {"domain": texts["domain"][:9], "source": texts["source"]}
    (line,) = make_mixture(few, "domain", tmp_path / "few.arpa", 2, tokenizer)
    assert line.startswith(str(tmp_path / "few.arpa"))


@needs_espeak
def test_the_sentences_are_spoken_into_a_split(
    checkpoint: Path, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each that can be used, in two voices; a split that is there is left alone."""
    data = tmp_path / "data"
    shutil.copytree(root, data)
    speak = ["--synthesize", "spoken", "--voices", "2"]
    assert adapt(checkpoint, data, tmp_path / "out", *speak) == 0
    said = capfd.readouterr().out
    assert "spoken: 6 recordings" in said and "a synthesizer's speech" in said
    utterances = load_split(data, "spoken")
    assert len({(each.text, each.speaker) for each in utterances}) == len(utterances) == 6
    assert Counter(each.text for each in utterances) == {"go zarn": 2, "zarn quilp stop": 2, "zarn go": 2}
    assert min(each.num_samples or 0 for each in utterances) > SAMPLE_RATE // 2
    assert [path.name for path in data.iterdir() if path.name.startswith(".")] == []
    assert adapt(checkpoint, data, tmp_path / "again", *speak) == 2
    assert "the split exists" in capfd.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_split_is_spoken_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_disk(root: Path, *_: object) -> Iterator[object]:
        (root / "LibriSpeech" / "spoken").mkdir(parents=True)
        yield None, SAMPLE_RATE
        raise OSError("full")

    (tmp_path / "other.jsonl").touch()
    monkeypatch.setattr(vox.demo.speak, "write_corpus", fill_the_disk)
    with pytest.raises(OSError, match="full"):
        vox.demo.speak.write_split(tmp_path, "spoken", ["go"], 1, 0)
    assert list(tmp_path.rglob("*")) == [tmp_path / "other.jsonl"]


def test_what_cannot_be_spoken_is_refused_before_any_work(
    checkpoint: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, found in (("tr", None), ("enm", None), ("en_GB", "en"), (None, None)):
        normaliser = Normaliser(TextConfig(alphabet="letters", language=name))
        with nullcontext() if found else pytest.raises(ConfigError, match="speaks English"):
            check_synthesis(tmp_path, "spoken", normaliser)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert adapt(checkpoint, root, tmp_path / "out", "--synthesize", "spoken") == 2
    error = capsys.readouterr().err
    assert "pip install 'vox-asr[demo]'" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def _other_tokenizer(folder: Path) -> None:
    content = json.loads((folder / WEIGHTS).read_text())
    (folder / WEIGHTS).write_text(json.dumps(content | {"tokenizer_sha256": "0" * 64}))


BAD_DOMAINS = {
    "another tokenizer": (_other_tokenizer, r"a domain made for another tokenizer"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"not a domain: it has no weights.json"),
    "no model": (lambda folder: (folder / LM).unlink(), r"not a domain: it has no lm.arpa"),
    "damaged": (lambda folder: (folder / WEIGHTS).write_text('{"format": 1}'), r"damaged weights"),
    "newer": (lambda folder: (folder / WEIGHTS).write_text('{"format": 2}'), r"a newer Vox"),
}


@pytest.mark.parametrize("name", BAD_DOMAINS)
def test_a_domain_that_does_not_fit_is_one_line(
    name: str, domain: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for path in domain.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change, message = BAD_DOMAINS[name]
    change(tmp_path)
    with pytest.raises(DomainError, match=message):
        plan_search(checkpoint, [], domain=tmp_path)
    assert read_domain(domain, checkpoint).tokenizer_sha256 == hash_file(checkpoint / TOKENIZER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lm", "x.arpa"], "a language model and hotwords of its own"),
        (["--hotword", "go"], "a language model and hotwords of its own"),
        (["--decoder", "ctc"], "--domain is for a search"),
    ],
)
def test_what_contradicts_a_domain_is_refused(
    options: list[str],
    message: str,
    domain: Path,
    checkpoint: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--split", "target-dev", "--checkpoint", str(checkpoint), "--root", str(root), "--device", "cpu"]
    assert main(["evaluate", *where, "--domain", str(domain), *options]) == 2
    assert message in capsys.readouterr().err


BAD_INPUT = {
    "empty text": ("\n\n", [], "a text without a line that can be used"),
    "digits only": ("22\n", [], "a text without a line that can be used"),
    "source dev alone": ("go zarn\n", ["--source-dev-split", "x"], "add --dev-split SPLIT"),
    "tolerance alone": ("go zarn\n", ["--tolerance", "0.1"], "--tolerance without --dev-split"),
    "no such split": ("go zarn\n", ["--dev-split", "nowhere"], "no split nowhere"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_no_folder(
    name: str, checkpoint: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, options, message = BAD_INPUT[name]
    (tmp_path / "text").write_text(text)
    arguments = ["adapt", "--text", str(tmp_path / "text"), "--source-text", str(root / "source.txt")]
    arguments += ["--checkpoint", str(checkpoint), "--root", str(root), "--out", str(tmp_path / "out")]
    assert main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_overwritten(
    domain: Path, checkpoint: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (domain / HOTWORDS).read_text()
    assert adapt(checkpoint, root, domain) == 2
    assert "the folder is there already" in capsys.readouterr().err
    assert (domain / HOTWORDS).read_text() == before

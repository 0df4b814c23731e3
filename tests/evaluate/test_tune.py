"""vox tune: weights from lists of texts, the temperature, and the commands that use them."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import vox
from evaluate.tune import Lists, _collect_words, choose_weights
from tests.support.speech import make_speech, write_split
from tests.support.untrained import save_arbitrary_checkpoint
from vox.additions import plan_search
from vox.cli import main
from vox.errors import CheckpointError
from vox.text import BLANK_ID, train_tokenizer
from vox.tuned import TUNED, Tuned, read_tuned, write_tuned

TUNING = Tuned("rescore", 6, 0.7, 0.5, 0.2, 1.5, "dev", {"ctc": 0.1, "rescore": 0.05})


def test_weights_are_those_that_put_the_right_texts_first() -> None:
    """The right text is first for CTC weights from 0.35 to 0.65; the middle of the plateau is 0.5."""
    errors_BK = [[0, 2], [0, 1]]
    parts_BKP = [
        [[-1.0, -2.0, 3.0], [-1.65, -1.65, 3.0]],  # CTC prefers the right one, attention the other
        [[-2.0, -1.0, 3.0], [-1.65, -1.65, 3.0]],  # the other way round
    ]
    ctc_weight, _, lm_weight, errors = choose_weights(errors_BK, parts_BKP, has_lm=False)
    assert (ctc_weight, lm_weight, errors) == (0.5, 0.0, 0)


def test_the_default_weights_stay_where_none_are_better(caplog: pytest.LogCaptureFixture) -> None:
    """A split that all weights read alike, with a warning; and one that CTC weights below 0.65 read right."""
    text = [-1.0, -2.0, 3.0]
    assert choose_weights([[0, 0]] * 3, [[text, text]] * 3, has_lm=False) == (0.3, 0.0, 0.0, 0)
    assert choose_weights([[0]], [[[*text, -4.0]]], has_lm=True) == (0.3, 0.0, 0.5, 0)
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 2 and all("cannot tell weights apart" in line for line in warnings)
    attention_is_right = [[[-2.0, -1.0, 3.0], [-1.65, -1.65, 3.0]]]
    assert choose_weights([[0, 1]], attention_is_right, has_lm=False) == (0.3, 0.0, 0.0, 0)
    assert len(caplog.records) == 2


def test_the_bonus_and_the_language_model_are_found() -> None:
    longer_is_right = [[[-1.0, -1.0, 3.0, -2.0], [-0.6, -0.6, 2.0, -2.0]]]
    _, bonus, _, errors = choose_weights([[0, 1]], longer_is_right, has_lm=True)
    assert (bonus > 0.4, errors) == (True, 0)
    known_is_right = [[[-1.0, -1.0, 3.0, -1.0], [-0.9, -0.9, 3.0, -3.0]]]
    _, _, lm_weight, errors = choose_weights([[0, 1]], known_is_right, has_lm=True)
    assert (lm_weight > 0, errors) == (True, 0)


def test_the_temperature_is_fitted_to_which_words_are_right() -> None:
    """Of two texts: the second of three words is wrong; one word, and right."""
    tokenizer = train_tokenizer(["go left", "go right now", "left left right"], 20)
    lists = Lists()
    for text, reference in (("go left now", "go right now"), ("right", "right")):
        labels = tokenizer.encode(text)
        frames = torch.tensor([label for each in labels for label in (each, BLANK_ID)])
        log_probs_TV = (8.0 * F.one_hot(frames, tokenizer.vocab_size).float()).log_softmax(1)
        _collect_words(log_probs_TV, labels, reference, tokenizer, lists)
    assert lists.is_right == [True, False, True, True]
    assert sorted(set(lists.words)) == [0, 1, 2, 3]
    rows_UV = torch.cat(lists.rows_UV)
    assert rows_UV.argmax(1).tolist() == lists.labels
    assert len(lists.labels) == len(lists.words) == len(rows_UV)


def test_tune_writes_what_transcribe_and_evaluate_take(
    tiny_wavlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_arbitrary_checkpoint(tmp_path / "run" / "arbitrary", tiny_wavlm_dir)
    for name, seed in (("dev", 100), ("dev2", 200)):  # of the same ids
        write_split(tmp_path / "data", name, 2, speaker=8, first_seed=seed)
    where = ["--checkpoint", str(checkpoint), "--root", str(tmp_path / "data"), "--device", "cpu"]
    where += ["--split", "dev", "--split", "dev2"]
    assert main(["tune", "--beam", "4", *where, "--workers", "0"]) == 0
    assert capsys.readouterr().out.endswith(f"written: {checkpoint / TUNED}\n")
    tuned = read_tuned(checkpoint, None)
    assert tuned is not None and (tuned.split, tuned.beam) == ("dev+dev2", 4)
    assert set(tuned.wer) == {"ctc", "attention", "rescore", "joint"}
    assert tuned.decoder == min(tuned.wer, key=lambda name: tuned.wer[name])
    # Among the texts of the beam none is better, so the weights cannot lose to the default ones.
    out = tmp_path / "out"
    assert main(["evaluate", "--decoder", "rescore", *where, "--out", str(out)]) == 0
    figures = json.loads((out / "report.json").read_text())["decoders"]["rescore"]
    assert (figures["beam"], figures["ctc_weight"]) == (4, tuned.ctc_weight)
    assert figures["wer"] == pytest.approx(tuned.wer["rescore"])


def test_what_was_tuned_is_the_default_and_options_go_before_it(tiny_wavlm_dir: Path, tmp_path: Path) -> None:
    checkpoint = save_arbitrary_checkpoint(tmp_path / "run" / "arbitrary", tiny_wavlm_dir)
    assert plan_search(checkpoint, []).decoders == ()
    assert plan_search(checkpoint, [], hotwords=["go"]).decoders == ("rescore",)
    write_tuned(checkpoint, None, TUNING)
    plan = plan_search(checkpoint, [])
    assert (plan.decoders, plan.temperature) == (("rescore",), 1.5)
    assert (plan.options.beam, plan.options.ctc_weight, plan.options.length_bonus) == (6, 0.7, 0.5)
    assert plan_search(checkpoint, ["joint"], beam=3).options.beam == 3
    assert plan_search(checkpoint, [], nbest=12).options.beam == 12
    transcriber = vox.load(checkpoint, device="cpu")
    (transcript,) = transcriber.transcribe([make_speech(16_000, 1)])
    assert (transcript.decoder, transcriber.temperature) == ("rescore", 1.5)


def test_each_language_model_has_its_own_weights(tmp_path: Path) -> None:
    lm = tmp_path / "lm.arpa"
    lm.write_text("one model")
    write_tuned(tmp_path, None, TUNING)
    assert read_tuned(tmp_path, lm) is None
    write_tuned(tmp_path, lm, Tuned("ctc", 8, 0.1, 0.0, 0.9, 1.0, "dev", {}))
    assert read_tuned(tmp_path, None) == TUNING
    assert plan_search(tmp_path, ["rescore"], lm=lm).additions.lm_weight == 0.9
    assert plan_search(tmp_path, ["rescore"], lm=lm, lm_weight=0.4).additions.lm_weight == 0.4
    lm.write_text("another model")
    assert read_tuned(tmp_path, lm) is None


WRONG_BEAM = json.dumps({"format": 1, "entries": {"a": {**asdict(TUNING), "beam": "16"}}})


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 1, "entries": {"a": {}}}', '{"format": 2}', WRONG_BEAM]
)
def test_a_file_of_weights_that_cannot_be_read_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / TUNED).write_text(content)
    with pytest.raises(CheckpointError, match=r"tuned.json; (delete it|update Vox)"):
        read_tuned(tmp_path, None)

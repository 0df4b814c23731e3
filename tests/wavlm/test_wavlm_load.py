"""WavLM from disk: the same from every format, and an error for anything that is not exactly WavLM."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.wavlm_models import make_reference
from vox.errors import WavLMError
from vox.wavlm.load import build_wavlm, load_wavlm, weights_sha256

KEY = "encoder.layers.2.attention.k_proj.weight"


@pytest.fixture
def folder(tiny_wavlm_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny WavLM to damage."""
    return Path(shutil.copytree(tiny_wavlm_dir, tmp_path / "wavlm"))


def edit_weights(folder: Path, edit: Callable[[dict], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_loaded_model_is_frozen_and_evaluates(tiny_wavlm_dir: Path) -> None:
    wavlm = load_wavlm(str(tiny_wavlm_dir))
    assert not any(parameter.requires_grad for parameter in wavlm.parameters())
    assert not any(module.training for module in wavlm.modules())
    stored = load_file(tiny_wavlm_dir / "model.safetensors")
    assert wavlm.state_dict().keys() == stored.keys()
    for name, values in wavlm.state_dict().items():
        assert torch.equal(values, stored[name])


def test_sha256_is_of_the_values_alone(folder: Path) -> None:
    wavlm = load_wavlm(str(folder))
    expected = weights_sha256(wavlm)
    rebuilt = build_wavlm(json.loads(json.dumps(wavlm.config_dict())))
    assert rebuilt.config_dict() == wavlm.config_dict()
    assert weights_sha256(rebuilt) != expected
    rebuilt.load_state_dict(wavlm.state_dict())
    assert weights_sha256(rebuilt) == expected
    # The published base model's format: torch's, with weight norm's older names.
    weights = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): values
        for name, values in load_file(folder / "model.safetensors").items()
    }
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert weights_sha256(load_wavlm(str(folder))) == expected


def test_sha256_changes_with_one_bit(tiny_wavlm_dir: Path) -> None:
    wavlm = load_wavlm(str(tiny_wavlm_dir))
    before = weights_sha256(wavlm)
    wavlm.state_dict()[KEY].view(torch.int32)[3, 5] ^= 1
    assert weights_sha256(wavlm) != before
    wavlm.state_dict()[KEY].view(torch.int32)[3, 5] ^= 1
    assert weights_sha256(wavlm) == before


def test_do_normalize_is_read_and_not_assumed(folder: Path) -> None:
    assert load_wavlm(str(folder)).do_normalize is False  # group norm, nothing said
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    wavlm = load_wavlm(str(folder))
    assert wavlm.do_normalize is True
    assert build_wavlm(wavlm.config_dict()).do_normalize is True


def test_layer_norm_models_normalise_by_convention(tmp_path: Path) -> None:
    make_reference("large").save_pretrained(tmp_path)
    assert load_wavlm(str(tmp_path)).do_normalize is True


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot read JSON"),
    "another type": (lambda f: edit_config(f, model_type="wav2vec2"), "of type 'wav2vec2', not 'wavlm'"),
    "adapter": (lambda f: edit_config(f, add_adapter=True), "add_adapter = True"),
    "activation": (lambda f: edit_config(f, hidden_act="relu"), "hidden_act = relu"),
    "wrong type": (lambda f: edit_config(f, hidden_size="wide"), "impossible WavLM configuration"),
    "convolutions": (lambda f: edit_config(f, conv_dim=[16] * 6), "impossible WavLM configuration"),
    "heads": (lambda f: edit_config(f, num_attention_heads=5), "no multiple of num_attention_heads 5"),
    "another shape": (lambda f: edit_config(f, intermediate_size=64), "another shape"),
    "missing weight": (lambda f: edit_weights(f, lambda w: w.pop(KEY)), f"missing \\({KEY}"),
    "left-over weight": (lambda f: edit_weights(f, lambda w: w.update(lm_head=torch.ones(2))), "lm_head"),
    "NaN": (lambda f: edit_weights(f, lambda w: w[KEY].view(-1)[7:8].fill_(torch.nan)), f"NaN.*{KEY}"),
    "truncated": (lambda f: os.truncate(f / "model.safetensors", 30_000), "cannot read WavLM's weights"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot read WavLM's weights"),
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_what_is_not_exactly_wavlm_is_refused(folder: Path, spoil: str) -> None:
    act, message = SPOILED[spoil]
    act(folder)
    with pytest.raises(WavLMError, match=message) as caught:
        load_wavlm(str(folder))
    assert "\n" not in str(caught.value)


def test_damaged_torch_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"hello" * 100)
    with pytest.raises(WavLMError, match="cannot read WavLM's weights"):
        load_wavlm(str(folder))


class FakeHub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub that a download needs: one repository, its file list, its files."""

    NAME = "someone/tiny-wavlm"
    COMMIT = "a" * 40
    folder: Path
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        path = self.path.split("?")[0]
        files = {file.name: file.read_bytes() for file in sorted(self.folder.iterdir())}
        if path == "/":
            self.reply(200)
        elif self.NAME not in path:
            self.reply(404, **{"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            rows = [
                {"type": "file", "path": n, "size": len(b), "oid": sha1(b).hexdigest()}
                for n, b in files.items()
            ]
            self.reply(200, json.dumps(rows).encode())
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in files]
            self.reply(200, json.dumps({"id": self.NAME, "sha": self.COMMIT, "siblings": siblings}).encode())
        elif (name := path.rsplit("/", 1)[1]) in files:
            self.reply(200, files[name], ETag=f'"{sha1(files[name]).hexdigest()}"')
        else:
            self.reply(404, **{"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": self.COMMIT, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing, to keep the test's output clean."""


HUB_PROGRAM = """
import logging, sys, urllib.request
import huggingface_hub
from vox.errors import WavLMError
from vox.wavlm.load import load_wavlm
logging.basicConfig(format="%(message)s")
logging.getLogger("vox").setLevel("INFO")
def attempt(name):
    try:
        print(load_wavlm(name).hidden_size)
    except WavLMError as error:
        print(error)
attempt("someone/tiny-wavlm")
urllib.request.urlopen(huggingface_hub.constants.ENDPOINT + "/mark-someone/tiny-wavlm/tree/")
attempt("someone/tiny-wavlm")
attempt("someone/unknown")
huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"
attempt("someone/tiny-wavlm")
attempt("microsoft/wavlm-base")
attempt("no/such/folder")
"""


def test_hub_is_asked_once_and_then_the_cache_serves(folder: Path, tmp_path: Path) -> None:
    """The endpoint is then a closed port, on which the hub's own client would retry for 20 s and warn."""
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    (folder / "README.md").write_text("A file that nobody needs.")
    FakeHub.folder = folder
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        }
        command = [sys.executable, "-c", HUB_PROGRAM]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        server.shutdown()
    fetched, cached, unknown, offline, unreachable, no_folder = result.stdout.splitlines()
    assert fetched == cached == offline == "32"
    mark = next(index for index, path in enumerate(FakeHub.requests) if path.startswith("/mark-"))
    assert not [path for path in FakeHub.requests[mark + 1 :] if "tiny-wavlm" in path]
    assert not [path for path in FakeHub.requests if "README" in path]
    assert "cannot fetch WavLM from the Hugging Face hub (404" in unknown
    assert "hub is unreachable (http://127.0.0.1:9" in unreachable
    assert "microsoft/wavlm-base" in unreachable
    assert "no such WavLM folder: no/such/folder" in no_folder
    assert all("--wavlm FOLDER" in line for line in (unknown, unreachable, no_folder))
    # Our own two lines (one for each name that the hub was asked for): no warnings, bars or tracebacks.
    assert [line.split(" from ")[0] for line in result.stderr.splitlines()] == [
        "fetching someone/tiny-wavlm",
        "fetching someone/unknown",
    ]

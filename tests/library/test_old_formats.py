"""Files of an older version of Vox can still be read, and give the same results.

`old_formats/checkpoint-0.1` was written by version 0.1.0, before cross-attention had positions, from random
weights; the JSON beside it holds that version's output for one second of made-up audio.
"""

import json
from pathlib import Path

import torch

from tests.support.speech import make_speech
from vox.checkpoint.files import load_recogniser
from vox.data.batch import AudioBatch
from vox.decode import SearchOptions, make_search
from vox.decoder_names import VALIDATION_DECODERS
from vox.hear import hear

OLD = Path(__file__).resolve().parents[1] / "old_formats"


@torch.no_grad()
def test_a_checkpoint_from_before_label_positions_gives_its_old_output() -> None:
    expected = json.loads((OLD / "checkpoint-0.1.json").read_text(encoding="utf-8"))
    loaded = load_recogniser(OLD / "checkpoint-0.1")
    waveforms_BS = torch.from_numpy(make_speech(9000, 0))[None]
    encoded = hear(loaded.recogniser, AudioBatch([""], waveforms_BS, torch.tensor([9000])))
    decoder_BUV = loaded.recogniser.decoder(torch.tensor([[1, 5, 9, 4]]), encoded)
    for found_BXV, key in ((encoded.ctc_log_probs_BTV, "ctc_log_probs"), (decoder_BUV, "decoder_logits")):
        torch.testing.assert_close(found_BXV[0], torch.tensor(expected[key]), atol=1e-4, rtol=1e-4)
    ids = {}
    for name in VALIDATION_DECODERS:
        search = make_search(name, SearchOptions(), loaded.tokenizer)
        ids[name] = search(loaded.recogniser, encoded)[0][0].ids
    assert ids == expected["ids"]

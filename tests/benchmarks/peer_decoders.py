"""CTC searches of flashlight-text and pyctcdecode over saved log-probabilities, for `tests.benchmarks.peers`.

Needs numpy and whichever of the two is installed, and nothing of Vox: they pin other versions of numpy.
`python peer_decoders.py SAVED.npz BEAM LM LM_WEIGHT` prints JSON: by search, texts as lists of pieces (of
words for pyctcdecode), scores in nats, and CPU seconds. LM is an ARPA file over the same pieces, or nothing.

T frames, V pieces.
"""

import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable

import numpy as np

EVERYTHING = 1e9  # a threshold that nothing falls below

Search = Callable[[np.ndarray], tuple[list[str], float]]


def main() -> None:
    """Run every search that is installed."""
    saved = np.load(sys.argv[1], allow_pickle=False)
    beam, lm, lm_weight = int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    pieces = [str(piece) for piece in saved["pieces"]]
    utterances = np.split(saved["log_probs_TV"], np.cumsum(saved["num_frames"])[:-1])
    searches: dict[str, Search] = {}
    if importlib.util.find_spec("flashlight"):
        searches["flashlight-text"] = make_flashlight(pieces, beam, lm, lm_weight)
    if importlib.util.find_spec("pyctcdecode") and not lm:  # its models are over words
        searches["pyctcdecode"] = make_pyctcdecode(pieces, beam)
    found = {}
    for name, search in searches.items():
        start = time.process_time()
        results = [search(log_probs_TV) for log_probs_TV in utterances]
        seconds = time.process_time() - start
        texts, scores = zip(*results, strict=True)
        found[name] = {"texts": texts, "scores": scores, "seconds": seconds}
    json.dump(found, sys.stdout)


def make_flashlight(pieces: list[str], beam: int, lm: str, lm_weight: float) -> Search:
    """Return flashlight's search without a lexicon: log-add, nothing pruned but by the beam."""
    from flashlight.lib.text import decoder

    options = decoder.LexiconFreeDecoderOptions(
        beam_size=beam,
        beam_size_token=len(pieces),
        beam_threshold=EVERYTHING,
        lm_weight=lm_weight * math.log(10),  # its models give log10
        sil_score=0.0,
        log_add=True,
        criterion_type=decoder.CriterionType.CTC,
    )
    model = _load_kenlm(pieces, lm) if lm else decoder.ZeroLM()
    search = decoder.LexiconFreeDecoder(options, model, 0, 0, [])

    def run(log_probs_TV: np.ndarray) -> tuple[list[str], float]:
        emissions = np.ascontiguousarray(log_probs_TV, np.float32)
        best = search.decode(emissions.ctypes.data, *emissions.shape)[0]
        path = [index for index in best.tokens if index >= 0]
        labels = [index for place, index in enumerate(path) if place == 0 or index != path[place - 1]]
        return [pieces[index] for index in labels if index != 0], best.score

    return run


def make_pyctcdecode(pieces: list[str], beam: int) -> Search:
    """Return pyctcdecode's search over pieces, without a language model, with its own pruning.

    Without the pruning a piece that is the mark of a word's beginning alone breaks whatever comes after it.
    """
    from pyctcdecode import build_ctcdecoder

    decoder = build_ctcdecoder(["", *pieces[1:]])

    def run(log_probs_TV: np.ndarray) -> tuple[list[str], float]:
        best = decoder.decode_beams(log_probs_TV, beam_width=beam)[0]
        return best[0].split(), float(best[-2])

    return run


def _load_kenlm(pieces: list[str], lm: str) -> object:
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    return KenLM(lm, Dictionary(pieces))


if __name__ == "__main__":
    main()

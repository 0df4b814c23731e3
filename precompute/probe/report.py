"""What the probe says: a table, the layers to cache, and both as JSON."""

import json
from collections.abc import Sequence
from typing import Any

from precompute.probe.heads import HeadResult
from vox.defaults import NUM_UNFROZEN_LAYERS
from vox.features.fingerprint import join_layers

MARGIN = 0.10  # of the best layer's CER
TOO_LITTLE_LEARNED = 0.8  # a best CER above this says nothing about layers

RULE = (
    f"the layers next to each other around the best one whose CER is within {MARGIN:.0%} of its; "
    "that one alone if the CER of their mean is not"
)


def recommend_layers(results: Sequence[HeadResult]) -> tuple[int, ...]:
    """Return the contiguous run of layers around the best whose CER is within MARGIN of the best's.

    Only single layers count; the CTC loss decides between equal error rates.
    """
    by_layer = {result.spec.layers[0]: result for result in _single_layers(results)}
    best = find_best(results)
    (first,) = (last,) = best.spec.layers
    while first - 1 in by_layer and is_within_margin(by_layer[first - 1], best):
        first -= 1
    while last + 1 in by_layer and is_within_margin(by_layer[last + 1], best):
        last += 1
    return tuple(range(first, last + 1))


def is_within_margin(result: HeadResult, best: HeadResult) -> bool:
    """Say whether a CER is as good as the best layer's, give or take the MARGIN."""
    return result.cer <= best.cer * (1 + MARGIN)


def find_best(results: Sequence[HeadResult]) -> HeadResult:
    """Return the best single layer: the lowest CER, then the lowest loss."""
    return min(_single_layers(results), key=lambda result: (result.cer, result.loss))


def format_results(results: Sequence[HeadResult], *, has_words: bool = True) -> str:
    """Write the table, a line for each head, with the mix weights beside the layers if there is a mix.

    has_words: False leaves the WER out.
    """
    mix = next((result for result in results if result.mix_weights is not None), None)
    shares: dict[tuple[int, ...], float] = {}
    if mix is not None and mix.mix_weights is not None:
        shares = {(layer,): weight for layer, weight in zip(mix.spec.layers, mix.mix_weights, strict=True)}
    width = max(len("layers"), *(len(result.spec.name) for result in results))
    lines = [f"{'layers':<{width}}  CTC loss    CER{'    WER' if has_words else ''}  weight in the mix"]
    for result in results:
        share = shares.get(result.spec.layers)
        wer = f"  {result.wer:5.1%}" if has_words else ""
        lines.append(
            f"{result.spec.name:<{width}}  {result.loss:8.3f}  {result.cer:5.1%}{wer}"
            + ("" if share is None else f"  {share:.3f}")
        )
    return "\n".join(lines)


def format_recommendation(layers: Sequence[int], num_layers: int) -> str:
    """Write what to cache, and by which rule."""
    lines = [f"cache with: --layers {join_layers(layers)}  ({RULE})"]
    unheard = set(range(num_layers - NUM_UNFROZEN_LAYERS + 1, num_layers + 1)) - set(layers)
    if unheard:
        lines.append(
            f"then train with: --set features.layers=[{join_layers(layers)}]; stage 2 trains the top "
            f"{NUM_UNFROZEN_LAYERS} layers by default, and {join_layers(sorted(unheard))} would not be in "
            "the features at first: see train.unfreeze_layers"
        )
    else:
        lines.append(f"then train with: --set features.layers=[{join_layers(layers)}]")
    return "\n".join(lines)


def results_to_json(results: Sequence[HeadResult], layers: Sequence[int], about: dict[str, Any]) -> bytes:
    """Return the report as JSON: what was measured, how, and what follows from it."""
    rows = [
        {
            "name": result.spec.name,
            "layers": list(result.spec.layers),
            "ctc_loss": result.loss,
            "cer": result.cer,
            "wer": result.wer,
            "mix_weights": None if result.mix_weights is None else list(result.mix_weights),
        }
        for result in results
    ]
    report = about | {"results": rows, "recommended_layers": list(layers), "rule": RULE}
    return (json.dumps(report, indent=2) + "\n").encode()


def _single_layers(results: Sequence[HeadResult]) -> list[HeadResult]:
    return [result for result in results if len(result.spec.layers) == 1 and not result.spec.is_learned]

"""The weighted sum of WavLM's layers that the recogniser hears.

B batch, T frames, C channels, L layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vox.errors import ConfigError
from vox.wavlm.derived import Derived


class LayerMix(nn.Module):
    """One plain linear weight for each Transformer layer's output."""

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float32))
        self._nonzero: Derived[list[int]] = Derived()

    @classmethod
    def mean_of(cls, layers: Sequence[int], num_layers: int) -> "LayerMix":
        """Weigh the chosen layers equally, counted from 1, and the others zero.

        Raises ConfigError for no layer, a layer twice, or one that is not there.
        """
        chosen = set(layers)
        if not chosen or len(chosen) != len(layers) or not chosen <= set(range(1, num_layers + 1)):
            raise ConfigError(
                f"cannot take the mean of WavLM layers {list(layers)}",
                remedy=f"choose different layers from 1 to {num_layers} with --layers",
            )
        return cls([1 / len(chosen) if layer in chosen else 0.0 for layer in range(1, num_layers + 1)])

    def needed_layers(self) -> list[int]:
        """Return the layers, counted from 0, that the sum cannot do without.

        All where the weights are being trained, since each weight's gradient needs its layer; otherwise those
        of a weight other than zero (one at least, so that there is something to sum).
        """
        if self.weights.requires_grad and torch.is_grad_enabled():
            self._nonzero.clear()
            return list(range(len(self.weights)))
        return self.nonzero_layers() or [0]

    def nonzero_layers(self) -> list[int]:
        """Return the layers, counted from 0, of a weight other than zero.

        Kept until the weights change: reading them makes the host wait for the GPU.
        """
        return self._nonzero.get(
            [self.weights], lambda: [i for i, weight in enumerate(self.weights.tolist()) if weight != 0.0]
        )

    def forward(self, layer_outputs: Sequence[Tensor], layers: Sequence[int] | None = None) -> Tensor:
        """Return the weighted sum, float32 [B, T, C], of layer outputs [B, T, C].

        `layers` says which layers these are, counted from 0: all L by default.
        """
        layers = range(len(self.weights)) if layers is None else layers
        pairs = zip(layers, layer_outputs, strict=True)
        terms = [self.weights[layer] * output.to(self.weights.dtype) for layer, output in pairs]
        return sum(terms[1:], start=terms[0])

"""Linear layers that keep what a frozen weight is multiplied as: rounded on a GPU, packed on a CPU."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vox.wavlm.cpu import is_packable, multiply_packed, pack
from vox.wavlm.derived import Derived

# By their names in a WavLM's configuration, which are oneDNN's too.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu}


def autocast_dtype(inputs: Tensor) -> torch.dtype | None:
    """Return the precision that autocast gives to products of these inputs; None where it is off."""
    kind = inputs.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


class Linear(nn.Linear):
    """nn.Linear with an activation, if one is named.

    A frozen weight is rounded to autocast's precision once and kept: autocast itself rounds it at each call.
    """

    def __init__(self, in_features: int, out_features: int, activation: str | None = None) -> None:
        super().__init__(in_features, out_features)
        self.activation = activation
        self._packed: Derived[Tensor] = Derived()
        self._rounded: Derived[tuple[Tensor, Tensor]] = Derived()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return [..., D] of inputs [..., C]."""
        dtype = autocast_dtype(inputs)
        if self.weight.requires_grad or self.bias.requires_grad:
            self._packed.clear()  # not every optimizer's changes are counted
            self._rounded.clear()
        elif dtype is not None:
            self._packed.clear()  # it may have moved from the CPU to a GPU
            parameters = self.weight, self.bias
            weight, bias = self._rounded.get(
                parameters, lambda: (self.weight.to(dtype), self.bias.to(dtype)), dtype
            )
            return self._activate(F.linear(inputs.to(dtype), weight, bias))
        if is_packable(inputs, self.weight, self.bias):
            packed = self._packed.get([self.weight], lambda: pack(self.weight))
            return multiply_packed(inputs, packed, self.bias, self.activation)
        return self._activate(super().forward(inputs))

    def _activate(self, outputs: Tensor) -> Tensor:
        return outputs if self.activation is None else ACTIVATIONS[self.activation](outputs)

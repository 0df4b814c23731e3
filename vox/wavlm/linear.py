"""Linear layers whose weights, while they are frozen on a CPU, are kept as its matrix kernels want them.

oneDNN multiplies by a weight that was cut into blocks for it beforehand: 1.1 to 1.4 times as fast as a
product that packs its weight again at each call, most where there are few rows, and an activation costs next
to nothing in it. torch has this for its own compiler (`torch.ops.mkldnn`); where a build lacks it, or a
weight learns, a layer is an ordinary one. The numbers are the same, but for the order in which products are
added up.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vox.wavlm.derived import Derived

# By their names in a WavLM's configuration, which are oneDNN's too.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu}

# oneDNN chooses the blocks for so many rows. Others run as fast with them; a new number costs a millisecond.
TYPICAL_ROWS = 1024

IS_ONEDNN_THERE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def is_packable(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Say whether a product with a packed weight gives what autograd, autocast and the dtypes ask for."""
    return (
        IS_ONEDNN_THERE
        and inputs.device.type == weight.device.type == "cpu"
        and inputs.dtype is weight.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not weight.requires_grad
        and not weight.is_inference()  # its changes are not counted, so nothing is kept of it
        and not (
            torch.is_grad_enabled() and (inputs.requires_grad or (bias is not None and bias.requires_grad))
        )
    )


def pack(weight_DC: Tensor) -> Tensor:
    """Return a weight [D, C] in oneDNN's layout: opaque, for `multiply_packed` only."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_DC.contiguous(), TYPICAL_ROWS)


def multiply_packed(
    inputs: Tensor, packed: Tensor, bias_D: Tensor | None, activation: str | None = None
) -> Tensor:
    """Return activation(inputs @ weight.T + bias), float32 [..., D], of inputs [..., C] of any strides."""
    return torch.ops.mkldnn._linear_pointwise(
        inputs, packed, bias_D, "none" if activation is None else activation, [], "none"
    )


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

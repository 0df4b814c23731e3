"""Products of matrices by a frozen weight that is kept as a CPU's matrix kernels want it.

oneDNN multiplies by a weight that was cut into blocks for it in advance: 1.1 to 1.4 times as fast as a
product that packs its weight again at each call, most where there are few rows, and an activation costs next
to nothing in it. torch has this for its own compiler (`torch.ops.mkldnn`); where a build lacks it, or a
weight learns, a layer is an ordinary one. The numbers are the same, but for the order in which products are
added up.
"""

import torch
from torch import Tensor

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

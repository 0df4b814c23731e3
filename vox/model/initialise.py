"""Starting weights, drawn from torch's global generator: seed that, and the model is the same again.

Linear and convolution weights are uniform with variance 1 / fan_in (LeCun et al. 1998), so that an output
is about as large as the normalised input it comes from; biases are zero. Embeddings are normal with
variance 1 / d_model, and the decoder multiplies them by sqrt(d_model) (Vaswani et al. 2017, section 3.4).
"""

from torch import Tensor, nn


def initialise(module: nn.Module) -> None:
    """Draw the weights of every linear, convolution and embedding inside a module."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            _draw(child.weight, child.bias, fan_in=child.in_features)
        elif isinstance(child, nn.ConvTranspose1d):
            # A stride of 2 leaves each output with half the taps.
            taps = child.kernel_size[0] / child.stride[0]
            _draw(child.weight, child.bias, fan_in=child.in_channels * taps)
        elif isinstance(child, nn.Conv1d):
            _draw(child.weight, child.bias, fan_in=child.in_channels // child.groups * child.kernel_size[0])
        elif isinstance(child, nn.Embedding):
            nn.init.normal_(child.weight, std=child.embedding_dim**-0.5)


def _draw(weight: Tensor, bias: Tensor | None, fan_in: float) -> None:
    bound = (3.0 / fan_in) ** 0.5  # a uniform variable on [-bound, bound] has variance bound**2 / 3
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.zeros_(bias)

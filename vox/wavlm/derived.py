"""What is computed from frozen parameters once, and kept until they change."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")


class Derived(Generic[Value]):
    """The last value computed from some parameters; belongs to no state dict, and is never copied.

    A parameter counts as changed when its memory, its dtype or its version is another: torch counts every
    in-place change up, load_state_dict's included, but none made through `.data` or by a fused optimizer. So
    nothing is kept of parameters that learn.
    """

    def __init__(self) -> None:
        self._last: tuple[Hashable, list[Tensor], Value] | None = None

    def get(self, parameters: Sequence[Tensor], compute: Callable[[], Value], *arguments: Hashable) -> Value:
        """Return compute(), or what it returned last for these parameters and arguments.

        It runs without gradients; a parameter that is being trained through it is the caller's mistake.
        """
        if any(parameter.requires_grad or parameter.is_inference() for parameter in parameters):
            self.clear()
            with torch.no_grad():  # no versions are counted for these
                return compute()
        key = (arguments, tuple((p.data_ptr(), p._version, p.dtype, p.device) for p in parameters))
        last = self._last
        if last is not None and last[0] == key:
            return last[2]
        del last
        self.clear()  # before another of its size is made
        # An inference tensor kept here could not be used where there are gradients later.
        with torch.inference_mode(False), torch.no_grad():
            value = compute()
            # The aliases keep the memory: no other parameter can take its place unnoticed.
            self._last = (key, [parameter.detach() for parameter in parameters], value)
        return value

    def clear(self) -> None:
        """Forget the last value: the parameters may have changed in a way that torch does not count."""
        self._last = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), ())


def clear_derived(root: nn.Module) -> None:
    """Forget what a module and those in it have kept of their parameters."""
    for module in root.modules():
        for value in vars(module).values():
            if isinstance(value, Derived):
                value.clear()

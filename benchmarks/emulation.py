"""TF32 without a GPU: what its products give, so that a match rate can be told beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_DROPPED = 13  # bits of a float32's 23 that TF32 does not have
_PRODUCTS = {
    F.linear,
    F.conv2d,
    F.conv_transpose2d,
    F.scaled_dot_product_attention,
    torch.conv2d,
    torch.conv_transpose2d,
    torch.matmul,
    torch.bmm,
    torch.mm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.bmm,
    Tensor.mm,
}
_WITH_SUMMAND = {torch.baddbmm, torch.addmm, Tensor.baddbmm, Tensor.addmm}


class EmulatedTf32(TorchFunctionMode):
    """Rounds what is multiplied in matrix products and convolutions; sums stay in float32, as on a GPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _PRODUCTS:
            args = (*map(rounded, args[:2]), *args[2:])
        elif func in _WITH_SUMMAND:
            args = (args[0], *map(rounded, args[1:3]), *args[3:])
        return func(*args, **(kwargs or {}))


def rounded(values: Tensor) -> Tensor:
    """Float32 to the nearest value of TF32, ties away from zero."""
    if values.dtype != torch.float32:
        return values
    half = 1 << (_DROPPED - 1)
    bits = values.detach().contiguous().view(torch.int32)
    return ((bits + half) & -(1 << _DROPPED)).view(torch.float32)

"""What a batch needs on the device, on its way there."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

PACKED_BYTES = 1 << 26  # of one upload; what does not fit is copied on its own, when it is needed
_ALIGNMENT = 16  # bytes, for views of any type and the widest loads of kernels


class Upload:
    """Gathers tensors of the host in one pinned buffer, which is copied to a device at once.

    Copying a hundred small masks one by one takes longer than their bytes do, and a copy from memory that is
    not pinned makes the host wait for it. On a CPU nothing is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors: list[Tensor] = []
        self._end = 0
        self._sent: Tensor | None = None

    def has_room(self, nbytes: int) -> bool:
        """Whether gathering so many more bytes saves a copy."""
        return not on_host(self._device) and self._end + nbytes <= PACKED_BYTES

    def add(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Adds a tensor; returns a function that returns it on the device, for use after `send`.

        A tensor that there is no room for is copied when that function is first called.
        """
        if not self.has_room(tensor.nbytes):
            return functools.cache(lambda: tensor.to(self._device, non_blocking=True))
        begin = self._end
        self._tensors.append(tensor)
        self._end += _padded(tensor.nbytes)

        def sent() -> Tensor:
            assert self._sent is not None
            return _view(self._sent, begin, tensor)

        return sent

    def send(self) -> None:
        """Copies what was added, without waiting for it; call it once."""
        if not self._tensors:
            return
        buffer = torch.empty(self._end, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        begin = 0
        for tensor in self._tensors:
            _view(buffer, begin, tensor).copy_(tensor)
            begin += _padded(tensor.nbytes)
        self._sent = buffer.to(self._device, non_blocking=True)


def on_host(device: torch.device) -> bool:
    """Whether a device reads the host's memory."""
    return device.type == "cpu"


def _view(buffer: Tensor, begin: int, like: Tensor) -> Tensor:
    """The part of a buffer that holds a tensor's bytes, as a tensor of its type and shape."""
    return buffer[begin : begin + like.nbytes].view(like.dtype).view(like.shape)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT

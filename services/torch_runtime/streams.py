"""A stream for each stage of a service's work on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Stage:
    """A stage of the work on a device; on a GPU it has a stream of its own, on a CPU this class does nothing.

    Kernels of one stage run in order, those of different stages at the same time: a host that waits for its
    small masks does not wait for an image that was queued meanwhile. What one stage hands to another is
    ordered by an event.

    Args:
        device: Where the stage works; the model is loaded there.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.default_stream(device))  # on which weights were prepared

    @contextmanager
    def running(self) -> Iterator[None]:
        """Queues what the calling thread starts inside in this stage."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> torch.cuda.Event | None:
        """An event that happens when all that is queued in this stage now is done."""
        return None if self._stream is None else self._stream.record_event()

    def receive(self, ready: torch.cuda.Event | None, tensors: Sequence[Tensor] = ()) -> None:
        """Lets the stage continue only when another one has made what it is handed.

        Args:
            ready: The other stage's mark.
            tensors: Those of the other stage that may be dropped while this one reads them: their memory is
                not reused before.
        """
        if self._stream is None or ready is None:
            return
        self._stream.wait_event(ready)
        for tensor in tensors:
            tensor.record_stream(self._stream)

    def synchronize(self) -> None:
        """Waits until all that is queued in this stage is done."""
        if self._stream is not None:
            self._stream.synchronize()

"""How operations get to a gateway: HTTP or gRPC, blocking or on an event loop.

All calls may be repeated without harm, because images are known by their content: a transport waits and
tries again when the server is overloaded or away.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Protocol, TypeVar

from regionsearch.client.operations import Operation
from regionsearch.client.streaming import IngestStream
from regionsearch.errors import invalid
from regionsearch.schemas.responses import IngestProgress

T = TypeVar("T")


class Transport(Protocol):
    """Sends operations and waits for them."""

    def send(self, operation: Operation[T]) -> T:
        """The operation's result, or its `RegionSearchError`."""
        ...

    def ingest(self, stream: IngestStream) -> Iterator[IngestProgress]:
        """Sends images over a stream and tells of each stage; gRPC only."""
        ...

    def close(self) -> None:
        """Closes the connections."""
        ...


class AsyncTransport(Protocol):
    """Sends operations on an event loop."""

    async def send(self, operation: Operation[T]) -> T:
        """The operation's result, or its `RegionSearchError`."""
        ...

    def ingest(self, stream: IngestStream) -> AsyncIterator[IngestProgress]:
        """Sends images over a stream and tells of each stage; gRPC only."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


@contextlib.contextmanager
def utf8_only() -> Iterator[None]:
    """Refuses text that no request can carry: halves of characters, which bytes that are not UTF-8 become."""
    try:
        yield
    except UnicodeEncodeError as error:
        text = error.object[max(0, error.start - 20) : error.end + 20]
        raise invalid("request", f"{text!a} has characters that UTF-8 has not; write it as UTF-8") from error

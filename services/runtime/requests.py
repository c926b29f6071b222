"""Admission of gRPC requests by number and bytes, and their parsing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from regionsearch.errors import Kind, RegionSearchError, invalid, overloaded
from regionsearch.rpc.callers import caller
from services.runtime.enums import check_enums
from services.runtime.fair import Shares

_RETRY_S = 1.0
_RECEIVE_S = 60.0  # for the only message of a call, whose caller may have set no deadline

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Load:
    """Limits concurrent calls and the bytes of their requests; excess calls are refused, not queued.

    For one event loop. Health checks do not count: they are answered under any load. How much of a limit one
    caller may use, see :class:`Shares`.

    Args:
        max_calls: Calls, streams included.
        max_bytes: Bytes of the requests of calls that take a single message, and of the items of streams.
    """

    def __init__(self, max_calls: int, max_bytes: int) -> None:
        self._calls = Shares(max_calls)
        self._bytes = Shares(max_bytes)

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Counts a call for the block.

        Raises:
            RegionSearchError: OVERLOADED.
        """
        with self._count(self._calls, 1, "{} calls are in progress (max_concurrent_calls)"):
            yield

    @contextlib.contextmanager
    def message(self, size: int) -> Iterator[None]:
        """Counts the bytes of a request for the block; a single request may exceed the limit.

        Raises:
            RegionSearchError: OVERLOADED.
        """
        with self._count(self._bytes, size, "requests of {} bytes are in progress (max_concurrent_bytes)"):
            yield

    @contextlib.contextmanager
    def _count(self, shares: Shares, amount: int, message: str) -> Iterator[None]:
        who = caller()
        if not shares.fits(who, amount):
            told = message.format(shares.total)
            raise overloaded(f"{told}; try again in a moment, or add replicas", _RETRY_S)
        shares.add(who, amount)
        try:
            yield
        finally:
            shares.add(who, -amount)


class Requests:
    """The messages of a call, received on demand.

    Args:
        context: Of the call, whose handler takes bytes.
        parse: Parses a message; None leaves the bytes as they are.
        checked: Whether unknown enum values are refused here.
    """

    def __init__(
        self, context: _Context, parse: Callable[[bytes], Any] | None, *, checked: bool = True
    ) -> None:
        self._context = context
        self._parse = parse
        self._checked = checked

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Any:
        received = await self._context.read()
        if received is _EOF:
            raise StopAsyncIteration
        return self._message(received)

    async def only(self) -> tuple[Any, int]:
        """The message of a call that takes one, and its size in bytes.

        Raises:
            RegionSearchError: INVALID_ARGUMENT for a missing or malformed message, DEADLINE_EXCEEDED where
                none arrives in time.
        """
        try:
            async with asyncio.timeout(_RECEIVE_S if self._context.time_remaining() is None else None):
                received = await self._context.read()
        except TimeoutError:
            message = f"no request message arrived within {_RECEIVE_S:.0f} s"
            raise RegionSearchError(Kind.DEADLINE_EXCEEDED, message) from None
        if received is _EOF:
            raise invalid("request", "the call has no request message")
        return self._message(received), len(received)

    def _message(self, received: bytes) -> Any:
        if self._parse is None:
            return received
        try:
            message = self._parse(received)
        except DecodeError as error:
            kind = getattr(getattr(self._parse, "__self__", None), "__name__", "protobuf")
            text = f"the request is not a valid {kind} message ({error}); is the client's .proto up to date?"
            raise invalid("request", text) from None
        if self._checked:
            check_enums(message)
        return message

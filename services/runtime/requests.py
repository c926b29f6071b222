"""Requests: their admission by number and bytes, their parsing, and refusal of enum values without a name."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import grpc
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from regionsearch.errors import Kind, RegionSearchError, invalid, overloaded
from regionsearch.rpc.calls import caller
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
        context: Context of the call, whose handler takes bytes.
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


class _Field(NamedTuple):
    """A field that is an enum, or a message that may hold one."""

    name: str
    repeated: bool
    enum: EnumDescriptor | None


def check_enums(message: Message, prefix: str = "") -> None:
    """Refuses a message in which a field has a number that is not a value of its enum.

    Only fields that can lead to an enum are looked at: masks, points and vectors cost nothing.

    Args:
        message: What a caller sent.
        prefix: Path of the message in the request, with a dot at its end.

    Raises:
        RegionSearchError: INVALID_ARGUMENT that names the field and the values.
    """
    for name, repeated, enum in _fields(message.DESCRIPTOR):
        if enum is not None:
            value = getattr(message, name)
            for number in value if repeated else (value,):
                if number not in enum.values_by_number:
                    known = ", ".join(enum.values_by_name)
                    field = f"{prefix}{name}"
                    raise invalid(
                        field, f"{field} is {number}, not a value of {enum.name}; send one of {known}"
                    )
        elif repeated:
            for index, part in enumerate(getattr(message, name)):
                check_enums(part, f"{prefix}{name}[{index}].")
        elif message.HasField(name):
            check_enums(getattr(message, name), f"{prefix}{name}.")


@functools.cache
def _fields(descriptor: Descriptor) -> tuple[_Field, ...]:
    return tuple(
        _Field(field.name, field.is_repeated, field.enum_type)
        for field in descriptor.fields
        if _leads_to_enum(field, ())
    )


def _leads_to_enum(field: FieldDescriptor, within: tuple[Descriptor, ...]) -> bool:
    """Whether a field is an enum or a message that may hold one; values of maps are not looked at."""
    message = field.message_type
    if message is None:
        return field.enum_type is not None
    if message in within or message.GetOptions().map_entry:
        return False
    return any(_leads_to_enum(part, (*within, message)) for part in message.fields)

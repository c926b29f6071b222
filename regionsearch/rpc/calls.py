"""Calls, properly made: deadlines and callers that are handed on, retries, typed errors; many at once.

The gateway names the caller of each request when it checks its key, and passes the name on to the services,
which share their time fairly by it. The name does not reveal the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import hashlib
import ipaddress
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

import grpc

from regionsearch.errors import Kind, RegionSearchError, from_rpc_error

RequestT_contra = TypeVar("RequestT_contra", contravariant=True)
ResponseT_co = TypeVar("ResponseT_co", covariant=True)
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

Metadata = Sequence[tuple[str, str]]

_UNAVAILABLE_PAUSE_S = 0.25  # on top of the quick retries inside of gRPC

_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("deadline", default=None)


class Method(Protocol[RequestT_contra, ResponseT_co]):
    """A unary method of a generated stub: ``stub.EmbedRegions``."""

    def __call__(
        self,
        request: RequestT_contra,
        /,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        wait_for_ready: bool | None = None,
    ) -> ResponseT_co:
        """Makes the call."""


@dataclass(frozen=True)
class CallPolicy:
    """How calls are made.

    Attributes:
        timeout_s: Longest time for a call with all of its retries; a nearer :func:`deadline` wins.
        api_key: Sent with every call.
        overload_attempts: Tries of a call that the server refuses for overload, each after the time it asks
            for.
        wait_for_ready: Whether to wait, up to the timeout, for a replica that serves, rather than fail at
            once.
        unavailable_s: How long to go on trying while no replica serves: long enough for a restart of the
            only one. Unlike `wait_for_ready` it does not spend the whole timeout on a service that is gone.
    """

    timeout_s: float = 60.0
    api_key: str | None = None
    overload_attempts: int = 5
    wait_for_ready: bool = False
    unavailable_s: float = 0.0

    def metadata(self, extra: Metadata = ()) -> Metadata:
        """The headers of a call; for streaming calls, which :func:`call` does not make."""
        return extra if self.api_key is None else (*extra, ("x-api-key", self.api_key))

    def timeout(self) -> float:
        """Seconds that a call may take from now on.

        Raises:
            RegionSearchError: DEADLINE_EXCEEDED when the surrounding deadline has passed.
        """
        left = remaining()
        if left is None:
            return self.timeout_s
        if left <= 0:
            raise RegionSearchError(Kind.DEADLINE_EXCEEDED, "the deadline passed before the call was made")
        return min(left, self.timeout_s)


DEFAULT_POLICY = CallPolicy()


@contextlib.contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Bounds all calls made inside, however deep; an outer deadline that is nearer stays in force."""
    outer = _deadline.get()
    inner = None if seconds is None else time.monotonic() + seconds
    token = _deadline.set(min((d for d in (outer, inner) if d is not None), default=None))
    try:
        yield
    finally:
        _deadline.reset(token)


def remaining() -> float | None:
    """Seconds until the surrounding :func:`deadline`; negative when it has passed, None without one."""
    limit = _deadline.get()
    return None if limit is None else limit - time.monotonic()


def call(
    method: Method[RequestT, ResponseT],
    request: RequestT,
    policy: CallPolicy = DEFAULT_POLICY,
    metadata: Metadata = (),
) -> ResponseT:
    """Calls a unary method from a thread.

    Args:
        method: A method of a stub on a channel of :func:`regionsearch.rpc.channels.open_channel`.
        request: The request message.
        policy: Timeout, key and retries.
        metadata: Further headers.

    Raises:
        RegionSearchError: What the server answered, or UNAVAILABLE when none could be reached.
    """
    backoff = Backoff(policy)
    with deadline(policy.timeout()):
        while True:
            try:
                return method(
                    request,
                    timeout=policy.timeout(),
                    metadata=policy.metadata(metadata),
                    wait_for_ready=policy.wait_for_ready,
                )
            except grpc.RpcError as error:
                time.sleep(backoff.next_delay(from_rpc_error(error)))


async def acall(
    method: Method[RequestT, grpc.aio.UnaryUnaryCall[RequestT, ResponseT]],
    request: RequestT,
    policy: CallPolicy = DEFAULT_POLICY,
    metadata: Metadata = (),
) -> ResponseT:
    """Calls a unary method on the event loop; see :func:`call`."""
    backoff = Backoff(policy)
    with deadline(policy.timeout()):
        while True:
            try:
                response: ResponseT = await method(
                    request,
                    timeout=policy.timeout(),
                    metadata=policy.metadata(metadata),
                    wait_for_ready=policy.wait_for_ready,
                )
            except grpc.RpcError as error:
                await asyncio.sleep(backoff.next_delay(from_rpc_error(error)))
            else:
                return response


class Backoff:
    """What one call has left of its policy's patience."""

    def __init__(self, policy: CallPolicy) -> None:
        self._policy = policy
        self._refusals = 0
        self._unavailable_until: float | None = None

    def next_delay(self, error: RegionSearchError) -> float:
        """Seconds to wait before the next attempt; raises `error` where there should be none."""
        if error.kind is Kind.UNAVAILABLE:
            now = time.monotonic()
            if self._unavailable_until is None:
                self._unavailable_until = now + self._policy.unavailable_s
            if now >= self._unavailable_until:
                raise error
            next_delay = random.uniform(0.5, 1.5) * _UNAVAILABLE_PAUSE_S
        elif error.kind is Kind.OVERLOADED and error.retry_after_s is not None:
            self._refusals += 1
            if self._refusals >= self._policy.overload_attempts:
                raise error
            next_delay = error.retry_after_s * random.uniform(1.0, 1.5) * 2 ** (self._refusals - 1)
        else:
            raise error
        left = remaining()
        if left is not None and next_delay >= left:
            raise error
        return next_delay


CALLER_HEADER = "x-regionsearch-caller"

SEEN_HEADER = "x-regionsearch-seen-write"
"""Of a read: the last write that its caller knows of. A read replica that lacks it waits for a moment."""

_MOST_CHARS = 32
_caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="")


@contextlib.contextmanager
def calling_for(name: str) -> Iterator[None]:
    """Sets the caller of all calls in the body."""
    token = _caller.set(name[:_MOST_CHARS])
    try:
        yield
    finally:
        _caller.reset(token)


def caller() -> str:
    """The caller of the surrounding call; empty if there is none."""
    return _caller.get()


def caller_metadata() -> tuple[tuple[str, str], ...]:
    """The header that names the caller to a service."""
    name = caller()
    return ((CALLER_HEADER, name),) if name else ()


def seen_write(metadata: Sequence[tuple[str, str | bytes]] | None) -> int:
    """The write that a read's headers name; 0 without one."""
    value = str(dict(metadata or ()).get(SEEN_HEADER, ""))
    return int(value) if value.isdecimal() and len(value) < _MOST_CHARS else 0


@functools.lru_cache(maxsize=4096)
def caller_name(key: str, address: str) -> str:
    """The name of a caller: from its API key if it has one, else from its address.

    Args:
        key: Empty if there is none; the name is a short hash of it.
        address: IP address. An IPv6 /64 network is one caller: its owner has all addresses.
    """
    if not key:
        with contextlib.suppress(ValueError):
            ip = ipaddress.ip_address(address.partition("%")[0])
            if ip.version == 6:
                address = str(ipaddress.ip_network((ip, 64), strict=False))
    kind, told = ("key", key) if key else ("address", address)
    return f"{kind}-{hashlib.blake2b(told.encode(errors='replace'), digest_size=8).hexdigest()}"


def peer_address(peer: str) -> str:
    """The address of a gRPC peer, without the port of its connection: 10.0.0.1 of ``ipv4:10.0.0.1:5000``."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


Item = TypeVar("Item")
Chunk = TypeVar("Chunk")
Answer = TypeVar("Answer")


def chunked(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive slices of at most `size` items, as equal as possible: 65 become 33 and 32, not 64 and 1."""
    count = -(-len(items) // size)
    for index in range(count):
        yield items[len(items) * index // count : len(items) * (index + 1) // count]


async def fan_out(
    call: Callable[[Chunk], Awaitable[Answer]], chunks: Sequence[Chunk], concurrency: int = 8
) -> list[Answer]:
    """Calls for every chunk on the event loop, up to `concurrency` at a time.

    The first failure cancels the other calls and is raised as it is, not in a group.
    """
    gate = asyncio.Semaphore(concurrency)

    async def one(chunk: Chunk) -> Answer:
        async with gate:
            return await call(chunk)

    return await gather_or_cancel(*(one(chunk) for chunk in chunks))


async def gather_or_cancel(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of all, in their order; the first failure cancels the others and is raised as it is."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise

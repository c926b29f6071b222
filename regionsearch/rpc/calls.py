"""One call, properly made: with a deadline that is handed on, patience with overload, and typed errors."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc

from regionsearch.errors import Kind, RegionSearchError, from_rpc_error

RequestT_contra = TypeVar("RequestT_contra", contravariant=True)
ResponseT_co = TypeVar("ResponseT_co", covariant=True)
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

Metadata = Sequence[tuple[str, str]]

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
        ...


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
    """

    timeout_s: float = 60.0
    api_key: str | None = None
    overload_attempts: int = 5
    wait_for_ready: bool = False

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
        method: Of a stub on a channel of :func:`regionsearch.rpc.open_channel`.
        request: Its message.
        policy: Time, key and patience.
        metadata: Further headers.

    Raises:
        RegionSearchError: What the server answered, or UNAVAILABLE when none could be reached.
    """
    with deadline(policy.timeout()):
        for attempt in itertools.count(1):
            try:
                return method(
                    request,
                    timeout=policy.timeout(),
                    metadata=policy.metadata(metadata),
                    wait_for_ready=policy.wait_for_ready,
                )
            except grpc.RpcError as error:
                time.sleep(_pause(from_rpc_error(error), attempt, policy))
    raise AssertionError("unreachable")


async def acall(
    method: Method[RequestT, grpc.aio.UnaryUnaryCall[RequestT, ResponseT]],
    request: RequestT,
    policy: CallPolicy = DEFAULT_POLICY,
    metadata: Metadata = (),
) -> ResponseT:
    """Calls a unary method on the event loop; see :func:`call`."""
    with deadline(policy.timeout()):
        for attempt in itertools.count(1):
            try:
                response: ResponseT = await method(
                    request,
                    timeout=policy.timeout(),
                    metadata=policy.metadata(metadata),
                    wait_for_ready=policy.wait_for_ready,
                )
            except grpc.RpcError as error:
                await asyncio.sleep(_pause(from_rpc_error(error), attempt, policy))
            else:
                return response
    raise AssertionError("unreachable")


def _pause(error: RegionSearchError, attempt: int, policy: CallPolicy) -> float:
    """Seconds to wait before the next attempt; raises `error` where there should be none."""
    if (
        error.kind is not Kind.OVERLOADED
        or error.retry_after_s is None
        or attempt >= policy.overload_attempts
    ):
        raise error
    pause: float = error.retry_after_s * random.uniform(1.0, 1.5) * 2 ** (attempt - 1)
    left = remaining()
    if left is not None and pause >= left:
        raise error
    return pause

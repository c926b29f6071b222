"""Around every call: authentication, admission, deadline, trace, metrics, typed errors; streams of items."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc
import structlog
from google.rpc import status_pb2
from opentelemetry import propagate, trace

from regionsearch.errors import Kind, RegionSearchError, to_status
from regionsearch.rpc.calls import CALLER_HEADER, caller_name, calling_for, deadline, peer_address
from services.runtime import metrics
from services.runtime.auth import ApiKeys
from services.runtime.health import METHOD_PREFIX as HEALTH
from services.runtime.requests import Load, Requests

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

REQUEST_ID = "x-request-id"

_log = structlog.get_logger(__name__)
_tracer = trace.get_tracer("regionsearch")

_Handler: TypeAlias = Any  # grpc-stubs give handlers the synchronous context
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Authenticates, admits, measures and traces calls, and answers failures with typed statuses.

    No request is received before the caller's key is checked. Malformed messages and unknown enum values are
    INVALID_ARGUMENT.

    The caller's deadline becomes the surrounding :func:`regionsearch.rpc.calls.deadline`, for the batcher and
    for calls that a handler makes.

    The caller, between whom work is shared (:mod:`regionsearch.rpc.calls`), is the one that the gateway
    names where `named_callers` is set, else it is derived from the key or the address.

    Health checks pass untouched. Handlers are coroutines or asynchronous generators, as generated stubs
    expect.
    """

    def __init__(self, keys: ApiKeys, load: Load, named_callers: bool) -> None:
        """Args:
        keys: Accepted API keys.
        load: Limits concurrent calls.
        named_callers: Whether callers are trusted to name the caller that they call for, as the gateway does.
        """
        self._keys = keys
        self._load = load
        self._named_callers = named_callers
        self._wrapped: dict[tuple[str, _Handler], _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Wraps the handler of a call; once per method."""
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or path.startswith(HEALTH):
            return handler
        if (path, handler) not in self._wrapped:
            self._wrapped[path, handler] = self._wrap(handler, path)
        return self._wrapped[path, handler]

    def _wrap(self, handler: _Handler, path: str) -> _Handler:
        """The same method with requests as bytes, received on demand.

        Every method is registered as one that takes a stream: for a unary request gRPC would receive and
        parse the message before the caller's key could be checked.
        """
        unary = handler.stream_unary or handler.unary_unary
        stream = handler.stream_stream or handler.unary_stream
        # Items of a bidirectional stream fail one by one.
        checked = not (handler.request_streaming and handler.response_streaming)

        @contextlib.asynccontextmanager
        async def request_of(context: _Context) -> AsyncIterator[Any]:
            async with self._call(path, context):
                requests = Requests(context, handler.request_deserializer, checked=checked)
                if handler.request_streaming:
                    yield requests
                else:
                    request, size = await requests.only()
                    with self._load.message(size):
                        yield request

        # A coroutine that writes, not a generator: gRPC leaves generators of cancelled calls behind, to be
        # closed by the garbage collector, in another context than that in which they were opened.
        async def answer_many(_: Any, context: _Context) -> None:
            async with (
                request_of(context) as request,
                contextlib.aclosing(stream(request, context)) as responses,
            ):
                async for response in responses:
                    try:
                        await context.write(response)
                    except grpc.aio.InternalError as error:
                        raise _ClientLeftError from error

        async def answer(_: Any, context: _Context) -> Any:
            async with request_of(context) as request:
                return await unary(request, context)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                answer_many, response_serializer=handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(answer, response_serializer=handler.response_serializer)

    @contextlib.asynccontextmanager
    async def _call(self, path: str, context: _Context) -> AsyncIterator[None]:
        _, service, method = path.split("/")
        measured = metrics.call_metrics(service, method)
        measured.started.inc()
        measured.in_flight.inc()
        begin = time.perf_counter()
        code = grpc.StatusCode.OK
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        request_id = _request_id(metadata)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        try:
            with (
                deadline(context.time_remaining()),
                structlog.contextvars.bound_contextvars(request_id=request_id, method=f"{service}/{method}"),
                _tracer.start_as_current_span(
                    f"{service}/{method}",
                    propagate.extract(metadata),
                    kind=trace.SpanKind.SERVER,
                    record_exception=False,
                    set_status_on_exception=False,
                ) as span,
            ):
                try:
                    address = peer_address(context.peer())
                    key = self._keys.check(metadata.get("authorization"), metadata.get("x-api-key"), address)
                    named = metadata.get(CALLER_HEADER, "") if self._named_callers else ""
                    who = named or caller_name(key, address)
                    with calling_for(who), self._load.call():
                        yield
                except grpc.aio.AbortError:
                    code = grpc.StatusCode(context.code())
                    raise
                except (Exception, asyncio.CancelledError) as error:
                    if is_over(error):  # the client went away, or its deadline passed
                        left = context.time_remaining()
                        late = left is not None and left <= 0
                        code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                        raise
                    status = to_status(typed(error))
                    code = status.code
                    span.set_status(trace.StatusCode.ERROR, status.details)
                    trailers = (*(status.trailing_metadata or ()), (REQUEST_ID, request_id))
                    await context.abort(status.code, status.details, trailers)
        finally:
            measured.in_flight.dec()
            measured.handling.observe(time.perf_counter() - begin)
            metrics.handled(service, method, code.name).inc()


class _ClientLeftError(asyncio.CancelledError):
    """The client has left; gRPC will cancel the handler, but has not yet."""


def is_over(error: BaseException) -> bool:
    """Whether a handler, or its task for one item of a stream, ended because the call did.

    A handler may also await something that was cancelled elsewhere. gRPC would take that for the end of the
    call and send nothing: the client would wait until its deadline.
    """
    task = asyncio.current_task()
    assert task is not None
    return isinstance(error, asyncio.CancelledError) and (
        isinstance(error, _ClientLeftError) or task.cancelling() > 0
    )


def typed(error: BaseException) -> RegionSearchError:
    """The error as the caller may see it; unexpected errors are logged here and not exposed."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # the single failure of a task group
    if isinstance(error, RegionSearchError):
        if error.kind is Kind.INTERNAL:
            _log.error("call failed", error=error.message)
        return error
    _log.exception("call failed unexpectedly")
    request_id = structlog.contextvars.get_contextvars().get("request_id", "")
    return RegionSearchError(
        Kind.INTERNAL, f"unexpected error; see the server's log for request_id {request_id}"
    )


def _request_id(metadata: dict[str, str]) -> str:
    given = metadata.get(REQUEST_ID, "")
    return given if 0 < len(given) <= 64 and given.isprintable() else uuid.uuid4().hex[:16]


async def answer_items(
    requests: AsyncIterable[RequestT],
    answer: Callable[[RequestT, Callable[[ResponseT], None]], Awaitable[ResponseT]],
    window: int,
) -> AsyncGenerator[ResponseT, None]:
    """Answers the requests of a stream at once, in the order in which answers get ready.

    Args:
        requests: The stream. Failing to read it ends the call.
        answer: Makes the last answer to a request, and may report others before; what it raises ends the
            call.
        window: How many requests may be in work, or wait for their last answer to be taken. Beyond that the
            stream is not read, so that neither requests nor answers to a slow reader pile up.
    """
    free = asyncio.Semaphore(window)
    answers: asyncio.Queue[tuple[ResponseT, bool] | None] = asyncio.Queue()

    async def answer_one(request: RequestT) -> None:
        last = await answer(request, lambda early: answers.put_nowait((early, False)))
        answers.put_nowait((last, True))

    async def read() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                async for request in requests:
                    await free.acquire()
                    group.create_task(answer_one(request))
        finally:
            answers.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (ready := await answers.get()) is not None:
            response, is_last = ready
            yield response
            if is_last:
                free.release()
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


def item_status(error: BaseException) -> status_pb2.Status:
    """What one item failed with, as its answer says it; call it where the error was caught.

    Raises:
        BaseException: The error itself, where the whole call is over.
    """
    if is_over(error):
        raise error
    packed = dict(to_status(typed(error)).trailing_metadata)["grpc-status-details-bin"]
    return status_pb2.Status.FromString(packed)

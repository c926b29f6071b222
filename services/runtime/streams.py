"""Bidirectional streams: many items at once, a bounded number of them, each with an end of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import TypeVar

from google.rpc import status_pb2

from regionsearch.errors import to_status
from services.runtime.interceptor import is_over, typed

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


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

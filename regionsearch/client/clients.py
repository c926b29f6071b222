"""The two clients: the same operations, one blocking, one on an event loop."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

from regionsearch import defaults
from regionsearch.client import operations
from regionsearch.client.operations import PAGE_SIZE, Operation
from regionsearch.client.results import Image, IngestResult, Problem
from regionsearch.client.sources import Source, name_of
from regionsearch.client.transports import (
    Address,
    AsyncGrpcTransport,
    AsyncHttpTransport,
    AsyncTransport,
    GrpcTransport,
    HttpTransport,
    Transport,
)
from regionsearch.errors import Kind, RegionSearchError

P = ParamSpec("P")
T = TypeVar("T")

POLL_S = 0.2

# What is wrong with one picture. Every other error would meet the next picture too, and is raised.
_OF_A_PICTURE = (Kind.INVALID_ARGUMENT, Kind.UNSUPPORTED_IMAGE, Kind.TOO_LARGE, Kind.INTERNAL)

OnResult = Callable[[IngestResult], object]


class _Blocking(Generic[P, T]):
    """A method of `Client` made from an operation: same arguments, its result."""

    def __init__(self, operation: Callable[P, Operation[T]]) -> None:
        self._operation = operation

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, Operation[T]]: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    def __get__(self, client: Client | None, owner: type) -> Callable[P, Any]:
        if client is None:
            return self._operation

        @functools.wraps(self._operation)
        def method(*args: P.args, **kwargs: P.kwargs) -> T:
            return client.send(self._operation(*args, **kwargs))

        return method


class _Awaited(Generic[P, T]):
    """A method of `AsyncClient` made from an operation: same arguments, its result when awaited."""

    def __init__(self, operation: Callable[P, Operation[T]]) -> None:
        self._operation = operation

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, Operation[T]]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: AsyncClient | None, owner: type) -> Callable[P, Any]:
        if client is None:
            return self._operation

        @functools.wraps(self._operation)
        async def method(*args: P.args, **kwargs: P.kwargs) -> T:
            return await client.send(self._operation(*args, **kwargs))

        return method


class Client:
    """Talks to a gateway and waits for the answers; may be used from many threads.

    Every failure is a `RegionSearchError`. The methods' arguments are described in
    `regionsearch.client.operations`.

    Args:
        url: Its address: http://, https://, grpc:// or grpcs://. Over gRPC there are ingest, search, within,
            images and delete.
        api_key: Sent with every call.
        timeout_s: Longest wait for one answer.
        retries: Tries after the first, when the server is overloaded or away.
        ca: PEM file of the authority to trust; the system's when absent.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for what is no address.
    """

    def __init__(
        self,
        url: str = defaults.URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 300,
        retries: int = 5,
        ca: Path | None = None,
    ) -> None:
        address = Address(url, api_key, timeout_s, retries, ca)
        self.url = url
        self._transport: Transport = GrpcTransport(address) if address.over_grpc else HttpTransport(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def send(self, operation: Operation[T]) -> T:
        """Sends an operation and waits for its result."""
        return self._transport.send(operation)

    search = _Blocking(operations.search)
    within = _Blocking(operations.within)
    render = _Blocking(operations.render)
    segment = _Blocking(operations.segment)
    embed = _Blocking(operations.embed)
    collections = _Blocking(operations.collections)
    create_collection = _Blocking(operations.create_collection)
    delete_collection = _Blocking(operations.delete_collection)
    list_images = _Blocking(operations.list_images)
    content = _Blocking(operations.content)
    regions = _Blocking(operations.regions)
    export_hits = _Blocking(operations.export_hits)
    export_regions = _Blocking(operations.export_regions)
    delete_image = _Blocking(operations.delete_image)
    ready = _Blocking(operations.ready)

    def ingest(
        self,
        sources: Iterable[Source],
        collection: str = defaults.COLLECTION,
        *,
        tags: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        at_once: int = 4,
        on_result: OnResult = lambda result: None,
    ) -> list[IngestResult]:
        """Adds pictures: paths, bytes, or (name, bytes) pairs. One result for each, in their order.

        A picture that is there already is a `duplicate`; one that cannot be read is `failed` and says why.
        Sources are taken only as there is room for them, so that they may come from a generator.

        Args:
            sources: The pictures.
            collection: Where to.
            tags: Put on each of them.
            attributes: Further facts, for each of them.
            at_once: Pictures on their way at the same time.
            on_result: Called when a picture is done, one at a time.

        Raises:
            RegionSearchError: For what is wrong with more than one picture: no such collection, no
                permission, a server that stays away. What was stored by then stays.
        """
        results: dict[int, IngestResult] = {}
        running: dict[Future[IngestResult], int] = {}

        def collect(return_when: str) -> None:
            done, _ = wait(running, return_when=return_when)
            for future in done:
                results[running.pop(future)] = result = future.result()
                on_result(result)

        def add(source: Source) -> IngestResult:
            try:
                return self.send(operations.ingest_one(source, collection, tags=tags, attributes=attributes))
            except RegionSearchError as error:
                return _failed(source, error)

        with ThreadPoolExecutor(at_once, thread_name_prefix="ingest") as pool:
            for index, source in enumerate(sources):
                if len(running) >= at_once:
                    collect(FIRST_COMPLETED)
                running[pool.submit(add, source)] = index
            while running:
                collect(FIRST_COMPLETED)
        return [results[index] for index in range(len(results))]

    def images(self, collection: str = defaults.COLLECTION) -> Iterator[Image]:
        """All images, newest first, fetched page by page."""
        token = ""
        while True:
            page = self.list_images(collection, page_size=PAGE_SIZE, page_token=token)
            yield from page.images
            token = page.next_page_token
            if not token:
                return

    def wait_ready(self, timeout_s: float = 120) -> None:
        """Returns once the gateway can do its work.

        Raises:
            RegionSearchError: UNAVAILABLE when it cannot after that time; says what it waits for.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if (state := self.ready()).ready:
                    return
                reason = state.reason
            except RegionSearchError as error:
                reason = _reason_to_wait(error)
            if time.monotonic() >= deadline:
                raise _not_ready(self.url, timeout_s, reason)
            time.sleep(POLL_S)


class AsyncClient:
    """`Client` for asyncio: the same arguments, methods that are awaited."""

    def __init__(
        self,
        url: str = defaults.URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 300,
        retries: int = 5,
        ca: Path | None = None,
    ) -> None:
        address = Address(url, api_key, timeout_s, retries, ca)
        self.url = url
        self._transport: AsyncTransport = (
            AsyncGrpcTransport(address) if address.over_grpc else AsyncHttpTransport(address)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def send(self, operation: Operation[T]) -> T:
        """Sends an operation and awaits its result."""
        return await self._transport.send(operation)

    search = _Awaited(operations.search)
    within = _Awaited(operations.within)
    render = _Awaited(operations.render)
    segment = _Awaited(operations.segment)
    embed = _Awaited(operations.embed)
    collections = _Awaited(operations.collections)
    create_collection = _Awaited(operations.create_collection)
    delete_collection = _Awaited(operations.delete_collection)
    list_images = _Awaited(operations.list_images)
    content = _Awaited(operations.content)
    regions = _Awaited(operations.regions)
    export_hits = _Awaited(operations.export_hits)
    export_regions = _Awaited(operations.export_regions)
    delete_image = _Awaited(operations.delete_image)
    ready = _Awaited(operations.ready)

    async def ingest(
        self,
        sources: Iterable[Source],
        collection: str = defaults.COLLECTION,
        *,
        tags: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        at_once: int = 4,
        on_result: OnResult = lambda result: None,
    ) -> list[IngestResult]:
        """Adds pictures; see `Client.ingest`."""
        results: dict[int, IngestResult] = {}
        waiting = enumerate(sources)

        async def work() -> None:
            for index, source in waiting:  # shared: each worker takes the next one
                add = operations.ingest_one(source, collection, tags=tags, attributes=attributes)
                try:
                    results[index] = await self.send(add)
                except RegionSearchError as error:
                    results[index] = _failed(source, error)
                on_result(results[index])

        workers = [asyncio.ensure_future(work()) for _ in range(at_once)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [results[index] for index in range(len(results))]

    async def images(self, collection: str = defaults.COLLECTION) -> AsyncIterator[Image]:
        """All images, newest first, fetched page by page."""
        token = ""
        while True:
            page = await self.list_images(collection, page_size=PAGE_SIZE, page_token=token)
            for image in page.images:
                yield image
            token = page.next_page_token
            if not token:
                return

    async def wait_ready(self, timeout_s: float = 120) -> None:
        """Returns once the gateway can do its work; see `Client.wait_ready`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if (state := await self.ready()).ready:
                    return
                reason = state.reason
            except RegionSearchError as error:
                reason = _reason_to_wait(error)
            if time.monotonic() >= deadline:
                raise _not_ready(self.url, timeout_s, reason)
            await asyncio.sleep(POLL_S)


def _failed(source: Source, error: RegionSearchError) -> IngestResult:
    """The result of a picture that is at fault itself; raises the error of anything else."""
    if error.kind not in _OF_A_PICTURE:
        raise error
    problem = Problem(code=error.kind.value, detail=error.message)
    return IngestResult(name=name_of(source), outcome="failed", error=problem)


def _reason_to_wait(error: RegionSearchError) -> str:
    """Why a server is not ready yet; raises an error that waiting does not cure."""
    if error.kind not in (Kind.UNAVAILABLE, Kind.DEADLINE_EXCEEDED, Kind.OVERLOADED):
        raise error
    return error.message


def _not_ready(url: str, timeout_s: float, reason: str) -> RegionSearchError:
    return RegionSearchError(Kind.UNAVAILABLE, f"{url} is not ready after {timeout_s:g} s: {reason}")

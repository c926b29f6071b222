"""The two clients: the same operations, one blocking, one on an event loop."""

from __future__ import annotations

import asyncio
import functools
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

from regionsearch import defaults
from regionsearch.client import operations
from regionsearch.client.operations import PAGE_SIZE, Operation
from regionsearch.client.results import Collection, Image, IngestProgress, IngestResult, Readiness
from regionsearch.client.sources import Source
from regionsearch.client.streaming import IngestStream, failed
from regionsearch.client.transports import (
    Address,
    AsyncGrpcTransport,
    AsyncHttpTransport,
    AsyncTransport,
    GrpcTransport,
    HttpTransport,
    Transport,
)
from regionsearch.errors import Kind, RegionSearchError, invalid

P = ParamSpec("P")
T = TypeVar("T")

POLL_S = 0.2

OnResult = Callable[[IngestResult], object]


class _Method(Generic[P, T]):
    """A method of both clients made from an operation: same arguments; its result, or one to await."""

    def __init__(self, operation: Callable[P, Operation[T]]) -> None:
        self._operation = operation

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, Operation[T]]: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Callable[P, Any]:
        if client is None:
            return self._operation

        @functools.wraps(self._operation)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.send(self._operation(*args, **kwargs))

        return method


class _Operations(ABC):
    """The address of a gateway, and all that it can be asked."""

    search = _Method(operations.search)
    within = _Method(operations.within)
    render = _Method(operations.render)
    segment = _Method(operations.segment)
    embed = _Method(operations.embed)
    list_collections = _Method(operations.list_collections)
    create_collection = _Method(operations.create_collection)
    delete_collection = _Method(operations.delete_collection)
    list_images = _Method(operations.list_images)
    content = _Method(operations.content)
    regions = _Method(operations.regions)
    export_hits = _Method(operations.export_hits)
    export_regions = _Method(operations.export_regions)
    delete_image = _Method(operations.delete_image)
    ready = _Method(operations.ready)

    def __init__(
        self,
        url: str = defaults.URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 300,
        retries: int = 5,
        ca: Path | None = None,
    ) -> None:
        self.url = url
        self._connect(Address(url, api_key, timeout_s, retries, ca))

    @abstractmethod
    def _connect(self, address: Address) -> None:
        """Makes the transport, of which each client has its own kind."""


class Client(_Operations):
    """Talks to a gateway and waits for the answers; may be used from many threads.

    Every failure is a `RegionSearchError`. The methods' arguments are described in
    `regionsearch.client.operations`.

    Args:
        url: Its address: http://, https://, grpc:// or grpcs://. Over gRPC there are ingest, ingest_stream,
            search, within, list_images, images, delete_image and ready; the rest is UNIMPLEMENTED there.
        api_key: Sent with every call.
        timeout_s: Longest wait for one answer.
        retries: Tries after the first, when the server is overloaded or away.
        ca: PEM file of the authority to trust; the system's when absent.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for what is no address.
    """

    def _connect(self, address: Address) -> None:
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
        _check_at_once(at_once)
        results: dict[int, IngestResult] = {}
        running: dict[Future[IngestResult], int] = {}

        def collect() -> None:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                results[running.pop(future)] = result = future.result()
                on_result(result)

        def add(source: Source) -> IngestResult:
            try:
                return self.send(operations.ingest_one(source, collection, tags=tags, attributes=attributes))
            except Exception as error:
                return failed(source, error)

        with ThreadPoolExecutor(at_once, thread_name_prefix="ingest") as pool:
            for index, source in enumerate(sources):
                if len(running) >= at_once:
                    collect()
                running[pool.submit(add, source)] = index
            while running:
                collect()
        return [results[index] for index in range(len(results))]

    def ingest_stream(
        self,
        sources: Iterable[Source],
        collection: str = defaults.COLLECTION,
        *,
        tags: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
    ) -> Iterator[IngestProgress]:
        """Adds pictures like `ingest`, over one gRPC stream that tells of each stage of each picture.

        The server gives these pictures way to those of `ingest`. A picture that was refused for any reason is
        `failed` under its code; leaving the loop stops what is not done yet. When the stream breaks off, as
        with a restart of the gateway, what has no result is sent over another, and tells of its stages again:
        `duplicate` is then also a picture that had just been added.

        Raises:
            RegionSearchError: When the stream fails and another one is not worth it, or all `retries` in a
                row have failed; UNIMPLEMENTED over HTTP.
        """
        return self._transport.ingest(IngestStream(sources, collection, tags=tags, attributes=attributes))

    def collections(self) -> tuple[Collection, ...]:
        """All collections, by name."""
        page = self.list_collections()
        found = list(page.collections)
        while page.next_page_token:
            page = self.list_collections(page_token=page.next_page_token)
            found += page.collections
        return tuple(found)

    def images(self, collection: str = defaults.COLLECTION) -> Iterator[Image]:
        """All images, newest first, fetched page by page."""
        token: str | None = ""
        while token is not None:
            page = self.list_images(collection, page_size=PAGE_SIZE, page_token=token)
            yield from page.images
            token = page.next_page_token or None

    def wait_ready(self, timeout_s: float = 120) -> None:
        """Returns once the gateway can do its work.

        Raises:
            RegionSearchError: UNAVAILABLE when it cannot after that time; says what it waits for.
        """
        wait = _Wait(self.url, timeout_s)
        while True:
            try:
                state = self.ready()
            except RegionSearchError as error:
                wait.failed(error)
            else:
                if wait.over(state):
                    return
            time.sleep(POLL_S)


class AsyncClient(_Operations):
    """`Client` for asyncio: the same arguments, methods that are awaited."""

    def _connect(self, address: Address) -> None:
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
        _check_at_once(at_once)
        results: dict[int, IngestResult] = {}
        waiting = enumerate(sources)

        async def work() -> None:
            for index, source in waiting:  # shared: each worker takes the next one
                try:
                    add = operations.ingest_one(source, collection, tags=tags, attributes=attributes)
                    results[index] = await self.send(add)
                except Exception as error:
                    results[index] = failed(source, error)
                on_result(results[index])

        workers = [asyncio.ensure_future(work()) for _ in range(at_once)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [results[index] for index in range(len(results))]

    def ingest_stream(
        self,
        sources: Iterable[Source],
        collection: str = defaults.COLLECTION,
        *,
        tags: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
    ) -> AsyncIterator[IngestProgress]:
        """Adds pictures over one gRPC stream; see `Client.ingest_stream`."""
        return self._transport.ingest(IngestStream(sources, collection, tags=tags, attributes=attributes))

    async def collections(self) -> tuple[Collection, ...]:
        """All collections, by name."""
        page = await self.list_collections()
        found = list(page.collections)
        while page.next_page_token:
            page = await self.list_collections(page_token=page.next_page_token)
            found += page.collections
        return tuple(found)

    async def images(self, collection: str = defaults.COLLECTION) -> AsyncIterator[Image]:
        """All images, newest first, fetched page by page."""
        token: str | None = ""
        while token is not None:
            page = await self.list_images(collection, page_size=PAGE_SIZE, page_token=token)
            for image in page.images:
                yield image
            token = page.next_page_token or None

    async def wait_ready(self, timeout_s: float = 120) -> None:
        """Returns once the gateway can do its work; see `Client.wait_ready`."""
        wait = _Wait(self.url, timeout_s)
        while True:
            try:
                state = await self.ready()
            except RegionSearchError as error:
                wait.failed(error)
            else:
                if wait.over(state):
                    return
            await asyncio.sleep(POLL_S)


def _check_at_once(at_once: int) -> None:
    if at_once < 1:
        raise invalid("at_once", f"at_once is the number of pictures on their way, at least 1, not {at_once}")


class _Wait:
    """Waiting for a gateway, up to a time."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    def over(self, state: Readiness) -> bool:
        """Whether the gateway is ready; raises UNAVAILABLE when the time is up."""
        if not state.ready:
            self._go_on(state.reason)
        return state.ready

    def failed(self, error: RegionSearchError) -> None:
        """Takes an error for "not yet"; raises it when waiting does not cure it, or the time is up."""
        if error.kind not in (Kind.UNAVAILABLE, Kind.DEADLINE_EXCEEDED, Kind.OVERLOADED):
            raise error
        self._go_on(error.message)

    def _go_on(self, reason: str) -> None:
        if time.monotonic() >= self._deadline:
            message = f"{self._url} is not ready after {self._timeout_s:g} s: {reason}"
            raise RegionSearchError(Kind.UNAVAILABLE, message)

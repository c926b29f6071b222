"""The two clients: the same operations, one blocking, one on an event loop."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import PIL.Image

from regionsearch import defaults
from regionsearch.client.grpc_transport import AsyncGrpcTransport, GrpcTransport
from regionsearch.client.http_transport import AsyncHttpTransport, HttpTransport
from regionsearch.client.image_inputs import ImageInput, several
from regionsearch.client.importing import Import, OnLoop, OnResult
from regionsearch.client.methods import Methods
from regionsearch.client.operations.base import Operation
from regionsearch.client.transports import Address
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.schemas.requests.inference import EverythingOptions
from regionsearch.schemas.responses.records import Collection, Image, IngestProgress, IngestResult
from regionsearch.schemas.responses.scrolls import StoredRecord
from regionsearch.schemas.responses.searches import Hit, SearchResult
from regionsearch.schemas.responses.values import Readiness

if TYPE_CHECKING:
    from regionsearch.client.drawing import Gallery

T = TypeVar("T")

PAGE_SIZE = 500
POLL_S = 0.2


class Client(Methods):
    """Talks to a gateway and waits for the answers; may be used from many threads.

    Every failure is a `RegionSearchError`. The methods' arguments are described in
    `regionsearch.client.operations`.

    Args:
        url: Its address: http://, https://, grpc:// or grpcs://. Over gRPC there are ingest, ingest_stream,
            search, scroll, records, count, map, within, list_images, images, check_images, update_image,
            delete_image and ready; the rest is UNIMPLEMENTED there.
        api_key: Sent with every call.
        timeout_s: Longest wait for one answer.
        retries: Tries after the first, when the server is overloaded or away.
        ca: PEM file of the authority to trust; the system's when absent.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for what is not an address.
    """

    def _connect(self, address: Address) -> None:
        self._transport = GrpcTransport(address) if address.over_grpc else HttpTransport(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; every later call is FAILED_PRECONDITION."""
        self._closed = True
        self._transport.close()

    def send(self, operation: Operation[T]) -> T:
        """Sends an operation and waits for its result."""
        self._check_open()
        return self._transport.send(operation)

    def ingest(
        self,
        sources: ImageInput | Iterable[ImageInput],
        collection: str = defaults.COLLECTION,
        *,
        tags: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        everything: EverythingOptions | None = None,
        at_once: int = 4,
        resend: bool = False,
        on_result: OnResult = lambda result: None,
    ) -> list[IngestResult]:
        """Adds images: files, folders of them, bytes, pixels, or (name, image) pairs. One result for each.

        An image that is there already is a `duplicate`, and gets the tags and attributes too; files are asked
        about by their SHA-256, so that the bytes of known ones are not sent. One that cannot be added, for
        whatever reason, is `failed` and says why. Sources are taken only as there is room for them, so that
        they may come from a generator.

        Args:
            sources: The images, or one; a folder stands for the images in it, named by their paths below it.
            collection: Where to.
            tags: Put on each of them.
            attributes: Further facts, for each of them.
            everything: How regions are looked for in each of them; None: as it suits the model.
            at_once: Images on their way at the same time.
            resend: Send the bytes of known files too: where the stored file is damaged, it is replaced.
            on_result: Called when an image is done, one at a time.

        Raises:
            RegionSearchError: For what is wrong with more than one image: no such collection, no
                permission, a server that stays away. What was stored by then stays.
        """
        wanted = Import(collection, tags, attributes, everything, at_once, resend, on_result)
        return wanted.run(self, several(sources))

    def ingest_stream(
        self,
        sources: ImageInput | Iterable[ImageInput],
        collection: str = defaults.COLLECTION,
        *,
        tags: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        everything: EverythingOptions | None = None,
        resend: bool = False,
    ) -> Iterator[IngestProgress]:
        """Adds images like `ingest`, over one gRPC stream that tells of each stage of each image.

        The server gives these images way to those of `ingest`. An image that was refused for any reason is
        `failed` under its code; leaving the loop stops what is not done yet. When the stream breaks off, as
        with a restart of the gateway, what has no result is sent over another, and tells of its stages again:
        `duplicate` is then also an image that had just been added.

        Raises:
            RegionSearchError: When the stream fails and another one is not worth it, or all `retries` in a
                row have failed; UNIMPLEMENTED over HTTP.
        """
        wanted = Import(collection, tags, attributes, everything, resend=resend)
        self._check_open()
        return self._transport.ingest(wanted.stream(self, several(sources)))

    def collections(self) -> tuple[Collection, ...]:
        """All collections, by name."""
        page = self.list_collections(page_size=PAGE_SIZE)
        found = list(page.collections)
        while page.next_page_token:
            page = self.list_collections(page_size=PAGE_SIZE, page_token=page.next_page_token)
            found += page.collections
        return tuple(found)

    def images(
        self,
        collection: str = defaults.COLLECTION,
        *,
        filter: Mapping[str, Any] | None = None,
        order_by: str | None = None,
        ascending: bool | None = None,
    ) -> Iterator[Image]:
        """All images, or those of which a record passes a filter, fetched page by page; options as of
        `list_images`.
        """
        asked: dict[str, Any] = {"filter": filter, "order_by": order_by, "ascending": ascending}
        token: str | None = ""
        while token is not None:
            page = self.list_images(collection, page_size=PAGE_SIZE, page_token=token, **asked)
            yield from page.images
            token = page.next_page_token or None

    def records(self, collection: str = defaults.COLLECTION, **options: Any) -> Iterator[StoredRecord]:
        """All regions and whole images that pass a filter, fetched page by page; options as of `scroll`."""
        token: str | None = ""
        while token is not None:
            page = self.scroll(collection, **{"page_size": PAGE_SIZE} | options | {"page_token": token})
            yield from page.records
            token = page.next_page_token or None

    def search_pages(self, *args: Any, **options: Any) -> Iterator[SearchResult]:
        """The pages of a search, fetched as they are asked for; arguments as of `search`."""
        page: SearchResult = self.search(*args, **options)
        yield page
        while page.next_page_token:
            page = self.search(*args, **options | {"page_token": page.next_page_token})
            yield page

    def near_duplicates(
        self,
        collection: str = defaults.COLLECTION,
        *,
        similarity: float = 0.98,
        filter: Mapping[str, Any] | None = None,
    ) -> Iterator[list[Image]]:
        """Groups of images that look nearly the same, such as copies in other sizes; a search for each image.

        Args:
            collection: Where to look.
            similarity: Lowest cosine with the first image of a group, the one that was added first.
            filter: Only images of which a record passes, as of `search`.
        """
        images = {one.image_id: one for one in self.images(collection, filter=filter, ascending=True)}
        for first in list(images):
            if first not in images:
                continue  # it is in an earlier group
            hits = self.search(
                collection=collection,
                image_id=first,
                level="image",
                min_score=similarity,
                page_size=PAGE_SIZE,
            )
            alike = [images.pop(one) for one in (first, *(hit.image_id for hit in hits)) if one in images]
            if len(alike) > 1:
                yield alike

    def draw(self, hit: Hit, collection: str = defaults.COLLECTION) -> PIL.Image.Image:
        """The image of a hit with the hit outlined; without its mask (`include=["mask"]`), its box."""
        from regionsearch.client.drawing import outline

        return PIL.Image.open(io.BytesIO(outline(self.content(hit.image_id, collection), hit)))

    def gallery(
        self, hits: Iterable[Hit], collection: str = defaults.COLLECTION, *, width: int = 240
    ) -> Gallery:
        """Shows hits in a notebook, each outlined in its image.

        Args:
            hits: A result, or some of its hits; outlined by their masks (`include=["mask"]`), else boxes.
            collection: Where they were found.
            width: Longest side of each image, in pixels.
        """
        from regionsearch.client.drawing import Gallery

        shown = tuple(hits)
        return Gallery(shown, [self.draw(hit, collection) for hit in shown], width)

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


class AsyncClient(Methods):
    """`Client` for asyncio: the same arguments, methods that are awaited."""

    awaits = True

    def _connect(self, address: Address) -> None:
        self._transport = AsyncGrpcTransport(address) if address.over_grpc else AsyncHttpTransport(address)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; every later call is FAILED_PRECONDITION."""
        self._closed = True
        await self._transport.close()

    async def send(self, operation: Operation[T]) -> T:
        """Sends an operation and awaits its result."""
        self._check_open()
        return await self._transport.send(operation)

    async def ingest(
        self,
        sources: ImageInput | Iterable[ImageInput],
        collection: str = defaults.COLLECTION,
        *,
        tags: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        everything: EverythingOptions | None = None,
        at_once: int = 4,
        resend: bool = False,
        on_result: OnResult = lambda result: None,
    ) -> list[IngestResult]:
        """Adds images; see `Client.ingest`."""
        wanted = Import(collection, tags, attributes, everything, at_once, resend, on_result)
        return await wanted.arun(self, several(sources))

    def ingest_stream(
        self,
        sources: ImageInput | Iterable[ImageInput],
        collection: str = defaults.COLLECTION,
        *,
        tags: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        everything: EverythingOptions | None = None,
        resend: bool = False,
    ) -> AsyncIterator[IngestProgress]:
        """Adds images over one gRPC stream; see `Client.ingest_stream`. Call it on the event loop."""
        wanted = Import(collection, tags, attributes, everything, resend=resend)
        client = OnLoop(self, asyncio.get_running_loop())
        self._check_open()
        return self._transport.ingest(wanted.stream(client, several(sources)))

    async def collections(self) -> tuple[Collection, ...]:
        """All collections, by name."""
        page = await self.list_collections(page_size=PAGE_SIZE)
        found = list(page.collections)
        while page.next_page_token:
            page = await self.list_collections(page_size=PAGE_SIZE, page_token=page.next_page_token)
            found += page.collections
        return tuple(found)

    async def images(
        self,
        collection: str = defaults.COLLECTION,
        *,
        filter: Mapping[str, Any] | None = None,
        order_by: str | None = None,
        ascending: bool | None = None,
    ) -> AsyncIterator[Image]:
        """All images, or those of which a record passes a filter, fetched page by page; options as of
        `list_images`.
        """
        asked: dict[str, Any] = {"filter": filter, "order_by": order_by, "ascending": ascending}
        token: str | None = ""
        while token is not None:
            page = await self.list_images(collection, page_size=PAGE_SIZE, page_token=token, **asked)
            for image in page.images:
                yield image
            token = page.next_page_token or None

    async def records(
        self, collection: str = defaults.COLLECTION, **options: Any
    ) -> AsyncIterator[StoredRecord]:
        """All regions and whole images that pass a filter, fetched page by page; options as of `scroll`."""
        token: str | None = ""
        while token is not None:
            page = await self.scroll(collection, **{"page_size": PAGE_SIZE} | options | {"page_token": token})
            for record in page.records:
                yield record
            token = page.next_page_token or None

    async def search_pages(self, *args: Any, **options: Any) -> AsyncIterator[SearchResult]:
        """The pages of a search, fetched as they are asked for; arguments as of `search`."""
        page: SearchResult = await self.search(*args, **options)
        yield page
        while page.next_page_token:
            page = await self.search(*args, **options | {"page_token": page.next_page_token})
            yield page

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

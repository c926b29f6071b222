"""How `Client.ingest` and `AsyncClient.ingest` work: several at once, files asked about before they are sent.

A file's image is known by the SHA-256 of its bytes. What is stored already is not sent again; it only gets
the tags and attributes of the import.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol, TypeVar

from regionsearch.client.image_inputs import ImageInput, name_of, open_file, path_of
from regionsearch.client.operations.base import Operation
from regionsearch.client.operations.images import check_images, ingest_one, update_image
from regionsearch.client.streaming import IngestStream, failed
from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.rpc.calls import gather_or_cancel
from regionsearch.schemas.requests.inference import EverythingOptions
from regionsearch.schemas.responses.records import Image, IngestResult, UpdatedImage

T = TypeVar("T")

ASKED_AT_ONCE = 64

OnResult = Callable[[IngestResult], object]


class Sender(Protocol):
    """A client that blocks."""

    def send(self, operation: Operation[T]) -> T:
        """Sends an operation and waits for its result."""


class AsyncSender(Protocol):
    """A client on an event loop."""

    def send(self, operation: Operation[T]) -> Coroutine[Any, Any, T]:
        """Sends an operation and awaits its result."""


class OnLoop:
    """A client on an event loop, for other threads."""

    def __init__(self, client: AsyncSender, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    def send(self, operation: Operation[T]) -> T:
        """Sends an operation and waits for its result."""
        return asyncio.run_coroutine_threadsafe(self._client.send(operation), self._loop).result()


@dataclass(frozen=True)
class Import:
    """What is wanted for all images of an import; see `Client.ingest`.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for less than one image at once.
    """

    collection: str
    tags: Sequence[str] = ()
    attributes: Mapping[str, str] | None = None
    everything: EverythingOptions | None = None
    at_once: int = 4
    resend: bool = False
    on_result: OnResult = lambda result: None

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise invalid(
                "at_once", f"at_once is the number of images on their way, at least 1, not {self.at_once}"
            )

    def run(self, client: Sender, sources: Iterable[ImageInput]) -> list[IngestResult]:
        """Adds the images; one result for each, in their order."""
        results: dict[int, IngestResult] = {}
        running: dict[Future[IngestResult], int] = {}

        def collect() -> None:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                results[running.pop(future)] = result = future.result()
                self.on_result(result)

        def add(source: ImageInput, stored: Image | None) -> IngestResult:
            try:
                if stored is not None:
                    try:
                        changes = self._changes(source, stored)
                        after = client.send(changes) if changes is not None else stored
                        return _duplicate(source, stored, after)
                    except RegionSearchError as error:
                        _check_deleted(error)
                return client.send(self._sending(source))
            except Exception as error:
                return failed(source, error)

        with ThreadPoolExecutor(self.at_once, thread_name_prefix="ingest") as pool:
            for batch in _batches(sources):
                ids = [] if self.resend else list(pool.map(_file_id, batch))
                known: dict[str | None, Image] = {}
                if question := self._question(ids):
                    try:
                        known = {image.image_id: image for image in client.send(question)}
                    except RegionSearchError as error:
                        _check_understood(error)
                for source, identity in zip_longest(batch, ids):
                    if len(running) >= self.at_once:
                        collect()
                    index = len(results) + len(running)
                    running[pool.submit(add, source, known.get(identity))] = index
            while running:
                collect()
        return [results[index] for index in range(len(results))]

    async def arun(self, client: AsyncSender, sources: Iterable[ImageInput]) -> list[IngestResult]:
        """`run` on an event loop."""
        results: dict[int, IngestResult] = {}
        batches = _batches(sources)
        ready: deque[tuple[int, ImageInput, Image | None]] = deque()
        taking = asyncio.Lock()
        indexes = itertools.count()

        async def take() -> tuple[int, ImageInput, Image | None] | None:
            """The next source; where none is ready, asks about those that follow."""
            async with taking:
                if not ready and (batch := next(batches, None)):
                    hashing = (asyncio.to_thread(_file_id, source) for source in batch)
                    ids = [] if self.resend else await asyncio.gather(*hashing)
                    known: dict[str | None, Image] = {}
                    if question := self._question(ids):
                        try:
                            known = {image.image_id: image for image in await client.send(question)}
                        except RegionSearchError as error:
                            _check_understood(error)
                    pairs = zip_longest(batch, ids)
                    ready.extend((next(indexes), source, known.get(identity)) for source, identity in pairs)
                return ready.popleft() if ready else None

        async def add(source: ImageInput, stored: Image | None) -> IngestResult:
            try:
                if stored is not None:
                    try:
                        changes = self._changes(source, stored)
                        after = await client.send(changes) if changes is not None else stored
                        return _duplicate(source, stored, after)
                    except RegionSearchError as error:
                        _check_deleted(error)
                return await client.send(self._sending(source))
            except Exception as error:
                return failed(source, error)

        async def work() -> None:
            while (job := await take()) is not None:
                index, source, stored = job
                results[index] = await add(source, stored)
                self.on_result(results[index])

        await gather_or_cancel(*(work() for _ in range(self.at_once)))
        return [results[index] for index in range(len(results))]

    def stream(self, client: Sender, sources: Iterable[ImageInput]) -> IngestStream:
        """One gRPC stream of what the collection does not know yet; `client` asks what that is."""
        return IngestStream(
            sources,
            self.collection,
            tags=self.tags,
            attributes=self.attributes,
            everything=self.everything,
            unknown=functools.partial(self.unknown, client),
        )

    def unknown(
        self, client: Sender, sources: Iterable[ImageInput], tell: Callable[[IngestResult], object]
    ) -> Iterator[ImageInput]:
        """The sources that have to be sent, for a stream; the results of the others are told.

        Whatever goes wrong with the asking, sending goes on: it ends with the same result.
        """
        for batch in _batches(sources):
            ids = [] if self.resend else list(map(_file_id, batch))
            known: dict[str | None, Image] = {}
            if question := self._question(ids):
                with suppress(RegionSearchError):
                    known = {image.image_id: image for image in client.send(question)}
            for source, identity in zip_longest(batch, ids):
                stored = known.get(identity)
                with suppress(RegionSearchError):
                    if stored is not None:
                        changes = self._changes(source, stored)
                        after = client.send(changes) if changes is not None else stored
                        tell(_duplicate(source, stored, after))
                        continue
                yield source

    def _sending(self, source: ImageInput) -> Operation[IngestResult]:
        return ingest_one(
            source,
            self.collection,
            tags=self.tags,
            attributes=self.attributes,
            everything=self.everything,
        )

    def _question(self, ids: Sequence[str | None]) -> Operation[tuple[Image, ...]] | None:
        asked = [identity for identity in ids if identity]
        return check_images(asked, self.collection) if asked else None

    def _changes(self, source: ImageInput, image: Image) -> Operation[UpdatedImage] | None:
        """What a stored image has to learn: tags, attributes, and a name if it has none. None for nothing."""
        news: dict[str, Any] = {
            "add_tags": [tag for tag in dict.fromkeys(self.tags) if tag not in image.tags],
            "attributes": dict((self.attributes or {}).items() - image.attributes.items()),
            "name": name_of(source) if not image.name else None,
        }
        if not any(news.values()):
            return None
        return update_image(image.image_id, self.collection, **news)


def _batches(sources: Iterable[ImageInput]) -> Iterator[Sequence[ImageInput]]:
    """Sources in groups that are asked about in one request.

    Only what is there at once is grouped: a generator, which may have to wait for its next file, is not.
    """
    if isinstance(sources, Sequence):
        for start in range(0, len(sources), ASKED_AT_ONCE):
            yield sources[start : start + ASKED_AT_ONCE]
    else:
        yield from ([source] for source in sources)


def _file_id(source: ImageInput) -> str | None:
    """The id that a file's image has, if it is stored.

    None for what is in memory already, where asking saves little, and for what cannot be read: sending it
    tells why.
    """
    try:
        path = path_of(source)
        if path is None:
            return None
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except Exception:
        return None


def _check_understood(error: RegionSearchError) -> None:
    """Raises what is wrong with more than the question: a gateway may be too old for it."""
    if error.kind not in (Kind.NOT_FOUND, Kind.UNIMPLEMENTED):  # also of the collection, as sending will tell
        raise error


def _check_deleted(error: RegionSearchError) -> None:
    """Raises what is wrong with a change, but that the image has been deleted meanwhile: then it is sent."""
    if error.kind is not Kind.NOT_FOUND:
        raise error


def _duplicate(source: ImageInput, before: Image, after: Image) -> IngestResult:
    """The result of a file whose image was stored already, as it was found and as it is now."""
    name = name_of(source)
    return IngestResult(
        name=name,
        outcome="duplicate",
        image_id=after.image_id,
        regions=after.region_count,
        known_as=after.name if after.name not in ("", name) else None,
        tags=after.tags,
        added_tags=tuple(tag for tag in after.tags if tag not in before.tags),
        seq=after.seq if isinstance(after, UpdatedImage) else None,
    )

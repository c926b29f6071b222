"""The two clients: the same calls, sent and waited for in their own way.

Both raise `RegionSearchError` for every failure and wait patiently when the server says that it is
overloaded: all calls can be repeated without harm, because images are known by their content.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from regionsearch.client import calls
from regionsearch.client.calls import Call, Level, Point, Render, Source
from regionsearch.client.results import (
    Collection,
    Image,
    IngestResult,
    Region,
    SearchResult,
    SegmentResult,
    WithinResult,
)
from regionsearch.errors import Kind, RegionSearchError

T = TypeVar("T")

DEFAULT_URL = "http://localhost:8000"
DEFAULT_COLLECTION = "default"
_PAGE = 500


def _headers(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _arguments(call: Call[T]) -> dict[str, Any]:
    given = {"json": call.json, "params": call.params, "files": call.files, "data": call.form}
    return {name: value for name, value in given.items() if value}


def _unreachable(url: str, error: httpx.TransportError) -> RegionSearchError:
    kind = Kind.DEADLINE_EXCEEDED if isinstance(error, httpx.TimeoutException) else Kind.UNAVAILABLE
    return RegionSearchError(kind, f"{url} does not answer ({type(error).__name__}); is it running?")


class _Patience:
    """How often and how long a call is tried again."""

    def __init__(self, retries: int) -> None:
        self._left = retries
        self._delay_s = 0.2

    def delay(self, error: RegionSearchError) -> float:
        """Seconds to wait before the next try.

        Raises:
            RegionSearchError: The error itself, when another try is not worth it.
        """
        if self._left == 0 or error.kind not in (Kind.OVERLOADED, Kind.UNAVAILABLE):
            raise error
        self._left -= 1
        self._delay_s = min(2 * self._delay_s, 10.0)
        return (error.retry_after_s or self._delay_s) * random.uniform(1.0, 1.5)


def _search_arguments(
    text: str | Sequence[str] | None,
    image: Source | None,
    region_id: str | None,
    image_id: str | None,
    points: Sequence[Point],
    box: Sequence[float] | None,
) -> dict[str, Any]:
    query: dict[str, Any] = calls.pointing(points, box)
    if text is not None:
        query["texts"] = [text] if isinstance(text, str) else list(text)
    if image is not None:
        query |= calls.picture_of(image, None)
    if region_id is not None:
        query["region_id"] = region_id
    if image_id is not None:
        query["image_id"] = image_id
    return query


class Client:
    """Talks to a gateway.

    Args:
        url: Its address.
        api_key: Sent with every call.
        timeout_s: Longest wait for one answer.
        retries: Tries after the first, when the server is overloaded or away.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, api_key: str | None = None, timeout_s: float = 300, retries: int = 5
    ) -> None:
        self.url = url
        self._retries = retries
        self._http = httpx.Client(base_url=url, headers=_headers(api_key), timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Sends a call and reads its answer."""
        patience = _Patience(self._retries)
        while True:
            try:
                response = self._http.request(call.method, call.path, **_arguments(call))
                if response.is_success:
                    return call.read(response)
                error = calls.failure(response)
            except httpx.TransportError as failed:
                error = _unreachable(self.url, failed)
            time.sleep(patience.delay(error))

    def ingest(
        self,
        sources: Sequence[Source],
        collection: str = DEFAULT_COLLECTION,
        *,
        tags: Sequence[str] = (),
        at_once: int = 8,
    ) -> list[IngestResult]:
        """Adds pictures: paths, or (name, bytes) pairs. One result for each, in their order.

        A picture that is there already is a `duplicate`; one that cannot be read is `failed` and says why.

        Args:
            sources: The pictures.
            collection: Where to.
            tags: Put on each of them.
            at_once: Pictures of one request.
        """
        results: list[IngestResult] = []
        for start in range(0, len(sources), at_once):
            part = self.send(calls.ingest(sources[start : start + at_once], collection, tags))
            results.extend(part)
        return results

    def search(
        self,
        text: str | Sequence[str] | None = None,
        collection: str = DEFAULT_COLLECTION,
        *,
        image: Source | None = None,
        region_id: str | None = None,
        image_id: str | None = None,
        points: Sequence[Point] = (),
        box: Sequence[float] | None = None,
        negatives: Sequence[str] = (),
        level: Level = "region",
        group_by_image: bool = False,
        filter: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        relative_cutoff: float | None = None,
        page_size: int = 20,
        page_token: str = "",
        masks: bool = False,
    ) -> SearchResult:
        """Finds regions and images; words, examples and pointing combine.

        Args:
            text: One phrase, or several: then each region stands with its best phrase.
            collection: Where to look.
            image: A picture of it; with points or a box, the object that they point at.
            region_id: A stored region: more like this.
            image_id: A stored image; with points or a box, the object that they point at.
            points: (x, y) or (x, y, label), pixels; label 0 is background.
            box: x_min, y_min, x_max, y_max, pixels.
            negatives: Phrases that are not meant.
            level: Regions, whole images, or both.
            group_by_image: One hit an image, its best.
            filter: Conditions, as in the HTTP API.
            min_score: Lowest cosine.
            relative_cutoff: Lowest part of the best score.
            page_size: Most hits of a page.
            page_token: From an earlier result.
            masks: Adds the masks.
        """
        query = _search_arguments(text, image, region_id, image_id, points, box)
        options = {
            "negatives": list(negatives) or None,
            "level": level,
            "group_by": "image" if group_by_image else None,
            "filter": filter,
            "min_score": min_score,
            "relative_cutoff": relative_cutoff,
            "page_size": page_size,
            "page_token": page_token or None,
            "include": ["mask"] if masks else None,
        }
        return self.send(calls.search(query, collection, options))

    def within(
        self,
        texts: str | Sequence[str],
        *,
        image: Source | None = None,
        image_id: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        min_score: float | None = None,
    ) -> WithinResult:
        """Scores every region of one picture, sent along or stored."""
        picture = calls.picture_of(image, image_id) | {"collection": collection}
        phrases = [texts] if isinstance(texts, str) else texts
        return self.send(calls.within(picture, phrases, {"min_score": min_score}))

    def render(
        self,
        texts: str | Sequence[str],
        *,
        image: Source | None = None,
        image_id: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        style: Render = "outline",
        min_score: float | None = None,
    ) -> bytes:
        """The picture as PNG with the finds drawn into it."""
        picture = calls.picture_of(image, image_id) | {"collection": collection}
        phrases = [texts] if isinstance(texts, str) else texts
        return self.send(calls.render(picture, phrases, style, {"min_score": min_score}))

    def segment(
        self,
        *,
        image: Source | None = None,
        image_id: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        points: Sequence[Point] = (),
        box: Sequence[float] | None = None,
        multimask: bool = False,
    ) -> SegmentResult:
        """The mask of what points and box mean; without them, of everything in the picture."""
        picture = calls.picture_of(image, image_id) | {"collection": collection}
        prompt = calls.pointing(points, box)
        return self.send(
            calls.segment(picture, prompt | {"multimask": multimask} if prompt else {"everything": True})
        )

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector of length one for each text."""
        return self.send(calls.embed_texts(texts))

    def collections(self) -> list[Collection]:
        """All collections."""
        return self.send(calls.collections())

    def create_collection(self, name: str, crop_policy: str = "default") -> Collection:
        """Makes a collection for the model that is served now."""
        return self.send(calls.create_collection(name, crop_policy))

    def delete_collection(self, name: str) -> None:
        """Deletes a collection with all that is in it."""
        self.send(calls.delete_collection(name))

    def images(self, collection: str = DEFAULT_COLLECTION) -> Iterator[Image]:
        """All images, newest first, fetched page by page."""
        token = ""
        while True:
            page, token = self.send(calls.images(collection, _PAGE, token))
            yield from page
            if not token:
                return

    def content(self, image_id: str, collection: str = DEFAULT_COLLECTION) -> bytes:
        """The file of an image, as it was sent."""
        return self.send(calls.content(collection, image_id))

    def regions(
        self, image_id: str, collection: str = DEFAULT_COLLECTION, *, masks: bool = False
    ) -> list[Region]:
        """The regions of an image, best first."""
        return self.send(calls.regions(collection, image_id, masks))

    def delete_image(self, image_id: str, collection: str = DEFAULT_COLLECTION) -> None:
        """Deletes an image with its regions."""
        self.send(calls.delete_image(collection, image_id))

    def ready(self) -> dict[str, Any]:
        """What /readyz says; raises UNAVAILABLE while something is missing."""
        return self.send(calls.ready())


class AsyncClient:
    """`Client` for asyncio; the arguments are the same."""

    def __init__(
        self, url: str = DEFAULT_URL, *, api_key: str | None = None, timeout_s: float = 300, retries: int = 5
    ) -> None:
        self.url = url
        self._retries = retries
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), timeout=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Sends a call and reads its answer."""
        patience = _Patience(self._retries)
        while True:
            try:
                response = await self._http.request(call.method, call.path, **_arguments(call))
                if response.is_success:
                    return call.read(response)
                error = calls.failure(response)
            except httpx.TransportError as failed:
                error = _unreachable(self.url, failed)
            await asyncio.sleep(patience.delay(error))

    async def ingest(
        self, sources: Sequence[Source], collection: str = DEFAULT_COLLECTION, *, tags: Sequence[str] = ()
    ) -> list[IngestResult]:
        """Adds pictures in one request; see `Client.ingest`."""
        call = await asyncio.to_thread(calls.ingest, sources, collection, tags)
        return await self.send(call)

    async def search(
        self,
        text: str | Sequence[str] | None = None,
        collection: str = DEFAULT_COLLECTION,
        *,
        image: Source | None = None,
        region_id: str | None = None,
        image_id: str | None = None,
        points: Sequence[Point] = (),
        box: Sequence[float] | None = None,
        **options: Any,
    ) -> SearchResult:
        """Finds regions and images; see `Client.search`. Further options are those of the HTTP API."""
        query = _search_arguments(text, image, region_id, image_id, points, box)
        return await self.send(calls.search(query, collection, {"level": "region", **options}))

    async def within(
        self,
        texts: str | Sequence[str],
        *,
        image: Source | None = None,
        image_id: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        min_score: float | None = None,
    ) -> WithinResult:
        """Scores every region of one picture; see `Client.within`."""
        picture = calls.picture_of(image, image_id) | {"collection": collection}
        phrases = [texts] if isinstance(texts, str) else texts
        return await self.send(calls.within(picture, phrases, {"min_score": min_score}))

    async def images(self, collection: str = DEFAULT_COLLECTION) -> AsyncIterator[Image]:
        """All images, newest first, fetched page by page."""
        token = ""
        while True:
            page, token = await self.send(calls.images(collection, _PAGE, token))
            for image in page:
                yield image
            if not token:
                return

    async def delete_image(self, image_id: str, collection: str = DEFAULT_COLLECTION) -> None:
        """Deletes an image with its regions."""
        await self.send(calls.delete_image(collection, image_id))

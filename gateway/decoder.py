"""Everything in the gateway that unpacks images, in threads and within one budget of memory; thumbnails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from gateway import render
from gateway.image_store import ImageStore
from gateway.settings import LimitSettings
from regionsearch.images import EncodedImage
from regionsearch.lru import LruCache
from services.runtime.memory import MemoryBudget

Result = TypeVar("Result")


class ImageDecoder:
    """Decodes for thumbnails, crops, renderings and ingest: as much at once as fits into the memory for it.

    Args:
        limits: `max_decoded_bytes` is the memory; a file is refused over the limits of one image.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits.image
        self._budget = MemoryBudget(limits.max_decoded_bytes)

    async def decoded(
        self,
        data: bytes,
        work: Callable[[EncodedImage], Result],
        cost: Callable[[EncodedImage], int] = lambda image: image.decoded_bytes,
        field: str = "image",
    ) -> Result:
        """Runs work that decodes an image, as soon as there is memory for it.

        Args:
            data: The file.
            work: Runs in a thread.
            cost: Memory that the work takes, in bytes.
            field: The request field of the file, for errors.

        Raises:
            RegionSearchError: As `EncodedImage`, and those of the work.
        """
        inspected = await self.run(2 * len(data), lambda: EncodedImage(data, self._limits, field))
        with inspected as image:
            return await self.run(cost(image), lambda: work(image))

    async def run(self, nbytes: int, work: Callable[[], Result]) -> Result:
        """Does work that takes memory, in a thread. A caller who leaves takes the memory along when it ends.

        Args:
            nbytes: That it takes at most.
            work: What to do.
        """
        async with self._budget.hold(nbytes):
            thread = asyncio.ensure_future(asyncio.to_thread(work))
            left: asyncio.CancelledError | None = None
            while not thread.done():
                try:
                    await asyncio.wait([thread])
                except asyncio.CancelledError as error:  # nothing stops a thread, and its memory is in use
                    left = error
            if left is not None:
                raise left
            return thread.result()


class Thumbnails:
    """Small images of stored images.

    Image ids are made from the content, so that what is kept never grows old and serves all collections.
    """

    def __init__(self, store: ImageStore, decoder: ImageDecoder, cache_bytes: int) -> None:
        self._store = store
        self._decoder = decoder
        self._made: LruCache[tuple[str, int], bytes] = LruCache(cache_bytes, len)

    async def get(self, collection: str, image_id: str, width: int) -> bytes:
        """The WebP of an image that the collection has.

        Args:
            collection: Where the image is.
            image_id: Its id.
            width: Longest side, pixels.

        Raises:
            RegionSearchError: NOT_FOUND or DATA_LOSS, when the image's file is not there as it was stored;
                UNSUPPORTED_IMAGE when it is damaged in a way that did not show when it was added.
        """
        key = (image_id, width)
        made = self._made.get(key)
        if made is None:
            data = await self._store.get(collection, image_id)
            made = await self._decoder.decoded(
                data, lambda image: render.thumbnail(image, width), lambda image: image.reduced_bytes(width)
            )
            self._made.put(key, made)
        return made

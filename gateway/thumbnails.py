"""Thumbnails of stored images: made once, kept while there is room."""

from __future__ import annotations

from gateway import render
from gateway.decoder import ImageDecoder
from gateway.image_store import ImageStore
from regionsearch.lru import LruCache


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

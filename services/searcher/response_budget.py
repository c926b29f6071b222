"""The budget of bytes for one response, and the one for all of them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain

from regionsearch.errors import overloaded, too_large
from services.searcher.types import Record, StoredImage

# What messages need for numbers, and for tags and lengths around each text.
_RECORD_BYTES = 96
_IMAGE_BYTES = 48
_TEXT_BYTES = 6
_LARGEST_IMAGE = 0.25  # of a response: a hit may carry its image twice, and masks as well
_STEP = 1 << 16  # bytes that a response draws at a time


class ResponseMemory:
    """The bytes of all responses from when they are read until they are sent; shared by threads.

    Args:
        max_bytes: The limit; a single response may exceed it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes in use."""
        return self._held

    def draw(self, response: ResponseBudget, nbytes: int) -> None:
        """Adds to what a response holds, unless it has been given back.

        Raises:
            RegionSearchError: OVERLOADED.
        """
        with self._lock:
            if response.sent:
                return
            others = self._held - response.drawn
            if others and self._held + nbytes > self._max_bytes:
                raise overloaded(
                    f"answers of {others >> 20} MiB to other calls are in progress (max_read_bytes): ask for "
                    "less at once, or retry later",
                    retry_after_s=0.5,
                )
            response.drawn += nbytes
            self._held += nbytes

    def give_back(self, response: ResponseBudget) -> None:
        """Releases what a response holds, for good."""
        with self._lock:
            self._held -= response.drawn
            response.drawn, response.sent = 0, True


class ResponseBudget:
    """The bytes that are left for one response. Reads deduct what they add to it.

    Args:
        most: Maximum size of the response in bytes.
        field: The request's field that the error names.
        advice: What to ask for instead.
        spare: Bytes reserved for what is added to what is read.
        memory: Memory of all responses; deductions count there, too.

    Attributes:
        drawn: Bytes that count in `memory`.
        sent: Whether they have been given back.
    """

    def __init__(
        self,
        most: float,
        field: str = "",
        advice: str = "",
        *,
        spare: float = 0,
        memory: ResponseMemory | None = None,
    ) -> None:
        self._most = most
        self._field = field
        self._advice = advice
        self._left = most - spare
        self._memory = memory
        self._taken = 0
        self.drawn = 0
        self.sent = False

    def take(self, size: int) -> None:
        """Deducts bytes.

        Raises:
            RegionSearchError: TOO_LARGE when they do not fit; OVERLOADED when other responses leave no room.
        """
        self._left -= size
        self._taken += size
        if self._left < 0:
            raise too_large(
                self._field, f"the answer is over {self._most} bytes (max_message_bytes): {self._advice}"
            )
        if self._memory is not None and self._taken > self.drawn:
            self._memory.draw(self, max(_STEP, self._taken - self.drawn))

    def take_record(self, record: Record) -> None:
        """Deducts the most that a record needs, also within a hit."""
        mask = 0 if record.mask is None else len(record.mask.counts)
        self.take(
            _RECORD_BYTES + mask + _bytes_of(record.record_id, record.image_id, *_texts(record.attributes))
        )

    def shown(self, image: StoredImage) -> StoredImage:
        """An image as pages show it: without tags and attributes where these would fill a good part of one.

        Limits keep images from having so many; an older store may hold some, and its lists must be readable.
        """
        if _image_bytes(image) > self._most * _LARGEST_IMAGE:
            return replace(image, tags=(), attributes={})
        return image

    def take_image(self, image: StoredImage) -> None:
        """Deducts the most that an image needs."""
        self.take(_image_bytes(image))

    def fits(self, image: StoredImage) -> bool:
        """Whether `take_image` would succeed."""
        return self._left >= _image_bytes(image)

    def check(self, size: int) -> None:
        """Refuses a finished answer of `size` bytes if it is over the limit.

        Raises:
            RegionSearchError: TOO_LARGE.
        """
        self._left = self._most
        self._taken = 0
        self.take(size)


def _image_bytes(image: StoredImage) -> int:
    return _IMAGE_BYTES + _bytes_of(
        image.image_id, image.name, image.content_type, *image.tags, *_texts(image.attributes)
    )


def _bytes_of(*texts: str) -> int:
    return sum(map(len, map(str.encode, texts))) + _TEXT_BYTES * len(texts)


def _texts(attributes: Mapping[str, str]) -> Iterator[str]:
    return chain.from_iterable(attributes.items())


UNLIMITED = ResponseBudget(math.inf)
"""For results that stay in the process."""

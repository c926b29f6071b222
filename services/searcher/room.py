"""How large an answer may become."""

from __future__ import annotations

import math
from collections.abc import Mapping

from regionsearch.errors import too_large
from services.searcher.types import Record, StoredImage


class Room:
    """What is left of the bytes of one answer. Whoever reads something for it takes its room first.

    Args:
        most: Bytes that the answer may have.
        field: Of the request, that asked for too much.
        advice: What to ask for instead.
    """

    def __init__(self, most: float, field: str = "", advice: str = "") -> None:
        self._most = most
        self._field = field
        self._advice = advice
        self._left = most

    def take(self, size: int) -> None:
        """Takes bytes.

        Raises:
            RegionSearchError: TOO_LARGE when there is no room for them.
        """
        self._left -= size
        if self._left < 0:
            raise too_large(
                self._field, f"the answer is over {self._most} bytes (max_message_bytes): {self._advice}"
            )

    def take_record(self, record: Record) -> None:
        """Takes what a record needs at least: its ids, its attributes and its mask."""
        mask = 0 if record.mask is None else len(record.mask.counts)
        self.take(len(record.record_id) + len(record.image_id) + _length(record.attributes) + mask)

    def take_image(self, image: StoredImage) -> None:
        """Takes what an image needs at least: its names, its tags and its attributes."""
        self.take(
            len(image.image_id) + len(image.name) + sum(map(len, image.tags)) + _length(image.attributes)
        )

    def check(self, size: int) -> None:
        """Refuses a finished answer of so many bytes; what was taken for it may have been less.

        Raises:
            RegionSearchError: TOO_LARGE.
        """
        self._left = self._most
        self.take(size)


def _length(attributes: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) for name, value in attributes.items())


ANY_SIZE = Room(math.inf)
"""For answers that stay in the process."""

"""How large an answer may become."""

from __future__ import annotations

import math

from regionsearch.errors import too_large
from services.searcher.types import Record


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
        """Takes what a record needs at least: its ids and its mask."""
        mask = 0 if record.mask is None else len(record.mask.counts)
        self.take(len(record.record_id) + len(record.image_id) + mask)

    def check(self, size: int) -> None:
        """Refuses a finished answer of so many bytes; what was taken for it may have been less.

        Raises:
            RegionSearchError: TOO_LARGE.
        """
        self._left = self._most
        self.take(size)


ANY_SIZE = Room(math.inf)
"""For answers that stay in the process."""

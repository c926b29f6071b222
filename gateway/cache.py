"""A bounded memory of what was made before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class ByteCache:
    """Keeps bytes by key, up to a number of bytes in all; what was used longest ago goes first.

    Args:
        max_bytes: Of all values together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[Hashable, bytes] = OrderedDict()
        self._size = 0

    def get(self, key: Hashable) -> bytes | None:
        """The value of a key, unless it is not there any more."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: bytes) -> None:
        """Keeps a value, unless it alone is over the bound."""
        self._size -= len(self._values.pop(key, b""))
        if len(value) > self._max_bytes:
            return
        self._values[key] = value
        self._size += len(value)
        while self._size > self._max_bytes:
            _, oldest = self._values.popitem(last=False)
            self._size -= len(oldest)

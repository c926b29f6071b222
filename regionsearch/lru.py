"""The one bounded cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """Keeps the most recently used values, up to a total size. Thread-safe.

    Args:
        max_size: Total size of all values; 0 keeps nothing.
        size_of: The size of one value, such as its bytes; by default 1, which counts values.
    """

    def __init__(self, max_size: int, size_of: Callable[[Value], int] = lambda _: 1) -> None:
        self._max_size = max_size
        self._size_of = size_of
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Of all values that are kept."""
        return self._size

    def get(self, key: Key) -> Value | None:
        """The value of a key, unless it was evicted."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keeps a value in place of an earlier one, unless it alone is over the bound."""
        with self._lock:
            self._remove(key)
            if self._size_of(value) > self._max_size:
                return
            self._values[key] = value
            self._size += self._size_of(value)
            while self._size > self._max_size:
                self._remove(next(iter(self._values)))

    def remove(self, key: Key) -> None:
        """Forgets the value of a key, if there is one."""
        with self._lock:
            self._remove(key)

    def _remove(self, key: Key) -> None:
        if key in self._values:
            self._size -= self._size_of(self._values.pop(key))

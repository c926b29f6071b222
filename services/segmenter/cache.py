"""LRU cache of image embeddings; concurrent misses for one image share one encoding."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.lru import LruCache
from services.runtime.batcher import Priority
from services.segmenter.backends.base import Embedding

# Errors about how long the call that started the encoding may wait; another call may have more time.
_CALL_ERRORS = frozenset({Kind.DEADLINE_EXCEEDED, Kind.OVERLOADED})


class Encoding(Protocol):
    """The encoding of one image."""

    async def make(self) -> Embedding:
        """Runs the encoder."""

    def escalate(self, priority: Priority) -> None:
        """Tells that a call of this priority is waiting, too."""


@dataclass
class _Flight:
    encoding: Encoding
    task: asyncio.Task[Embedding]
    waiting: int = 0


class EmbeddingCache:
    """Least recently used embeddings, bounded by the memory they hold; on one event loop.

    Calls for an image that is being encoded share one encoding. It runs at the most urgent priority among
    them and is cancelled when the last of them is. Deadline and admission are those of the call that started
    it: if it fails because of them, the next waiting call starts another encoding.

    Args:
        max_bytes: Memory limit; 0 keeps nothing. Evicted embeddings that are still in use do not count.
    """

    def __init__(self, max_bytes: int) -> None:
        self._kept: LruCache[str, Embedding] = LruCache(max_bytes, lambda embedding: embedding.nbytes)
        self._flights: dict[str, _Flight] = {}

    @property
    def nbytes(self) -> int:
        """Device memory held by the cache, in bytes."""
        return self._kept.size

    async def get(self, key: str, encoding: Encoding, priority: Priority) -> tuple[Embedding, bool]:
        """The embedding of an image.

        Args:
            key: Identity of the image's content.
            encoding: Runs on a miss, unless the image is being encoded already.
            priority: The caller's priority.

        Returns:
            The embedding, and whether it came from the cache.
        """
        while True:
            kept = self._kept.get(key)
            if kept is not None:
                return kept, True
            joined = self._flights.get(key)
            flight = joined or _Flight(encoding, asyncio.ensure_future(self._fill(key, encoding)))
            self._flights[key] = flight
            flight.encoding.escalate(priority)
            try:
                return await self._await(key, flight), False
            except RegionSearchError as error:
                if joined is None or error.kind not in _CALL_ERRORS:
                    raise

    async def _await(self, key: str, flight: _Flight) -> Embedding:
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if flight.waiting == 0 and not flight.task.done():
                # A later call for the same image must not join a flight that is being cancelled.
                self._flights.pop(key, None)
                flight.task.cancel()

    async def _fill(self, key: str, encoding: Encoding) -> Embedding:
        task = asyncio.current_task()
        try:
            embedding = await encoding.make()
        finally:
            flight = self._flights.get(key)
            if flight is not None and flight.task is task:
                del self._flights[key]
        self._kept.put(key, embedding)
        return embedding

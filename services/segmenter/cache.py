"""Embeddings of images that were seen before, least recently used first out."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from regionsearch.errors import Kind, RegionSearchError
from services.runtime.batcher import Priority
from services.segmenter.backends.base import Embedding

# Errors about how long the one who asked would wait.
_IMPATIENCE = frozenset({Kind.DEADLINE_EXCEEDED, Kind.OVERLOADED})


class Encoding(Protocol):
    """The making of an embedding."""

    async def make(self) -> Embedding:
        """Makes it."""
        ...

    def escalate(self, priority: Priority) -> None:
        """Is called when somebody of this priority waits for it too."""
        ...


@dataclass
class _Flight:
    encoding: Encoding
    task: asyncio.Task[Embedding]
    waiting: int = 0


class EmbeddingCache:
    """Least recently used embeddings, bounded by the memory they hold; on one event loop.

    Calls for an image that is just being encoded wait for that one encoding, in the priority of the fastest
    of them. It is cancelled when the last of them has gone away. It has the deadline of the call that began
    it, and was admitted to that call's priority; where it fails for these, the next one begins another.

    Args:
        max_bytes: Bound of what is kept; 0 keeps nothing. Embeddings in use are not counted once they are
            evicted.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Embedding] = OrderedDict()
        self._flights: dict[str, _Flight] = {}

    @property
    def nbytes(self) -> int:
        """Device memory that is held."""
        return self._bytes

    async def get(self, key: str, encoding: Encoding, priority: Priority) -> tuple[Embedding, bool]:
        """The embedding of an image.

        Args:
            key: Identity of the image's content.
            encoding: Makes the embedding, when there is none and nobody else is at it.
            priority: Of the caller.

        Returns:
            The embedding, and whether it had been there.
        """
        while True:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept, True
            joined = self._flights.get(key)
            flight = joined or _Flight(encoding, asyncio.ensure_future(self._fill(key, encoding)))
            self._flights[key] = flight
            flight.encoding.escalate(priority)
            try:
                return await self._await(key, flight), False
            except RegionSearchError as error:
                if joined is None or error.kind not in _IMPATIENCE:
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
        self._keep(key, embedding)
        return embedding

    def _keep(self, key: str, embedding: Embedding) -> None:
        if embedding.nbytes > self._max_bytes:
            return
        replaced = self._kept.pop(key, None)
        self._bytes += embedding.nbytes - (replaced.nbytes if replaced else 0)
        self._kept[key] = embedding
        while self._bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes

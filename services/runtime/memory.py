"""Memory: what the process may use, budgets of it, and giving it back."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Hold:
    """Bytes of a :class:`MemoryLedger` that a request holds."""

    ledger: MemoryLedger
    nbytes: int
    passed: object  # the waiting request that it passed, if any

    def give_back(self) -> None:
        """Releases the bytes; call once."""
        self.ledger.give_back(self)


class MemoryLedger:
    """Admission by bytes, without waiting; for one thread.

    The next request in line that does not fit becomes *the waiting one*. Smaller requests may pass it, but
    together they hold no more than the limit leaves next to it. So it never waits for them: its turn comes
    when the requests before it are done, however many pass meanwhile, and two slow large requests in a row do
    not block small ones.

    No request counts as more than three quarters of the limit: small ones find room next to the largest,
    which may take long. So the bytes in use may exceed the largest request by a quarter of the limit.

    Args:
        max_bytes: The limit.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._most_of_one = max_bytes * 3 // 4
        self._held = 0
        self._waiting: object = None
        self._waiting_bytes = 0
        self._passed = 0  # bytes held by those that passed the one that waits

    @property
    def held(self) -> int:
        """Bytes in use."""
        return self._held

    def take(self, request: object, nbytes: int) -> Hold | None:
        """Takes bytes for a request, which may be the waiting one; call it in the order of the line.

        Returns:
            The hold to give back; None where the request has to wait.
        """
        nbytes = min(nbytes, self._most_of_one)
        fits = not nbytes or not self._held or self._held + nbytes <= self._max_bytes
        passing = self._waiting not in (None, request)
        if passing and nbytes:
            fits = fits and self._passed + nbytes + self._waiting_bytes <= self._max_bytes
        if not fits:
            if self._waiting is None:
                self._waiting, self._waiting_bytes, self._passed = request, nbytes, 0
            return None
        if passing:
            self._passed += nbytes
        else:
            self._waiting = None
        self._held += nbytes
        return Hold(self, nbytes, self._waiting)

    def give_back(self, hold: Hold) -> None:
        """Releases the bytes of a hold."""
        self._held -= hold.nbytes
        if hold.passed is not None and hold.passed is self._waiting:
            self._passed -= hold.nbytes

    def leave(self, request: object) -> None:
        """Removes the waiting request, because it was cancelled."""
        if self._waiting is request:
            self._waiting = None


class MemoryBudget:
    """Limits the bytes in use at a time; for one event loop.

    First come, first served, except that small requests pass a large one as in :class:`MemoryLedger`.

    Args:
        max_bytes: The limit.
    """

    def __init__(self, max_bytes: int) -> None:
        self._ledger = MemoryLedger(max_bytes)
        self._line: OrderedDict[asyncio.Future[Hold], int] = OrderedDict()

    @contextlib.asynccontextmanager
    async def hold(self, nbytes: int) -> AsyncIterator[None]:
        """Waits until `nbytes` are free and holds them for the block."""
        granted: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()
        self._line[granted] = nbytes
        self._grant()
        try:
            await granted
            yield
        finally:
            if granted.done() and not granted.cancelled():
                granted.result().give_back()
            else:
                self._line.pop(granted, None)
                self._ledger.leave(granted)
            self._grant()

    def _grant(self) -> None:
        """Admits all that fit; visits the whole line, because a small request may stand at its end."""
        for granted, nbytes in list(self._line.items()):
            if granted.done():  # cancelled, and about to leave
                continue
            hold = self._ledger.take(granted, nbytes)
            if hold is not None:
                del self._line[granted]
                granted.set_result(hold)


MAPPED_BYTES = 8 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_BYTES = 64 << 20


def map_large_blocks() -> None:
    """Gives blocks of `MAPPED_BYTES` and more a mapping of their own, which ends when they are freed.

    glibc takes them from the heaps of threads once it has seen some freed; those stay as large as the images
    that happened to be decoded at the same time (six of 49 megapixels: 800 MB, for good). Other C libraries
    are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)  # which the other would have set to 128 kB

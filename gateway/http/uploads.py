"""Bodies of requests are admitted by their size before they are read: so many bytes of them at once."""

from __future__ import annotations

from collections import Counter

from prometheus_client import Gauge
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.settings import LimitSettings
from regionsearch.errors import overloaded

_RETRY_S = 2.0
_BYTES = Gauge(
    "regionsearch_upload_bytes", "Bytes of request bodies that are held, on disk or in memory.", ("place",)
)


class ByteQuota:
    """Bytes that bodies may take in one place; who would pass it is told to come back.

    One caller gets half of it at most, so that another one always finds some; a single body, whatever its
    size, is admitted where nothing else is held by its caller.

    Args:
        place: ``disk`` or ``memory``: the label of the metric.
        setting: The name of the limit.
        max_bytes: The limit.
    """

    def __init__(self, place: str, setting: str, max_bytes: int) -> None:
        self._setting = setting
        self._max_bytes = max_bytes
        self._held: Counter[str] = Counter()
        self._total = 0
        self._gauge = _BYTES.labels(place)

    def take(self, caller: str, size: int) -> None:
        """Counts bytes of a caller's.

        Raises:
            RegionSearchError: OVERLOADED.
        """
        own = self._held[caller]
        if self._total and self._total + size > self._max_bytes:
            whose = f"{self._total} bytes of requests are being received"
        elif own and own + size > self._max_bytes // 2:
            whose = f"{own} bytes of your requests are being received, and no caller has more than half"
        else:
            self._held[caller] += size
            self._total += size
            self._gauge.set(self._total)
            return
        raise overloaded(f"{whose} ({self._setting}, {self._max_bytes}); try again later", _RETRY_S)

    def give_back(self, caller: str, size: int) -> None:
        """Forgets bytes that were taken."""
        self._total -= size
        self._held[caller] -= size
        if not self._held[caller]:
            del self._held[caller]
        self._gauge.set(self._total)


class UploadAdmission:
    """Admits bodies before they are read, by the size that they declare, else while they come.

    What they take is held until the request has been answered.
    """

    def __init__(self, app: ASGIApp, limits: LimitSettings) -> None:
        self._app = app
        self._disk = ByteQuota("disk", "max_upload_bytes", limits.max_upload_bytes)
        self._memory = ByteQuota("memory", "max_body_bytes", limits.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry.

        Raises:
            RegionSearchError: OVERLOADED, before anything was read where the size was declared.
        """
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Files that are added to a collection wait on disk; all else is read into memory.
        room = self._disk if scope["path"].endswith("/images") else self._memory
        caller = headers.get("authorization") or headers.get("x-api-key") or (scope["client"] or ("",))[0]
        declared = headers.get("content-length", "")
        taken = int(declared) if declared.isdecimal() else 0
        room.take(caller, taken)

        async def receive_counted() -> Message:
            nonlocal taken
            message = await receive()
            if not declared:
                size = len(message.get("body", b""))
                room.take(caller, size)
                taken += size
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            room.give_back(caller, taken)

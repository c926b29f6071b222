"""Find any object in any image: by words, by an example, or by pointing at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regionsearch.client import AsyncClient, Client
    from regionsearch.errors import RegionSearchError

__all__ = ["AsyncClient", "Client", "RegionSearchError"]


def __getattr__(name: str) -> Any:
    # Imported when they are asked for: the services import this package too, and need no client.
    if name in ("AsyncClient", "Client"):
        from regionsearch import client

        return getattr(client, name)
    if name == "RegionSearchError":
        from regionsearch.errors import RegionSearchError

        return RegionSearchError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

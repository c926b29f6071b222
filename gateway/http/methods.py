"""Which methods a path has, for ``Allow``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from starlette.routing import BaseRoute, Match, Mount, Route


def methods_by_path(routes: Iterable[BaseRoute]) -> Callable[[str], list[str]]:
    """A function that tells the methods of a path: of all routes that serve it, not only of the first.

    HEAD is wherever GET is (see `gateway.http.middleware.RequestContext`), OPTIONS everywhere.

    Args:
        routes: All routes, those of routers one by one.
    """
    known = list(routes)

    def methods_at(path: str) -> list[str]:
        methods = {"OPTIONS"}
        for route in known:
            match, _ = route.matches({"type": "http", "method": "OPTIONS", "path": path})
            if match is Match.NONE:
                continue
            if isinstance(route, Route):
                methods |= route.methods or set()
            elif isinstance(route, Mount):  # of files
                methods.add("GET")
        return sorted(methods | ({"HEAD"} if "GET" in methods else set()))

    return methods_at

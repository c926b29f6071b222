"""Which names the gateway answers to, and whose web pages may change something: localhost is not a password.

A browser sends requests wherever a page tells it to, to a gateway on its own machine too. Two tricks matter:
a page of another site that simply sends (the browser says so), and a name of the attacker's that is suddenly
this machine's (then the page is of the same site, but the name is not the gateway's).
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.connections import HEALTH
from gateway.settings import GatewaySettings
from regionsearch.errors import Kind, RegionSearchError

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL = (".localhost", ".local")  # names that no server of the internet's gives away


class OriginCheck:
    """Refuses requests under names that are not the gateway's, and writes from pages that are not its own."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._origins = frozenset(settings.cors_origins)
        hosts = settings.allowed_hosts
        # Whoever comes under a wrong name has no key: the page that keeps one belongs to the right name.
        self._any_host = "*" in hosts or bool(settings.has_keys and not hosts)
        known = (*hosts, settings.host, settings.http_host or "")
        self._hosts = frozenset(host.lower().strip("[]") for host in known if host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry.

        Raises:
            RegionSearchError: PERMISSION_DENIED that names the setting.
        """
        if scope["type"] == "http" and scope["path"] not in HEALTH:  # which balancers ask under any name
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            if not self._any_host and not self._is_ours(host_name(host)):
                raise RegionSearchError(
                    Kind.PERMISSION_DENIED,
                    f"{host[:100]!r} is not a name of this gateway: add it to allowed_hosts, or set api_keys",
                    field="host",
                )
            if scope["method"] not in _READS and (origin := self._foreign(headers, host)):
                raise RegionSearchError(
                    Kind.PERMISSION_DENIED,
                    f"web pages of {origin[:100]} may not change anything here: add it to cors_origins",
                    field="origin",
                )
        await self._app(scope, receive, send)

    def _is_ours(self, name: str) -> bool:
        """Whether only this machine and the network's operator decide what the name resolves to."""
        if name in self._hosts or "." not in name or name.endswith(_LOCAL):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return any(host.startswith("*.") and name.endswith(host[1:]) for host in self._hosts)
        return True

    def _foreign(self, headers: Headers, host: str) -> str:
        """The origin of the page that sends a request, where it is neither ours nor allowed, else empty."""
        site = headers.get("sec-fetch-site", "")
        origin = headers.get("origin")
        if site in ("same-origin", "none") or (origin is None and not site):  # by hand, or not by a browser
            return ""
        if origin is None:
            return "another site"
        if "*" in self._origins or origin in self._origins or urlsplit(origin).netloc.lower() == host.lower():
            return ""
        return origin


def host_name(header: str) -> str:
    """The name or address in a header ``Host``, without its port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")

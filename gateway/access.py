"""Who may do what, and how often; the same for HTTP and gRPC."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from gateway.rights import UNLIMITED, Rights, Scope
from gateway.settings import GatewaySettings
from regionsearch.rpc.calls import caller_name
from services.runtime.auth import ApiKeys, RateLimit, refuse_scope

_ANONYMOUS_BURST_S = 10  # that many seconds' worth at once: a page full of thumbnails is not an attack


_BY_PREFIX = {
    "read:": frozenset({Scope.SEARCH}),
    "write:": frozenset({Scope.SEARCH, Scope.WRITE, Scope.DELETE}),
}


def scopes_of(key: str) -> frozenset[Scope]:
    """The scopes that one of `api_keys` has by its prefix; a key without one allows everything."""
    return next((s for prefix, s in _BY_PREFIX.items() if key.startswith(prefix)), frozenset(Scope))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request: the name by which it has its share of the services' time, and its rights."""

    name: str
    rights: Rights


class Access:
    """Checks keys, scopes and rates."""

    def __init__(self, settings: GatewaySettings) -> None:
        plain = (key.get_secret_value() for key in settings.api_keys)
        self._rights = {key: Rights(scopes_of(key)) for key in plain}
        for one in settings.keys:
            collections = frozenset(one.collections) if one.collections else None
            self._rights[one.key.get_secret_value()] = Rights(frozenset(one.scopes), collections)
        self._keys = ApiKeys(self._rights)
        self._proxies = settings.trusted_proxies
        limits = settings.limits
        self._rate: RateLimit | None = None
        if limits.requests_per_s:
            self._rate = RateLimit(limits.requests_per_s, limits.requests_burst)
        elif limits.anonymous_requests_per_s and not self._keys:
            rate = limits.anonymous_requests_per_s
            self._rate = RateLimit(rate, max(1, round(rate * _ANONYMOUS_BURST_S)))

    def address(self, peer: str, forwarded: str) -> str:
        """The address of a caller, behind proxies that are trusted to tell it.

        Args:
            peer: The address that the connection comes from.
            forwarded: Header ``x-forwarded-for``: each proxy has added whom it heard from at the end.
        """
        for hop in reversed(forwarded.split(",")):
            try:
                ip = _address(peer)
                if not any(ip in network for network in self._proxies):
                    break
                peer = str(_address(hop.strip().strip("[]")))
            except ValueError:  # not an address: nothing further in can be believed
                break
        return peer

    def check(
        self, needed: Scope | None, authorization: str | None, api_key: str | None, address: str
    ) -> Caller:
        """Lets a request through or raises.

        Args:
            needed: What the request does; None needs any key.
            authorization: Header ``authorization``.
            api_key: Header ``x-api-key``.
            address: The caller's address, which identifies it if there are no keys.

        Raises:
            RegionSearchError: UNAUTHENTICATED, PERMISSION_DENIED, or OVERLOADED over the rate.
        """
        key = self._keys.check(authorization, api_key, address)
        rights = self._rights.get(key, UNLIMITED)
        if needed is not None and not rights.allow(needed):
            raise refuse_scope(key, address, needed, sorted(rights.scopes))
        name = caller_name(key, address)
        if self._rate is not None:
            self._rate.take(name)
        return Caller(name, rights)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(text)
    return (ip.ipv4_mapped if ip.version == 6 else None) or ip  # of a socket that listens for both

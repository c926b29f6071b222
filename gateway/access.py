"""Who may do what, and how often; the same for HTTP and gRPC."""

from __future__ import annotations

import enum
import ipaddress

from gateway.settings import GatewaySettings
from regionsearch.rpc.calls import caller_name
from services.runtime.auth import ApiKeys, RateLimit, refuse_scope

_ANONYMOUS_BURST_S = 10  # that many seconds' worth at once: a page full of thumbnails is not an attack


class Scope(enum.IntEnum):
    """What a key allows; each includes those before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


_PREFIXES = {"read:": Scope.READ, "write:": Scope.WRITE}


def scope_of(key: str) -> Scope:
    """The scope that a key carries in its prefix; a key without one allows everything."""
    return next((scope for prefix, scope in _PREFIXES.items() if key.startswith(prefix)), Scope.ADMIN)


class Access:
    """Checks keys, scopes and rates."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._keys = ApiKeys(settings.api_keys)
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

    def check(self, needed: Scope, authorization: str | None, api_key: str | None, address: str) -> str:
        """Lets a request through or raises.

        Args:
            needed: What the request does.
            authorization: Header ``authorization``.
            api_key: Header ``x-api-key``.
            address: The caller's address, which identifies it if there are no keys.

        Returns:
            The caller's name, by which it has its share of the services' time.

        Raises:
            RegionSearchError: UNAUTHENTICATED, PERMISSION_DENIED, or OVERLOADED over the rate.
        """
        key = self._keys.check(authorization, api_key, address)
        if self._keys and scope_of(key) < needed:
            raise refuse_scope(key, address, needed.name.lower(), scope_of(key).name.lower())
        caller = caller_name(key, address)
        if self._rate is not None:
            self._rate.take(caller)
        return caller


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(text)
    return (ip.ipv4_mapped if ip.version == 6 else None) or ip  # of a socket that listens for both

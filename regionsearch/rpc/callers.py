"""The caller on whose behalf a call is made: a short name, by which services share their time fairly.

The gateway names the caller of each request when it checks its key, and passes the name on to the services.
The name does not reveal the key.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import ipaddress
from collections.abc import Iterator
from urllib.parse import unquote

CALLER_HEADER = "x-regionsearch-caller"

_MOST_CHARS = 32
_caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="")


@contextlib.contextmanager
def calling_for(name: str) -> Iterator[None]:
    """Sets the caller of all calls in the body."""
    token = _caller.set(name[:_MOST_CHARS])
    try:
        yield
    finally:
        _caller.reset(token)


def caller() -> str:
    """The caller of the surrounding call; empty if there is none."""
    return _caller.get()


def caller_metadata() -> tuple[tuple[str, str], ...]:
    """The header that names the caller to a service."""
    name = caller()
    return ((CALLER_HEADER, name),) if name else ()


@functools.lru_cache(maxsize=4096)
def caller_name(key: str, address: str) -> str:
    """The name of a caller: from its API key if it has one, else from its address.

    Args:
        key: Empty if there is none; the name is a short hash of it.
        address: IP address. An IPv6 /64 network is one caller: its owner has all addresses.
    """
    if not key:
        with contextlib.suppress(ValueError):
            ip = ipaddress.ip_address(address.partition("%")[0])
            if ip.version == 6:
                address = str(ipaddress.ip_network((ip, 64), strict=False))
    kind, told = ("key", key) if key else ("address", address)
    return f"{kind}-{hashlib.blake2b(told.encode(errors='replace'), digest_size=8).hexdigest()}"


def peer_address(peer: str) -> str:
    """The address of a gRPC peer, without the port of its connection: 10.0.0.1 of ``ipv4:10.0.0.1:5000``."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")

"""Which proxy of the environment stands before an address: the same answer for HTTP and gRPC.

Proxies are meant for the world outside. Calls to this machine never use one, whatever `no_proxy` says: a
proxy elsewhere would look for the server on itself.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from regionsearch.errors import Kind, RegionSearchError

# The variables that count for a scheme, in their order; `http` stands for `http_proxy`. gRPC has its own.
_VARIABLES = {
    "http": ("http", "all"),
    "https": ("https", "all"),
    "grpc": ("grpc", "https", "http"),
    "grpcs": ("grpc", "https", "http"),
}


@dataclass(frozen=True)
class Proxy:
    """A proxy that the environment names.

    Attributes:
        url: With scheme, and user and password where it has them.
        variable: Where it was named.
    """

    url: str
    variable: str

    def __str__(self) -> str:
        """For messages: without user and password."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2].rstrip('/')} ({self.variable})"


def environment_proxy(url: str) -> Proxy | None:
    """The proxy that calls to an address go through; None for a direct connection.

    Args:
        url: http://, https://, grpc:// or grpcs://, perhaps with several hosts separated by commas.
    """
    parts = urlsplit(url)
    hosts = [urlsplit(f"//{host}") for host in parts.netloc.split(",")]
    if all(is_this_machine(host.hostname or "") or proxy_bypass(host.netloc) for host in hosts):
        return None
    named = getproxies()
    for name in _VARIABLES[parts.scheme]:
        if proxy := named.get(name):
            proxy = proxy if "://" in proxy else f"http://{proxy}"
            variable = next(
                (v for v in (f"{name}_proxy", f"{name}_proxy".upper()) if os.environ.get(v)), name
            )
            # What desktops write for a SOCKS proxy, and no library reads.
            return Proxy(proxy.replace("socks://", "socks5://", 1), variable)
    return None


def is_this_machine(host: str) -> bool:
    """Whether a host is this machine, as far as can be told without asking a name server."""
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost") or host == socket.gethostname().lower():
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((str(address), 0))  # only the machine that has the address can
        return True
    return False


def through(proxy: Proxy | None) -> str:
    """What an error adds about the proxy, which may be the one that failed: nothing without one."""
    return f" through the environment's proxy {proxy}" if proxy is not None else ""


def http_options(url: str, ca: Path | None = None) -> dict[str, Any]:
    """Options of an httpx client for one server: its proxy, and whom to trust.

    Args:
        url: The server.
        ca: PEM file of the authority to trust; those of the environment or the system when absent.

    Raises:
        RegionSearchError: FAILED_PRECONDITION for a proxy that cannot be used; says what to install or unset.
    """
    proxy = environment_proxy(url)
    options: dict[str, Any] = {"trust_env": False}
    if proxy is not None:
        scheme = _scheme(proxy)
        if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise _unusable(proxy, "needs a package that is missing: pip install 'httpx[socks]'")
        options["proxy"] = proxy.url
    if ca is not None:
        options["verify"] = ssl.create_default_context(cafile=ca)
    elif urlsplit(url).scheme == "https":
        options["verify"] = httpx.create_ssl_context()  # with SSL_CERT_FILE
    return options


def grpc_proxy(url: str) -> str | None:
    """The proxy of a gRPC channel, as `regionsearch.rpc.channels.ChannelConfig` takes it.

    Raises:
        RegionSearchError: FAILED_PRECONDITION for a proxy that gRPC cannot use.
    """
    proxy = environment_proxy(url)
    if proxy is None:
        return None
    if _scheme(proxy) != "http":
        raise _unusable(
            proxy, "is not usable for gRPC, which knows http:// proxies only: use the http:// address"
        )
    return proxy.url


def _scheme(proxy: Proxy) -> str:
    try:
        return httpx.Proxy(proxy.url).url.scheme
    except (ValueError, httpx.InvalidURL):
        reason = "is not valid: expected http://host:port or socks5://host:port; correct it"
        raise _unusable(proxy, reason) from None


def _unusable(proxy: Proxy, reason: str) -> RegionSearchError:
    message = (
        f"the environment's proxy {proxy} {reason}, or unset {proxy.variable}, or name the host in no_proxy"
    )
    return RegionSearchError(Kind.FAILED_PRECONDITION, message)

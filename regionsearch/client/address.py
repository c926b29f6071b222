"""Where a gateway is, and how it is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from regionsearch.errors import invalid
from regionsearch.proxies import grpc_proxy, http_options
from regionsearch.rpc import CallPolicy, ChannelConfig, TlsFiles


@dataclass(frozen=True)
class Address:
    """Where a gateway is and how it is called.

    Attributes:
        url: http://, https://, grpc:// or grpcs:// with host and port.
        api_key: Sent with every call.
        timeout_s: Longest wait for one answer.
        retries: Tries after the first.
        ca: PEM file of the authority to trust; the system's when absent.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for what is not a valid address, FAILED_PRECONDITION when a proxy
            of the environment stands before it that cannot be used.
    """

    url: str
    api_key: str | None
    timeout_s: float
    retries: int
    ca: Path | None

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            ports = [urlsplit(f"//{host}").port for host in parts.netloc.split(",")]
            known = parts.scheme in ("http", "https") or (self.over_grpc and all(ports))
            if not (known and parts.netloc):
                raise ValueError
            httpx.URL(self.url)
        except (ValueError, httpx.InvalidURL):
            raise invalid(
                "url", f"{self.url!r} is not an address; write http://host:port or grpc://host:port"
            ) from None

    @property
    def over_grpc(self) -> bool:
        """Whether it speaks gRPC."""
        return urlsplit(self.url).scheme in ("grpc", "grpcs")

    def http_options(self) -> dict[str, Any]:
        """Of an httpx client."""
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        options = http_options(self.url, self.ca)
        return options | {"base_url": self.url, "headers": headers, "timeout": self.timeout_s}

    def channel(self) -> tuple[str, ChannelConfig]:
        """Target and options of a gRPC channel."""
        parts = urlsplit(self.url)
        tls = TlsFiles(ca=self.ca) if parts.scheme == "grpcs" else None
        return parts.netloc, ChannelConfig(tls=tls, proxy=grpc_proxy(self.url))

    def policy(self) -> CallPolicy:
        """Of gRPC calls."""
        return CallPolicy(timeout_s=self.timeout_s, api_key=self.api_key, overload_attempts=self.retries + 1)

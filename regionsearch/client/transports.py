"""What both transports share: where a gateway is, how it is called, how often, and what its errors say."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.proxies import Proxy, grpc_proxy, http_options, through
from regionsearch.rpc.calls import CallPolicy
from regionsearch.rpc.channels import ChannelConfig, TlsFiles


@contextlib.contextmanager
def utf8_only() -> Iterator[None]:
    """Refuses text that no request can carry: halves of characters, which bytes that are not UTF-8 become."""
    try:
        yield
    except UnicodeEncodeError as error:
        text = error.object[max(0, error.start - 20) : error.end + 20]
        raise invalid("request", f"{text!a} has characters that UTF-8 has not; write it as UTF-8") from error


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


FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0


class Backoff:
    """Of one call.

    Args:
        retries: tries after the first.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self.reset()

    def reset(self) -> None:
        """All of it again, because the call got on."""
        self._left = self._retries
        self._delay_s = FIRST_DELAY_S

    def next_delay(self, error: RegionSearchError) -> float:
        """Seconds to wait before the next try.

        Raises:
            RegionSearchError: The error itself, when another try is not worth it.
        """
        if self._left == 0 or error.kind not in (Kind.OVERLOADED, Kind.UNAVAILABLE):
            raise error
        self._left -= 1
        delay = max(error.retry_after_s or 0, self._delay_s)
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
        return delay * random.uniform(1.0, 1.5)


_AWAY = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)


def error_of(problem: Mapping[str, Any]) -> RegionSearchError:
    """The error that a problem document stands for; a code of a newer server is INTERNAL.

    Raises:
        KeyError: It has no code, so that it is not a document of ours.
    """
    code = problem["code"]
    errors = problem.get("errors") or [{}]
    pointer = errors[0].get("pointer")
    error = RegionSearchError(
        Kind(code) if code in Kind.__members__ else Kind.INTERNAL,
        problem.get("detail", code),
        field=_field(pointer) if pointer else None,
        retry_after_s=problem.get("retry_after_s"),
        metadata=problem.get("metadata"),
    )
    error.request_id = problem.get("request_id")
    return error


def _field(pointer: str) -> str:
    """What gRPC calls the field of a JSON pointer: ``/query/points/2`` is ``query.points[2]``."""
    return re.sub(r"/(\d+)(?=/|$)", r"[\1]", pointer).strip("/").replace("/", ".")


def failure(response: httpx.Response, proxy: Proxy | None = None) -> RegionSearchError:
    """Converts an unsuccessful response to its error, even if a proxy in between has made it.

    Args:
        response: The answer.
        proxy: The environment's proxy, if the call went through one.
    """
    try:
        return error_of(response.json())
    except (ValueError, KeyError, TypeError, AttributeError):
        kind = Kind.UNAVAILABLE if response.status_code in _AWAY else Kind.INTERNAL
        message = f"{response.url} answered {response.status_code}{through(proxy)}, without a reason"
        return RegionSearchError(kind, message)


def unreachable(url: str, error: httpx.RequestError, proxy: Proxy | None = None) -> RegionSearchError:
    """Converts the failure of a request that got no response, or part of one.

    Args:
        url: The address that did not answer.
        error: The HTTP library's error.
        proxy: The environment's proxy, if the call went through one.
    """
    kind = Kind.DEADLINE_EXCEEDED if isinstance(error, httpx.TimeoutException) else Kind.UNAVAILABLE
    reason = str(error) or type(error).__name__
    remedy = "is it running? regionsearch up starts it"
    if proxy is not None:
        remedy = f"unset {proxy.variable} or name the host in no_proxy to go there directly"
    return RegionSearchError(kind, f"{url} does not answer{through(proxy)} ({reason}); {remedy}")

"""How operations get to a gateway: HTTP or gRPC, blocking or on an event loop.

All calls may be repeated without harm, because images are known by their content: a transport waits and
tries again when the server is overloaded or away.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit

import grpc
import httpx

from regionsearch.client.backoff import Backoff
from regionsearch.client.operations import GrpcCall, HttpRequest, Operation
from regionsearch.client.problems import failure, unreachable
from regionsearch.client.streaming import IngestStream
from regionsearch.errors import Kind, RegionSearchError, from_rpc_error, invalid
from regionsearch.proxies import Proxy, environment_proxy, grpc_proxy, http_options, through
from regionsearch.rpc import CallPolicy, ChannelConfig, TlsFiles, acall, call, open_aio_channel, open_channel
from regionsearch.schemas.responses import IngestProgress
from regionsearch.v1.region_search_pb2_grpc import RegionSearchServiceStub

T = TypeVar("T")


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


class Transport(Protocol):
    """Sends operations and waits for them."""

    def send(self, operation: Operation[T]) -> T:
        """The operation's result, or its `RegionSearchError`."""
        ...

    def ingest(self, stream: IngestStream) -> Iterator[IngestProgress]:
        """Sends images over a stream and tells of each stage; gRPC only."""
        ...

    def close(self) -> None:
        """Closes the connections."""
        ...


class AsyncTransport(Protocol):
    """Sends operations on an event loop."""

    async def send(self, operation: Operation[T]) -> T:
        """The operation's result, or its `RegionSearchError`."""
        ...

    def ingest(self, stream: IngestStream) -> AsyncIterator[IngestProgress]:
        """Sends images over a stream and tells of each stage; gRPC only."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class HttpTransport:
    """`Transport` over HTTP; may be used from many threads."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._proxy = environment_proxy(address.url)
        self._http = httpx.Client(**address.http_options())

    def send(self, operation: Operation[T]) -> T:
        """The operation's result, or its `RegionSearchError`."""
        arguments = _arguments(operation.http.request())
        backoff = Backoff(self._address.retries if operation.retry_overload else 0)
        while True:
            try:
                with _utf8():
                    response = self._http.request(**arguments)
                return _result(operation, response, self._proxy)
            except httpx.RequestError as error:
                next_delay = backoff.next_delay(unreachable(self._address.url, error, self._proxy))
            except RegionSearchError as error:
                next_delay = backoff.next_delay(error)
            time.sleep(next_delay)

    def ingest(self, stream: IngestStream) -> Iterator[IngestProgress]:
        """Raises UNIMPLEMENTED: streams are gRPC's."""
        _grpc_only()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()


class AsyncHttpTransport:
    """`AsyncTransport` over HTTP."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._proxy = environment_proxy(address.url)
        self._http = httpx.AsyncClient(**address.http_options())

    async def send(self, operation: Operation[T]) -> T:
        """The operation's result, or its `RegionSearchError`."""
        arguments = _arguments(await asyncio.to_thread(operation.http.request))
        backoff = Backoff(self._address.retries if operation.retry_overload else 0)
        while True:
            try:
                with _utf8():
                    response = await self._http.request(**arguments)
                return _result(operation, response, self._proxy)
            except httpx.RequestError as error:
                next_delay = backoff.next_delay(unreachable(self._address.url, error, self._proxy))
            except RegionSearchError as error:
                next_delay = backoff.next_delay(error)
            await asyncio.sleep(next_delay)

    def ingest(self, stream: IngestStream) -> AsyncIterator[IngestProgress]:
        """Raises UNIMPLEMENTED: streams are gRPC's."""
        _grpc_only()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()


class GrpcTransport:
    """`Transport` over gRPC; may be used from many threads. The channel retries what is UNAVAILABLE."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._policy = address.policy()
        self._channel: grpc.Channel = open_channel(*address.channel())

    def send(self, operation: Operation[T]) -> T:
        """The operation's result, or its `RegionSearchError`."""
        over = _grpc_call(operation)
        with _utf8():
            message = over.message()
        with _naming_proxy(self._address):
            return over.read(call(over.method(self._channel), message, self._policy))

    def ingest(self, stream: IngestStream) -> Iterator[IngestProgress]:
        """Sends images over a stream, or several where one breaks off, and tells of each stage."""
        method = RegionSearchServiceStub(self._channel).IngestImages
        backoff = Backoff(self._address.retries)
        while not stream.complete:
            answers: Any = method(stream.requests(), metadata=tuple(self._policy.metadata()))
            error: RegionSearchError | None = None
            try:
                for answer in answers:
                    backoff.reset()
                    yield from stream.unread()
                    yield stream.read(answer)
            except grpc.RpcError as caught:
                error = _via(from_rpc_error(caught), self._address)
            finally:
                answers.cancel()
            yield from stream.unread()
            if not stream.complete:
                time.sleep(backoff.next_delay(stream.broken_off(error)))

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()


class AsyncGrpcTransport:
    """`AsyncTransport` over gRPC."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._channel: grpc.aio.Channel | None = None  # made on the loop that uses it

    async def send(self, operation: Operation[T]) -> T:
        """The operation's result, or its `RegionSearchError`."""
        over = _grpc_call(operation)
        with _utf8():
            message = await asyncio.to_thread(over.message)
        with _naming_proxy(self._address):
            return over.read(await acall(over.method(self._open()), message, self._address.policy()))

    async def ingest(self, stream: IngestStream) -> AsyncIterator[IngestProgress]:
        """Sends images over a stream, or several where one breaks off, and tells of each stage."""
        method = RegionSearchServiceStub(self._open()).IngestImages
        backoff = Backoff(self._address.retries)
        while not stream.complete:
            answers = method(stream.arequests(), metadata=self._address.policy().metadata())
            error: RegionSearchError | None = None
            try:
                async for answer in answers:
                    backoff.reset()
                    for unread in stream.unread():
                        yield unread
                    yield stream.read(answer)
            except grpc.RpcError as caught:
                error = _via(from_rpc_error(caught), self._address)
            finally:
                answers.cancel()
            for unread in stream.unread():
                yield unread
            if not stream.complete:
                await asyncio.sleep(backoff.next_delay(stream.broken_off(error)))

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = open_aio_channel(*self._address.channel())
        return self._channel

    async def close(self) -> None:
        """Closes the channel."""
        if self._channel is not None:
            await self._channel.close(grace=None)


@contextlib.contextmanager
def _utf8() -> Iterator[None]:
    """Refuses text that no request can carry: halves of characters, which bytes that are not UTF-8 become."""
    try:
        yield
    except UnicodeEncodeError as error:
        text = error.object[max(0, error.start - 20) : error.end + 20]
        raise invalid("request", f"{text!a} has characters that UTF-8 has not; write it as UTF-8") from error


def _arguments(request: HttpRequest) -> dict[str, Any]:
    given = {"params": request.params, "files": request.files, "data": request.form}
    arguments: dict[str, Any] = {name: value for name, value in given.items() if value}
    if request.body is not None:
        arguments |= {"content": request.body.to_json(), "headers": {"content-type": "application/json"}}
    return {"method": request.method, "url": request.path, **arguments}


def _result(operation: Operation[T], response: httpx.Response, proxy: Proxy | None) -> T:
    if not response.is_success and response.status_code not in operation.http.answers:
        raise failure(response, proxy)
    try:
        return operation.http.read(response)
    except (ValueError, KeyError, TypeError) as error:
        message = f"{response.url} answered what no gateway answers; is the address right?"
        raise RegionSearchError(Kind.INTERNAL, message, field="url") from error


@contextlib.contextmanager
def _naming_proxy(address: Address) -> Iterator[None]:
    """Says in the error of a gateway that is not reached through which proxy it was tried."""
    try:
        yield
    except RegionSearchError as error:
        raise _via(error, address) from error.__cause__


def _via(error: RegionSearchError, address: Address) -> RegionSearchError:
    if error.kind is Kind.UNAVAILABLE:
        error.message += through(environment_proxy(address.url))
    return error


def _grpc_call(operation: Operation[T]) -> GrpcCall[T]:
    if operation.grpc is None:
        raise RegionSearchError(
            Kind.UNIMPLEMENTED,
            f"the gateway offers {operation.name} over HTTP only; use its http:// address",
            field="url",
        )
    return operation.grpc


def _grpc_only() -> NoReturn:
    message = "the gateway offers ingest_stream over gRPC only; use its grpc:// address, or ingest"
    raise RegionSearchError(Kind.UNIMPLEMENTED, message, field="url")

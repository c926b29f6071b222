"""Operations over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn, TypeVar

import httpx

from regionsearch.client.operations.base import HttpRequest, Operation
from regionsearch.client.streaming import IngestStream
from regionsearch.client.transports import Address, Backoff, failure, unreachable, utf8_only
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.proxies import Proxy, environment_proxy
from regionsearch.schemas.responses.records import IngestProgress

T = TypeVar("T")


class HttpTransport:
    """`Transport` over HTTP; may be used from many threads."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._proxy = environment_proxy(address.url)
        self._http = httpx.Client(**address.http_options())

    def send(self, operation: Operation[T]) -> T:
        """The operation's result, or its `RegionSearchError`."""
        arguments = _arguments(operation.request())
        backoff = Backoff(self._address.retries if operation.retry_overload else 0)
        while True:
            try:
                with utf8_only():
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
        arguments = _arguments(await asyncio.to_thread(operation.request))
        backoff = Backoff(self._address.retries if operation.retry_overload else 0)
        while True:
            try:
                with utf8_only():
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


def _arguments(request: HttpRequest) -> dict[str, Any]:
    given = {"params": request.params, "files": request.files, "data": request.form}
    arguments: dict[str, Any] = {name: value for name, value in given.items() if value}
    if request.body is not None:
        arguments |= {"content": request.body.to_json(), "headers": {"content-type": "application/json"}}
    return {"method": request.method, "url": request.path, **arguments}


def _result(operation: Operation[T], response: httpx.Response, proxy: Proxy | None) -> T:
    if not response.is_success and response.status_code not in operation.answers:
        raise failure(response, proxy)
    try:
        return operation.read(response)
    except (ValueError, KeyError, TypeError) as error:
        message = f"{response.url} answered what no gateway answers; is the address right?"
        raise RegionSearchError(Kind.INTERNAL, message, field="url") from error


def _grpc_only() -> NoReturn:
    message = "the gateway offers ingest_stream over gRPC only; use its grpc:// address, or ingest"
    raise RegionSearchError(Kind.UNIMPLEMENTED, message, field="url")

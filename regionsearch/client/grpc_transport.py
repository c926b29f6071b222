"""Operations over gRPC, and streams of images."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import grpc

from regionsearch.client.operations.base import GrpcCall, Operation
from regionsearch.client.streaming import IngestStream
from regionsearch.client.transports import Address, Backoff, utf8_only
from regionsearch.errors import Kind, RegionSearchError, from_rpc_error
from regionsearch.proxies import environment_proxy, through
from regionsearch.rpc.calls import acall, call
from regionsearch.rpc.channels import open_aio_channel, open_channel
from regionsearch.schemas.responses.records import IngestProgress
from regionsearch.v1.region_search_pb2_grpc import RegionSearchServiceStub

T = TypeVar("T")


class GrpcTransport:
    """`Transport` over gRPC; may be used from many threads. The channel retries what is UNAVAILABLE."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._policy = address.policy()
        self._channel: grpc.Channel = open_channel(*address.channel())

    def send(self, operation: Operation[T]) -> T:
        """The operation's result, or its `RegionSearchError`."""
        over = _grpc_call(operation)
        with utf8_only():
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
        with utf8_only():
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

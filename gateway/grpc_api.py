"""The gRPC twin of the HTTP API: the contract's messages go straight to the use cases."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import Any

import structlog
from google.protobuf.message import Message
from google.rpc import status_pb2

from gateway.access import Scope
from gateway.core import Gateway
from gateway.records import IdempotencyKey, checked_key
from regionsearch.errors import Kind, RegionSearchError, to_status, too_large
from regionsearch.rpc import deadline
from regionsearch.rpc.callers import calling_for, peer_address
from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1 import region_search_pb2_grpc, types_pb2
from services.runtime.interceptor import is_over
from services.runtime.requests import Load

_log = structlog.get_logger(__name__)

_Context = Any  # grpc-stubs give handlers the synchronous context


class RegionSearchServicer(region_search_pb2_grpc.RegionSearchServiceServicer):
    """Serves one gateway.

    Args:
        gateway: The use cases.
        load: Bounds the bytes of requests in work, of which a stream has many.
    """

    def __init__(self, gateway: Gateway, load: Load) -> None:
        self._gateway = gateway
        self._load = load

    @contextlib.contextmanager
    def _call(self, context: _Context, needed: Scope, limit_s: float | None) -> Iterator[dict[str, str]]:
        """Checks the caller and hands its deadline on; yields the metadata."""
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        access = self._gateway.access
        address = access.address(peer_address(context.peer()), metadata.get("x-forwarded-for", ""))
        caller = access.check(needed, metadata.get("authorization"), metadata.get("x-api-key"), address)
        begin = time.perf_counter()
        try:
            with calling_for(caller), deadline(context.time_remaining()), deadline(limit_s):
                yield metadata
        finally:  # as for requests over HTTP; how it ended is in the metrics
            seconds = round(time.perf_counter() - begin, 4)
            _log.info("call", address=address, caller=caller, seconds=seconds)

    async def IngestImage(  # noqa: N802
        self, request: pb.IngestImageRequest, context: _Context
    ) -> pb.IngestImageResponse:
        """See the contract."""
        with self._call(context, Scope.WRITE, None) as metadata:
            key = checked_key(metadata.get("idempotency-key"))
            with self._gateway.ingester.admit(1):
                return await self._gateway.ingester.ingest(
                    request, idempotency_key=IdempotencyKey(key) if key else None
                )

    async def IngestImages(  # noqa: N802
        self, request_iterator: AsyncIterable[pb.IngestImagesRequest], context: _Context
    ) -> AsyncIterator[pb.IngestImagesResponse]:
        """See the contract."""
        with self._call(context, Scope.WRITE, None):
            stream = _IngestStream(self._gateway, self._load)
            async for response in stream.run(request_iterator):
                yield response

    async def Search(  # noqa: N802
        self, request: pb.RegionSearchServiceSearchRequest, context: _Context
    ) -> pb.RegionSearchServiceSearchResponse:
        """See the contract."""
        with self._call(context, Scope.READ, self._gateway.settings.timeouts.query_s):
            answer = (await self._gateway.search.search(request)).to_proto()
            self._check_size(answer, "page_size", "ask for fewer hits, or leave include_masks out")
            return answer

    async def SearchWithin(  # noqa: N802
        self, request: pb.SearchWithinRequest, context: _Context
    ) -> pb.SearchWithinResponse:
        """See the contract."""
        with self._call(context, Scope.READ, self._gateway.settings.timeouts.query_s):
            answer = await self._gateway.search.within(request)
            field = request.WhichOneof("source") or "image"
            self._check_size(answer, field, "search in a smaller image, or set include_masks to false")
            return answer

    async def UpdateImage(  # noqa: N802
        self, request: pb.UpdateImageRequest, context: _Context
    ) -> pb.UpdateImageResponse:
        """See the contract."""
        with self._call(context, Scope.WRITE, self._gateway.settings.timeouts.query_s):
            image, seq = await self._gateway.catalog.update_image(request.collection, request.update)
            return pb.UpdateImageResponse(image=image, seq=seq)

    async def DeleteImage(  # noqa: N802
        self, request: pb.DeleteImageRequest, context: _Context
    ) -> pb.DeleteImageResponse:
        """See the contract."""
        with self._call(context, Scope.WRITE, self._gateway.settings.timeouts.query_s):
            seq = await self._gateway.catalog.delete_image(request.collection, request.image_id)
            return pb.DeleteImageResponse(seq=seq)

    async def CheckImages(  # noqa: N802
        self, request: pb.CheckImagesRequest, context: _Context
    ) -> pb.CheckImagesResponse:
        """See the contract."""
        with self._call(context, Scope.READ, self._gateway.settings.timeouts.query_s):
            images = await self._gateway.catalog.stored(request.collection, request.image_ids)
            return pb.CheckImagesResponse(images=images)

    async def ListImages(  # noqa: N802
        self, request: pb.RegionSearchServiceListImagesRequest, context: _Context
    ) -> pb.RegionSearchServiceListImagesResponse:
        """See the contract."""
        with self._call(context, Scope.READ, self._gateway.settings.timeouts.query_s):
            page = await self._gateway.catalog.images(
                request.collection, request.page_size, request.page_token
            )
            return pb.RegionSearchServiceListImagesResponse(
                images=page.images, next_page_token=page.next_page_token, total_count=page.total_count
            )

    def _check_size(self, answer: Message, field: str, advice: str) -> None:
        """Refuses an answer that what was added to the searcher's has made too large to be sent.

        Raises:
            RegionSearchError: TOO_LARGE.
        """
        most = self._gateway.settings.max_message_bytes
        if answer.ByteSize() > most:
            raise too_large(field, f"the answer is over {most} bytes (max_message_bytes): {advice}")


class _IngestStream:
    """Many images at once over one stream; reads on only while there is room."""

    def __init__(self, gateway: Gateway, load: Load) -> None:
        self._gateway = gateway
        self._load = load
        self._answers: asyncio.Queue[pb.IngestImagesResponse | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(2 * gateway.settings.limits.max_images_in_work)

    async def run(
        self, requests: AsyncIterable[pb.IngestImagesRequest]
    ) -> AsyncIterator[pb.IngestImagesResponse]:
        """Answers until all images are done; a failure to read ends it."""
        reader = asyncio.create_task(self._read(requests))
        try:
            while (answer := await self._answers.get()) is not None:
                yield answer
                if answer.stage == pb.INGEST_STAGE_DONE:
                    self._room.release()  # not before: answers to who does not read them must not pile up
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, requests: AsyncIterable[pb.IngestImagesRequest]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                async for request in requests:
                    await self._room.acquire()
                    group.create_task(self._ingest(request))
        finally:
            self._answers.put_nowait(None)

    async def _ingest(self, request: pb.IngestImagesRequest) -> None:
        def report(stage: pb.IngestStage.ValueType) -> None:
            if stage != pb.INGEST_STAGE_DONE:
                self._answers.put_nowait(pb.IngestImagesResponse(key=request.key, stage=stage))

        done = pb.IngestImagesResponse(key=request.key, stage=pb.INGEST_STAGE_DONE)
        try:
            with self._load.message(request.ByteSize()), self._gateway.ingester.admit(1):
                answer = await self._gateway.ingester.ingest(
                    request.request, priority=types_pb2.PRIORITY_BULK, progress=report
                )
            done.response.CopyFrom(answer)
        except RegionSearchError as error:
            done.error.CopyFrom(status_of(error))
        except (Exception, asyncio.CancelledError) as error:
            if is_over(error):
                raise
            _log.exception("ingest failed unexpectedly", exc_info=error)
            done.error.CopyFrom(status_of(RegionSearchError(Kind.INTERNAL, "an unexpected error")))
        self._answers.put_nowait(done)


def status_of(error: RegionSearchError) -> status_pb2.Status:
    """The error as a message, for answers that carry many."""
    packed = dict(to_status(error).trailing_metadata or ())["grpc-status-details-bin"]
    return status_pb2.Status.FromString(packed)

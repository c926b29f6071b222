"""The gRPC twin of the HTTP API: the contract's messages go straight to the use cases."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any

import structlog
from google.protobuf.message import Message

from gateway.core import Gateway
from gateway.records import IdempotencyKey, checked_key
from gateway.rights import Scope, having, rights
from regionsearch.errors import too_large
from regionsearch.rpc.calls import calling_for, deadline, peer_address
from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1 import region_search_pb2_grpc, types_pb2
from services.runtime.interceptor import answer_items, item_status
from services.runtime.requests import Load

_log = structlog.get_logger(__name__)

_Context = Any  # grpc-stubs give handlers the synchronous context


class RegionSearchServicer(region_search_pb2_grpc.RegionSearchServiceServicer):
    """Serves one gateway; what its methods do stands in the contract.

    Args:
        gateway: The use cases.
        load: Bounds the bytes of requests in work, of which a stream has many.
    """

    def __init__(self, gateway: Gateway, load: Load) -> None:
        self._gateway = gateway
        self._load = load

    @contextlib.contextmanager
    def _call(
        self, context: _Context, needed: Scope | None, limit_s: float | None
    ) -> Iterator[dict[str, str]]:
        """Checks the caller and hands its deadline on; yields the metadata."""
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        access = self._gateway.access
        address = access.address(peer_address(context.peer()), metadata.get("x-forwarded-for", ""))
        caller = access.check(needed, metadata.get("authorization"), metadata.get("x-api-key"), address)
        begin = time.perf_counter()
        try:
            with (
                having(caller.rights),
                calling_for(caller.name),
                deadline(context.time_remaining()),
                deadline(limit_s),
            ):
                yield metadata
        finally:  # as for requests over HTTP; how it ended is in the metrics
            seconds = round(time.perf_counter() - begin, 4)
            _log.info("call", address=address, caller=caller.name, seconds=seconds)

    async def IngestImage(self, request: pb.IngestImageRequest, context: _Context) -> pb.IngestImageResponse:
        with self._call(context, Scope.WRITE, None) as metadata:
            key = checked_key(metadata.get("idempotency-key"))
            with self._gateway.ingester.admit(1):
                return await self._gateway.ingester.ingest(
                    request, idempotency_key=IdempotencyKey(key) if key else None
                )

    async def IngestImages(
        self, request_iterator: AsyncIterable[pb.IngestImagesRequest], context: _Context
    ) -> AsyncIterator[pb.IngestImagesResponse]:
        with self._call(context, Scope.WRITE, None):
            window = 2 * self._gateway.settings.limits.max_images_in_work
            answers = answer_items(request_iterator, self._ingest_item, window)
            async with contextlib.aclosing(answers):
                async for one in answers:
                    yield one

    async def _ingest_item(
        self, item: pb.IngestImagesRequest, report: Callable[[pb.IngestImagesResponse], None]
    ) -> pb.IngestImagesResponse:
        def begin(stage: pb.IngestStage.ValueType) -> None:
            if stage != pb.INGEST_STAGE_DONE:
                report(pb.IngestImagesResponse(key=item.key, stage=stage))

        done = pb.IngestImagesResponse(key=item.key, stage=pb.INGEST_STAGE_DONE)
        try:
            with self._load.message(item.ByteSize()), self._gateway.ingester.admit(1):
                answer = await self._gateway.ingester.ingest(
                    item.request, priority=types_pb2.PRIORITY_BULK, progress=begin
                )
            done.response.CopyFrom(answer)
        except (Exception, asyncio.CancelledError) as error:  # fails one item, not the stream
            done.error.CopyFrom(item_status(error))
        return done

    async def Search(
        self, request: pb.RegionSearchServiceSearchRequest, context: _Context
    ) -> pb.RegionSearchServiceSearchResponse:
        with self._call(context, Scope.SEARCH, self._gateway.settings.timeouts.query_s):
            answer = (await self._gateway.search.search(request)).to_proto()
            self._check_size(answer, "page_size", "ask for fewer hits, or leave include_masks out")
            return answer

    async def Scroll(
        self, request: pb.RegionSearchServiceScrollRequest, context: _Context
    ) -> pb.RegionSearchServiceScrollResponse:
        with self._call(context, Scope.SEARCH, self._gateway.settings.timeouts.query_s):
            page = await self._gateway.catalog.images.scroll(request)
            return pb.RegionSearchServiceScrollResponse(
                records=page.records, images=page.images, next_page_token=page.next_page_token, seq=page.seq
            )

    async def Count(
        self, request: pb.RegionSearchServiceCountRequest, context: _Context
    ) -> pb.RegionSearchServiceCountResponse:
        with self._call(context, Scope.SEARCH, self._gateway.settings.timeouts.query_s):
            found = await self._gateway.catalog.images.count(request)
            return pb.RegionSearchServiceCountResponse(
                record_count=found.record_count,
                image_count=found.image_count,
                facets=found.facets,
                seq=found.seq,
            )

    async def GetMap(self, request: pb.GetMapRequest, context: _Context) -> pb.GetMapResponse:
        with self._call(context, Scope.SEARCH, self._gateway.settings.timeouts.query_s):
            found = await self._gateway.map.get(request)
            self._check_size(found, "max_points", "ask for fewer points")
            return found

    async def SearchWithin(
        self, request: pb.SearchWithinRequest, context: _Context
    ) -> pb.SearchWithinResponse:
        with self._call(context, Scope.SEARCH, self._gateway.settings.timeouts.query_s):
            answer = await self._gateway.within.search(request)
            field = request.WhichOneof("source") or "image"
            self._check_size(answer, field, "search in a smaller image, or set include_masks to false")
            return answer

    async def UpdateImage(self, request: pb.UpdateImageRequest, context: _Context) -> pb.UpdateImageResponse:
        with self._call(context, Scope.WRITE, self._gateway.settings.timeouts.query_s):
            image, seq = await self._gateway.catalog.images.update(request.collection, request.update)
            return pb.UpdateImageResponse(image=image, seq=seq)

    async def DeleteImage(self, request: pb.DeleteImageRequest, context: _Context) -> pb.DeleteImageResponse:
        with self._call(context, Scope.DELETE, self._gateway.settings.timeouts.query_s):
            seq = await self._gateway.catalog.images.delete(request.collection, request.image_id)
            return pb.DeleteImageResponse(seq=seq)

    async def CheckImages(self, request: pb.CheckImagesRequest, context: _Context) -> pb.CheckImagesResponse:
        with self._call(context, Scope.SEARCH, self._gateway.settings.timeouts.query_s):
            images = await self._gateway.catalog.images.stored(request.collection, request.image_ids)
            return pb.CheckImagesResponse(images=images)

    async def GetModels(self, request: pb.GetModelsRequest, context: _Context) -> pb.GetModelsResponse:
        with self._call(context, Scope.SEARCH, self._gateway.settings.timeouts.query_s):
            return await self._gateway.models()

    async def GetAccess(self, request: pb.GetAccessRequest, context: _Context) -> pb.GetAccessResponse:
        with self._call(context, None, None):
            own = rights()
            return pb.GetAccessResponse(
                scopes=sorted(own.scopes),
                limited=own.collections is not None,
                collections=sorted(own.collections or ()),
            )

    async def ListImages(
        self, request: pb.RegionSearchServiceListImagesRequest, context: _Context
    ) -> pb.RegionSearchServiceListImagesResponse:
        with self._call(context, Scope.SEARCH, self._gateway.settings.timeouts.query_s):
            page = await self._gateway.catalog.images.list(
                request.collection,
                request.page_size,
                request.page_token,
                request.filter if request.HasField("filter") else None,
                order_by=request.order_by,
                ascending=request.ascending,
            )
            return pb.RegionSearchServiceListImagesResponse(
                images=page.images, next_page_token=page.next_page_token, total_count=page.total_count
            )

    async def StartReindex(
        self, request: pb.StartReindexRequest, context: _Context
    ) -> pb.StartReindexResponse:
        with self._call(context, Scope.ADMIN, self._gateway.settings.timeouts.query_s):
            return pb.StartReindexResponse(
                reindex=await self._gateway.reindexer.start(request.collection, request.embedder)
            )

    async def GetReindex(self, request: pb.GetReindexRequest, context: _Context) -> pb.GetReindexResponse:
        with self._call(context, Scope.SEARCH, self._gateway.settings.timeouts.query_s):
            return pb.GetReindexResponse(reindex=await self._gateway.reindexer.status(request.collection))

    async def CancelReindex(
        self, request: pb.CancelReindexRequest, context: _Context
    ) -> pb.CancelReindexResponse:
        with self._call(context, Scope.ADMIN, self._gateway.settings.timeouts.query_s):
            await self._gateway.reindexer.cancel(request.collection)
            return pb.CancelReindexResponse()

    async def TrainCodes(
        self, request: pb.RegionSearchServiceTrainCodesRequest, context: _Context
    ) -> pb.RegionSearchServiceTrainCodesResponse:
        with self._call(context, Scope.ADMIN, self._gateway.settings.timeouts.ingest_s):
            trained = await self._gateway.catalog.train_codes(request.collection, request.binary_codes)
            return pb.RegionSearchServiceTrainCodesResponse(collection=trained)

    def _check_size(self, answer: Message, field: str, advice: str) -> None:
        """Refuses an answer that what was added to the searcher's has made too large to be sent.

        Raises:
            RegionSearchError: TOO_LARGE.
        """
        most = self._gateway.settings.max_message_bytes
        if answer.ByteSize() > most:
            raise too_large(field, f"the answer is over {most} bytes (max_message_bytes): {advice}")

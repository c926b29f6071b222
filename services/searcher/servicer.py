"""The gRPC service: reads each message into plain values, and runs the engine on a thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message

from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.rpc.calls import remaining
from regionsearch.v1 import search_pb2 as pb
from regionsearch.v1 import search_pb2_grpc
from services.searcher.answers import (
    collection_to_proto,
    counts_to_proto,
    image_to_proto,
    stats_to_proto,
    stored_to_proto,
)
from services.searcher.bounded_executor import BoundedExecutor, CancellationToken
from services.searcher.engine import BehindError, Engine
from services.searcher.replication import Replication
from services.searcher.requests import Reader, write_bytes
from services.searcher.response_budget import ResponseBudget, ResponseMemory
from services.searcher.scrolling import NEWEST_FIRST
from services.searcher.search_requests import PageTokens, ScrollReader, fingerprint
from services.searcher.searches import Searches
from services.searcher.settings import LimitSettings
from services.searcher.snapshot_schedule import dated, take_snapshot
from services.searcher.types import UpsertResult

T = TypeVar("T")
_Context = Any  # grpc-stubs give handlers the synchronous context
_ITEMS = 100
_TAG_BYTES = 8  # around an item in a list


class SearchServicer(search_pb2_grpc.SearchServiceServicer):
    """Serves one engine; what its methods do stands in the contract.

    Args:
        engine: Where collections are kept.
        limits: What a call may ask for.
        reads: Threads for searches and look-ups.
        writes: Threads for everything that waits for the disk.
        snapshots: The thread that writes and restores snapshots, one after the other.
        max_message_bytes: Cap of an answer.
        max_read_bytes: Cap of all answers to reads together.
        replication: Follows another searcher, or is followed by others.
        closing: Set when the process stops: streams end then instead of waiting for their next message.
    """

    def __init__(
        self,
        engine: Engine,
        limits: LimitSettings,
        reads: BoundedExecutor,
        writes: BoundedExecutor,
        snapshots: BoundedExecutor,
        max_message_bytes: int,
        max_read_bytes: int,
        replication: Replication,
        closing: asyncio.Event,
    ) -> None:
        self._replication = replication
        self._closing = closing
        self._engine = engine
        self._read = Reader(limits)
        self._tokens = PageTokens(engine.token_key)
        self._searches = Searches(engine, self._read, self._tokens, reads)
        self._scrolls = ScrollReader(self._read, self._tokens)
        self._most = max_message_bytes
        self._answers = ResponseMemory(max_read_bytes)
        self._reads = reads
        self._writes = writes
        self._snapshots = snapshots

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: _Context
    ) -> pb.CreateCollectionResponse:
        wanted = self._read.collection(request)
        made = await self._writes.run(lambda: self._engine.create_collection(wanted))
        return pb.CreateCollectionResponse(
            collection=collection_to_proto(made), seq=self._engine.last_write()
        )

    async def GetCollection(
        self, request: pb.GetCollectionRequest, context: _Context
    ) -> pb.GetCollectionResponse:
        found = await self._look_up(context, lambda: self._engine.get_collection(request.name))
        return pb.GetCollectionResponse(collection=collection_to_proto(found))

    async def ListCollections(
        self, request: pb.ListCollectionsRequest, context: _Context
    ) -> pb.ListCollectionsResponse:
        return await self._look_up(context, lambda: self._list_collections(request))

    def _list_collections(self, request: pb.ListCollectionsRequest) -> pb.ListCollectionsResponse:
        size = self._read.page_size(request.page_size, _ITEMS)
        digest = fingerprint(b"collections")
        after = self._tokens.decode(request.page_token, digest, str)[0] if request.page_token else ""
        found = [c for c in self._engine.list_collections() if c.name > after]
        listed: list[pb.Collection] = []
        taken = 0
        for collection in map(collection_to_proto, found[:size]):
            taken += collection.ByteSize() + _TAG_BYTES
            if listed and taken > self._most:
                break
            listed.append(collection)
        token = self._tokens.encode(digest, listed[-1].name) if len(found) > len(listed) else ""
        return pb.ListCollectionsResponse(collections=listed, next_page_token=token)

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: _Context
    ) -> pb.DeleteCollectionResponse:
        await self._writes.run(lambda: self._engine.delete_collection(request.name))
        return pb.DeleteCollectionResponse(seq=self._engine.last_write())

    async def TrainCodes(self, request: pb.TrainCodesRequest, context: _Context) -> pb.TrainCodesResponse:
        spec = self._read.codes_to_train(request)
        trained = await self._writes.run(lambda: self._engine.train_codes(request.collection, spec))
        return pb.TrainCodesResponse(collection=collection_to_proto(trained), seq=self._engine.last_write())

    async def ReplaceCollection(
        self, request: pb.ReplaceCollectionRequest, context: _Context
    ) -> pb.ReplaceCollectionResponse:
        names = self._read.renaming(request)
        differing = await self._writes.run(lambda: self._engine.replace_collection(*names))
        return pb.ReplaceCollectionResponse(differing_image_ids=differing, seq=self._engine.last_write())

    async def Upsert(self, request: pb.UpsertRequest, context: _Context) -> pb.UpsertResponse:
        done = await self._writes.run(lambda: self._upsert(request), nbytes=write_bytes(request))
        return pb.UpsertResponse(seq=done.seq, skipped_image_ids=done.skipped)

    async def BulkUpsert(
        self, request_iterator: AsyncIterable[pb.BulkUpsertRequest], context: _Context
    ) -> pb.BulkUpsertResponse:
        answer = pb.BulkUpsertResponse()
        generations: dict[str, str] = {}  # the collections that this call has begun with
        async with contextlib.aclosing(self._until_closing(request_iterator, answer)) as requests:
            async for request in requests:
                batch = request.batch
                generation = generations.get(batch.collection)
                write = partial(self._upsert, batch, generation)
                # Refused as a whole at its first message, a stream waits for its turn afterwards.
                run = self._writes.run_in_turn if generations else self._writes.run
                done = await run(write, nbytes=write_bytes(batch))
                generations[batch.collection] = done.generation
                answer.seq = done.seq
                answer.record_count += done.record_count
                answer.skipped_image_count += len(done.skipped)
        return answer

    async def _until_closing(
        self, requests: AsyncIterable[pb.BulkUpsertRequest], written: pb.BulkUpsertResponse
    ) -> AsyncGenerator[pb.BulkUpsertRequest, None]:
        """The messages of a stream. A process that stops does not wait for the next one.

        Raises:
            RegionSearchError: UNAVAILABLE, naming what of the stream is written.
        """
        iterator = aiter(requests)
        closing = asyncio.ensure_future(self._closing.wait())
        following: asyncio.Future[pb.BulkUpsertRequest] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(iterator))
                await asyncio.wait({following, closing}, return_when=asyncio.FIRST_COMPLETED)
                if closing.done():
                    raise RegionSearchError(
                        Kind.UNAVAILABLE,
                        f"the searcher is stopping; {written.record_count} records of this stream are "
                        f"written, up to write {written.seq}: send the others again",
                        retry_after_s=1.0,
                    )
                try:
                    request = following.result()
                except StopAsyncIteration:
                    return
                yield request
        finally:
            closing.cancel()
            if following is not None:
                following.cancel()

    def _upsert(self, request: pb.UpsertRequest, generation: str | None = None) -> UpsertResult:
        model = self._read.model(request.model)
        return self._engine.upsert(request.collection, model, self._read.upsert(request), generation)

    async def UpdateImages(
        self, request: pb.UpdateImagesRequest, context: _Context
    ) -> pb.UpdateImagesResponse:
        updates, limits = self._read.updates(request), self._read.metadata
        done = await self._writes.run(lambda: self._engine.update_images(request.collection, updates, limits))
        return pb.UpdateImagesResponse(seq=done.seq, images=[image_to_proto(image) for image in done.images])

    async def Delete(self, request: pb.DeleteRequest, context: _Context) -> pb.DeleteResponse:
        deletion = self._read.deletion(request)
        done = await self._writes.run(lambda: self._engine.delete(request.collection, deletion))
        return pb.DeleteResponse(
            seq=done.seq, deleted_image_count=done.image_count, deleted_record_count=done.record_count
        )

    async def Search(self, request: pb.SearchRequest, context: _Context) -> pb.SearchResponse:
        cancellation = CancellationToken(remaining())
        advice = "ask for fewer hits or queries, or leave include_masks out"
        # The gateway adds the query's vectors to the page token.
        budget = self._budget(context, "page_size", advice, spare=self._most // 32)
        return await self._up_to_date(context, lambda: self._searches.answer(request, cancellation, budget))

    def _budget(self, context: _Context, field: str, advice: str, spare: float = 0) -> ResponseBudget:
        """Of an answer, which counts among all of them until it is sent or its caller has left."""
        budget = ResponseBudget(self._most, field, advice, spare=spare, memory=self._answers)
        context.add_done_callback(lambda _: self._answers.give_back(budget))
        return budget

    async def GetRecords(self, request: pb.GetRecordsRequest, context: _Context) -> pb.GetRecordsResponse:
        for name in ("record_ids", "image_ids"):
            self._read.at_most(name, len(getattr(request, name)), "max_filter_values")
        field = "image_ids" if request.image_ids else "record_ids"
        budget = self._budget(context, field, "name fewer, or leave include_masks and include_vectors out")
        return await self._look_up(context, lambda: self._get_records(request, budget))

    def _get_records(self, request: pb.GetRecordsRequest, budget: ResponseBudget) -> pb.GetRecordsResponse:
        found = self._engine.get_records(
            request.collection,
            list(request.record_ids),
            list(request.image_ids),
            masks=request.include_masks,
            vectors=request.include_vectors,
            images_only=request.images_only,
            budget=budget,
        )
        answer = pb.GetRecordsResponse(**stored_to_proto(found))
        budget.check(answer.ByteSize())
        return answer

    async def ListImages(self, request: pb.ListImagesRequest, context: _Context) -> pb.ListImagesResponse:
        budget = self._budget(context, "page_size", "ask for fewer images")
        return await self._look_up(context, lambda: self._list_images(request, budget))

    def _list_images(self, request: pb.ListImagesRequest, budget: ResponseBudget) -> pb.ListImagesResponse:
        size = self._read.page_size(request.page_size, _ITEMS)
        order = self._read.image_order(request.order_by, request.ascending)
        asked = f"images of {request.collection}{'' if order == NEWEST_FIRST else order}"
        digest = fingerprint(asked.encode() + _deterministic(request.filter))
        generation, after = None, None
        if request.page_token:
            kind = int if order.by == NEWEST_FIRST.by else str
            generation, place, image_id = self._tokens.decode(request.page_token, digest, str, kind, str)
            after = (place, image_id)
        wanted = self._read.filter(request.filter)
        page = self._engine.list_images(request.collection, size, after, budget, generation, wanted, order)
        answer = pb.ListImagesResponse(
            images=[image_to_proto(image) for image in page.images],
            next_page_token=self._tokens.encode(digest, page.generation, *page.next_key)
            if page.next_key
            else "",
            total_count=page.total_count,
        )
        budget.check(answer.ByteSize())
        return answer

    async def Scroll(self, request: pb.ScrollRequest, context: _Context) -> pb.ScrollResponse:
        advice = "ask for fewer records, or leave include_masks and include_vectors out"
        budget = self._budget(context, "page_size", advice)
        return await self._look_up(context, lambda: self._scroll(request, budget))

    def _scroll(self, request: pb.ScrollRequest, budget: ResponseBudget) -> pb.ScrollResponse:
        asked, digest = self._scrolls.scroll(request)
        min_seq = request.min_seq if request.HasField("min_seq") else None
        page = self._engine.scroll(request.collection, asked, min_seq, budget)
        answer = pb.ScrollResponse(
            **stored_to_proto(page.stored), next_page_token=self._scrolls.next_page_token(page, digest)
        )
        budget.check(answer.ByteSize())
        return answer

    async def Count(self, request: pb.CountRequest, context: _Context) -> pb.CountResponse:
        return await self._look_up(context, lambda: self._count(request))

    def _count(self, request: pb.CountRequest) -> pb.CountResponse:
        min_seq = request.min_seq if request.HasField("min_seq") else None
        wanted, level = self._read.filter(request.filter), self._read.level(request.level)
        facets = self._scrolls.facets(request)
        answer = counts_to_proto(self._engine.count(request.collection, wanted, level, facets, min_seq))
        ResponseBudget(self._most, "facets", "ask for fewer values").check(answer.ByteSize())
        return answer

    async def Snapshot(self, request: pb.SnapshotRequest, context: _Context) -> pb.SnapshotResponse:
        name = request.name or dated()
        if request.keep < 0:
            raise invalid("keep", "keep cannot be negative")
        done = await self._snapshots.run(lambda: take_snapshot(self._engine, name, request.keep))
        return pb.SnapshotResponse(name=done.name, size_bytes=done.size_bytes, seq=done.seq)

    async def ListSnapshots(
        self, request: pb.ListSnapshotsRequest, context: _Context
    ) -> pb.ListSnapshotsResponse:
        answer = pb.ListSnapshotsResponse()
        for one in await self._reads.run(self._engine.list_snapshots):
            answer.snapshots.add(name=one.name, size_bytes=one.size_bytes).create_time.FromMilliseconds(
                one.created_ms
            )
        return answer

    async def DeleteSnapshot(
        self, request: pb.DeleteSnapshotRequest, context: _Context
    ) -> pb.DeleteSnapshotResponse:
        await self._snapshots.run(lambda: self._engine.delete_snapshot(request.name))
        return pb.DeleteSnapshotResponse()

    async def Restore(self, request: pb.RestoreRequest, context: _Context) -> pb.RestoreResponse:
        seq, count = await self._snapshots.run(lambda: self._engine.restore(request.name, request.collection))
        return pb.RestoreResponse(seq=seq, collection_count=count)

    async def _look_up(self, context: _Context, read: Callable[[], T]) -> T:
        """Runs a read."""
        return await self._up_to_date(context, lambda: self._reads.run(read))

    async def _up_to_date(self, context: _Context, answer: Callable[[], Awaitable[T]]) -> T:
        """Answers a read, on a read replica once it has what the caller has seen."""
        await self._replication.see(context)
        try:
            return await answer()
        except BehindError as error:
            await self._replication.reach(error)
        return await answer()

    async def Follow(
        self, request: pb.FollowRequest, context: _Context
    ) -> AsyncGenerator[pb.FollowResponse, None]:
        async with contextlib.aclosing(self._replication.feed(request)) as responses:
            async for response in responses:
                yield response

    async def GetStats(self, request: pb.GetStatsRequest, context: _Context) -> pb.GetStatsResponse:
        found = await self._reads.run(lambda: self._engine.stats(request.collection or None))
        return pb.GetStatsResponse(
            collections=[stats_to_proto(stats) for stats in found],
            engine=self._engine.name,
            disk_bytes=self._engine.disk_bytes(),
        )


def _deterministic(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)

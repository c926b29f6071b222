"""The gRPC service: reads each message into plain values, and runs the engine on a thread."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterable
from functools import partial
from typing import Any

from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.rpc import remaining
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2, search_pb2_grpc
from services.searcher.answers import (
    collection_to_proto,
    hit_to_proto,
    image_to_proto,
    model_to_proto,
    record_to_proto,
    stats_to_proto,
)
from services.searcher.bounded_executor import BoundedExecutor
from services.searcher.cancellation import CancellationToken
from services.searcher.engine import Engine
from services.searcher.page_tokens import PageTokens, fingerprint
from services.searcher.reports import SnapshotInfo
from services.searcher.requests import Reader, write_bytes
from services.searcher.response_budget import ResponseBudget, ResponseMemory
from services.searcher.search_requests import SearchReader
from services.searcher.settings import LimitSettings
from services.searcher.types import UpsertResult

_Context = Any  # grpc-stubs give handlers the synchronous context
_ITEMS = 100
_TAG_BYTES = 8  # around an item in a list


class SearchServicer(search_pb2_grpc.SearchServiceServicer):
    """Serves one engine.

    Args:
        engine: Where collections are kept.
        limits: What a call may ask for.
        reads: Threads for searches and look-ups.
        writes: Threads for everything that waits for the disk.
        snapshots: The thread that writes and restores snapshots, one after the other.
        max_message_bytes: Cap of an answer.
        max_read_bytes: Cap of all answers to reads together.
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
        closing: asyncio.Event,
    ) -> None:
        self._closing = closing
        self._engine = engine
        self._read = Reader(limits)
        self._tokens = PageTokens(engine.token_key)
        self._search_reader = SearchReader(self._read, self._tokens)
        self._most = max_message_bytes
        self._answers = ResponseMemory(max_read_bytes)
        self._reads = reads
        self._writes = writes
        self._snapshots = snapshots

    async def CreateCollection(  # noqa: N802
        self, request: search_pb2.CreateCollectionRequest, context: _Context
    ) -> search_pb2.CreateCollectionResponse:
        """See the contract."""
        wanted = self._read.collection(request)
        made = await self._writes.run(lambda: self._engine.create_collection(wanted))
        return search_pb2.CreateCollectionResponse(collection=collection_to_proto(made))

    async def GetCollection(  # noqa: N802
        self, request: search_pb2.GetCollectionRequest, context: _Context
    ) -> search_pb2.GetCollectionResponse:
        """See the contract."""
        found = await self._reads.run(lambda: self._engine.get_collection(request.name))
        return search_pb2.GetCollectionResponse(collection=collection_to_proto(found))

    async def ListCollections(  # noqa: N802
        self, request: search_pb2.ListCollectionsRequest, context: _Context
    ) -> search_pb2.ListCollectionsResponse:
        """See the contract."""
        return await self._reads.run(lambda: self._list_collections(request))

    def _list_collections(
        self, request: search_pb2.ListCollectionsRequest
    ) -> search_pb2.ListCollectionsResponse:
        size = self._read.page_size(request.page_size, _ITEMS)
        digest = fingerprint(b"collections")
        after = self._tokens.decode(request.page_token, digest, str)[0] if request.page_token else ""
        found = [c for c in self._engine.list_collections() if c.name > after]
        listed: list[search_pb2.Collection] = []
        taken = 0
        for collection in map(collection_to_proto, found[:size]):
            taken += collection.ByteSize() + _TAG_BYTES
            if listed and taken > self._most:
                break
            listed.append(collection)
        token = self._tokens.encode(digest, listed[-1].name) if len(found) > len(listed) else ""
        return search_pb2.ListCollectionsResponse(collections=listed, next_page_token=token)

    async def DeleteCollection(  # noqa: N802
        self, request: search_pb2.DeleteCollectionRequest, context: _Context
    ) -> search_pb2.DeleteCollectionResponse:
        """See the contract."""
        await self._writes.run(lambda: self._engine.delete_collection(request.name))
        return search_pb2.DeleteCollectionResponse()

    async def ReplaceCollection(  # noqa: N802
        self, request: search_pb2.ReplaceCollectionRequest, context: _Context
    ) -> search_pb2.ReplaceCollectionResponse:
        """See the contract."""
        names = self._read.renaming(request)
        differing = await self._writes.run(lambda: self._engine.replace_collection(*names))
        return search_pb2.ReplaceCollectionResponse(differing_image_ids=differing)

    async def Upsert(  # noqa: N802
        self, request: search_pb2.UpsertRequest, context: _Context
    ) -> search_pb2.UpsertResponse:
        """See the contract."""
        done = await self._writes.run(lambda: self._upsert(request), nbytes=write_bytes(request))
        return search_pb2.UpsertResponse(seq=done.seq, skipped_image_ids=done.skipped)

    async def BulkUpsert(  # noqa: N802
        self, request_iterator: AsyncIterable[search_pb2.BulkUpsertRequest], context: _Context
    ) -> search_pb2.BulkUpsertResponse:
        """See the contract."""
        answer = search_pb2.BulkUpsertResponse()
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
        self, requests: AsyncIterable[search_pb2.BulkUpsertRequest], written: search_pb2.BulkUpsertResponse
    ) -> AsyncGenerator[search_pb2.BulkUpsertRequest, None]:
        """The messages of a stream. A process that stops does not wait for the next one.

        Raises:
            RegionSearchError: UNAVAILABLE, naming what of the stream is written.
        """
        iterator = aiter(requests)
        closing = asyncio.ensure_future(self._closing.wait())
        following: asyncio.Future[search_pb2.BulkUpsertRequest] | None = None
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

    def _upsert(self, request: search_pb2.UpsertRequest, generation: str | None = None) -> UpsertResult:
        write = self._read.upsert(request)
        return self._engine.upsert(request.collection, self._read.model(request.model), write, generation)

    async def UpdateImages(  # noqa: N802
        self, request: search_pb2.UpdateImagesRequest, context: _Context
    ) -> search_pb2.UpdateImagesResponse:
        """See the contract."""
        updates, limits = self._read.updates(request), self._read.metadata
        done = await self._writes.run(lambda: self._engine.update_images(request.collection, updates, limits))
        return search_pb2.UpdateImagesResponse(
            seq=done.seq, images=[image_to_proto(image) for image in done.images]
        )

    async def Delete(  # noqa: N802
        self, request: search_pb2.DeleteRequest, context: _Context
    ) -> search_pb2.DeleteResponse:
        """See the contract."""
        deletion = self._read.deletion(request)
        done = await self._writes.run(lambda: self._engine.delete(request.collection, deletion))
        return search_pb2.DeleteResponse(
            seq=done.seq, deleted_image_count=done.image_count, deleted_record_count=done.record_count
        )

    async def Search(  # noqa: N802
        self, request: search_pb2.SearchRequest, context: _Context
    ) -> search_pb2.SearchResponse:
        """See the contract."""
        cancellation = CancellationToken(remaining())
        advice = "ask for fewer hits or queries, or leave include_masks out"
        # The gateway adds the query's vectors to the page token.
        budget = self._budget(context, "page_size", advice, spare=self._most // 32)
        return await self._reads.run(lambda: self._search(request, cancellation, budget), cancellation)

    def _budget(self, context: _Context, field: str, advice: str, spare: float = 0) -> ResponseBudget:
        """Of an answer, which counts among all of them until it is sent or its caller has left."""
        budget = ResponseBudget(self._most, field, advice, spare=spare, memory=self._answers)
        context.add_done_callback(lambda _: self._answers.give_back(budget))
        return budget

    def _search(
        self, request: search_pb2.SearchRequest, cancellation: CancellationToken, budget: ResponseBudget
    ) -> search_pb2.SearchResponse:
        model = self._read.model(request.model)
        queries, digest = self._search_reader.queries(request)
        min_seq = request.min_seq if request.HasField("min_seq") else None
        found = self._engine.search(request.collection, model, queries, min_seq, cancellation, budget)
        answer = search_pb2.SearchResponse(
            results=[
                search_pb2.QueryResult(
                    hits=[hit_to_proto(hit) for hit in page.hits],
                    next_page_token=self._search_reader.next_page_token(page, digest),
                )
                for page in found
            ],
            seq=found[0].seq,
            model=model_to_proto(model),
        )
        budget.check(answer.ByteSize())
        return answer

    async def GetRecords(  # noqa: N802
        self, request: search_pb2.GetRecordsRequest, context: _Context
    ) -> search_pb2.GetRecordsResponse:
        """See the contract."""
        for name in ("record_ids", "image_ids"):
            self._read.at_most(name, len(getattr(request, name)), "max_filter_values")
        field = "image_ids" if request.image_ids else "record_ids"
        budget = self._budget(context, field, "name fewer, or leave include_masks and include_vectors out")
        return await self._reads.run(lambda: self._get_records(request, budget))

    def _get_records(
        self, request: search_pb2.GetRecordsRequest, budget: ResponseBudget
    ) -> search_pb2.GetRecordsResponse:
        found = self._engine.get_records(
            request.collection,
            list(request.record_ids),
            list(request.image_ids),
            masks=request.include_masks,
            vectors=request.include_vectors,
            images_only=request.images_only,
            budget=budget,
        )
        answer = search_pb2.GetRecordsResponse(
            records=[record_to_proto(record) for record in found.records],
            images=[image_to_proto(image) for image in found.images],
            vectors=None if found.vectors is None else tensor_to_proto(found.vectors),
            seq=found.seq,
        )
        budget.check(answer.ByteSize())
        return answer

    async def ListImages(  # noqa: N802
        self, request: search_pb2.ListImagesRequest, context: _Context
    ) -> search_pb2.ListImagesResponse:
        """See the contract."""
        budget = self._budget(context, "page_size", "ask for fewer images")
        return await self._reads.run(lambda: self._list_images(request, budget))

    def _list_images(
        self, request: search_pb2.ListImagesRequest, budget: ResponseBudget
    ) -> search_pb2.ListImagesResponse:
        size = self._read.page_size(request.page_size, _ITEMS)
        digest = fingerprint(f"images of {request.collection}".encode())
        generation, after = None, None
        if request.page_token:
            generation, place, image_id = self._tokens.decode(request.page_token, digest, str, int, str)
            after = (place, image_id)
        page = self._engine.list_images(request.collection, size, after, budget, generation)
        answer = search_pb2.ListImagesResponse(
            images=[image_to_proto(image) for image in page.images],
            next_page_token=self._tokens.encode(digest, page.generation, *page.next_key)
            if page.next_key
            else "",
            total_count=page.total_count,
        )
        budget.check(answer.ByteSize())
        return answer

    async def Snapshot(  # noqa: N802
        self, request: search_pb2.SnapshotRequest, context: _Context
    ) -> search_pb2.SnapshotResponse:
        """See the contract."""
        name = request.name or time.strftime("%Y%m%dT%H%M%SZ.sqlite", time.gmtime())
        if request.keep < 0:
            raise invalid("keep", "keep cannot be negative")

        def take() -> SnapshotInfo:
            done = self._engine.snapshot(name)
            for older in self._engine.list_snapshots()[request.keep :] if request.keep else ():
                self._engine.delete_snapshot(older.name)
            return done

        done = await self._snapshots.run(take)
        return search_pb2.SnapshotResponse(name=done.name, size_bytes=done.size_bytes, seq=done.seq)

    async def ListSnapshots(  # noqa: N802
        self, request: search_pb2.ListSnapshotsRequest, context: _Context
    ) -> search_pb2.ListSnapshotsResponse:
        """See the contract."""
        answer = search_pb2.ListSnapshotsResponse()
        for one in await self._reads.run(self._engine.list_snapshots):
            answer.snapshots.add(name=one.name, size_bytes=one.size_bytes).create_time.FromMilliseconds(
                one.created_ms
            )
        return answer

    async def DeleteSnapshot(  # noqa: N802
        self, request: search_pb2.DeleteSnapshotRequest, context: _Context
    ) -> search_pb2.DeleteSnapshotResponse:
        """See the contract."""
        await self._snapshots.run(lambda: self._engine.delete_snapshot(request.name))
        return search_pb2.DeleteSnapshotResponse()

    async def Restore(  # noqa: N802
        self, request: search_pb2.RestoreRequest, context: _Context
    ) -> search_pb2.RestoreResponse:
        """See the contract."""
        seq, count = await self._snapshots.run(lambda: self._engine.restore(request.name))
        return search_pb2.RestoreResponse(seq=seq, collection_count=count)

    async def GetStats(  # noqa: N802
        self, request: search_pb2.GetStatsRequest, context: _Context
    ) -> search_pb2.GetStatsResponse:
        """See the contract."""
        found = await self._reads.run(lambda: self._engine.stats(request.collection or None))
        return search_pb2.GetStatsResponse(
            collections=[stats_to_proto(stats) for stats in found],
            engine=self._engine.name,
            disk_bytes=self._engine.disk_bytes(),
        )

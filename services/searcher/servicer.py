"""The transport: messages to the engine's values and back, calls to threads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from regionsearch.errors import Kind, RegionSearchError, invalid, too_large
from regionsearch.rpc import remaining
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2, search_pb2_grpc
from services.searcher import pages
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
from services.searcher.requests import Reader, write_bytes
from services.searcher.response_budget import ResponseBudget
from services.searcher.settings import LimitSettings
from services.searcher.types import Page, Position, Query, UpsertResult, Vectors

_Context = Any  # grpc-stubs give handlers the synchronous context
_HITS = 20
_MAX_EFFORT = 1000
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
        closing: asyncio.Event,
    ) -> None:
        self._closing = closing
        self._engine = engine
        self._read = Reader(limits)
        self._most = max_message_bytes
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
        print_ = pages.fingerprint(b"collections")
        after = self._token_values(request.page_token, print_, str)[0] if request.page_token else ""
        found = [c for c in self._engine.list_collections() if c.name > after]
        listed: list[search_pb2.Collection] = []
        taken = 0
        for collection in map(collection_to_proto, found[:size]):
            taken += collection.ByteSize() + _TAG_BYTES
            if listed and taken > self._most:
                break
            listed.append(collection)
        token = self._token(print_, listed[-1].name) if len(found) > len(listed) else ""
        return search_pb2.ListCollectionsResponse(collections=listed, next_page_token=token)

    def _token(self, *parts: Any) -> str:
        return pages.encode(self._engine.token_key(), *parts)

    def _token_values(self, token: str, print_: str, *types: type) -> list[Any]:
        return pages.decode(token, self._engine.token_key, print_, *types)

    async def DeleteCollection(  # noqa: N802
        self, request: search_pb2.DeleteCollectionRequest, context: _Context
    ) -> search_pb2.DeleteCollectionResponse:
        """See the contract."""
        await self._writes.run(lambda: self._engine.delete_collection(request.name))
        return search_pb2.DeleteCollectionResponse()

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
        caller = CancellationToken(remaining())
        return await self._reads.run(lambda: self._search(request, caller), caller)

    def _search(
        self, request: search_pb2.SearchRequest, caller: CancellationToken
    ) -> search_pb2.SearchResponse:
        model = self._read.model(request.model)
        queries, print_ = self._queries(request)
        min_seq = request.min_seq if request.HasField("min_seq") else None
        advice = "ask for fewer hits or queries, or leave include_masks out"
        # The gateway adds the query's vectors to the page token.
        room = ResponseBudget(self._most, "page_size", advice, spare=self._most // 32)
        found = self._engine.search(request.collection, model, queries, min_seq, caller, room)
        answer = search_pb2.SearchResponse(
            results=[
                search_pb2.QueryResult(
                    hits=[hit_to_proto(hit) for hit in page.hits],
                    next_page_token=self._search_token(page, print_),
                )
                for page in found
            ],
            seq=found[0].seq,
            model=model_to_proto(model),
        )
        room.check(answer.ByteSize())
        return answer

    def _search_token(self, page: Page, print_: str) -> str:
        if not page.more or not page.hits:
            return ""
        last = page.hits[-1]
        place = page.after or last.position
        return self._token(
            print_, page.generation, page.seq, last.rank, place.score, place.level, place.image_id,
            place.record_id, pages.pack(page.shown),
        )  # fmt: skip

    def _queries(self, request: search_pb2.SearchRequest) -> tuple[list[Query], str]:
        """The ranked lists that a request asks for, and its fingerprint."""
        read, limits, dimension = self._read, self._read.limits, request.model.dimension
        vectors = read.vectors(request.queries, "queries", dimension)
        if not 1 <= len(vectors) <= limits.max_queries:
            raise invalid("queries.shape", f"1 to {limits.max_queries} query vectors, not {len(vectors)}")
        negatives: Vectors = np.empty((0, dimension), np.float32)
        if request.HasField("negatives") and request.negatives.data:
            negatives = read.vectors(request.negatives, "negatives", dimension)
            if len(negatives) > limits.max_negatives:
                raise too_large(
                    "negatives", f"{len(negatives)} is over the limit of {limits.max_negatives} negatives"
                )
        for mode, known in (("query_mode", search_pb2.QueryMode), ("group_by", search_pb2.GroupBy)):
            if getattr(request, mode) not in known.values():
                raise invalid(mode, f"{getattr(request, mode)} is no {mode} that this searcher knows")
        best = request.query_mode == search_pb2.QUERY_MODE_BEST
        for name in ("min_score", "min_relevancy", "relative_cutoff", "whole_image_margin", "effort"):
            if request.HasField(name) and not np.isfinite(getattr(request, name)):
                raise invalid(name, f"{name} must be a finite number")
        if request.HasField("relative_cutoff") and not 0.0 <= request.relative_cutoff <= 1.0:
            raise invalid("relative_cutoff", "relative_cutoff is between 0 and 1")
        if request.whole_image_margin < 0.0:
            raise invalid("whole_image_margin", "whole_image_margin cannot be negative")
        if request.HasField("effort") and not 0.0 < request.effort <= _MAX_EFFORT:
            raise invalid("effort", f"effort must be above 0 and at most {_MAX_EFFORT}; exact looks at all")
        effort = request.effort if request.HasField("effort") else 1.0
        bare = search_pb2.SearchRequest()
        bare.CopyFrom(request)
        bare.page_token = ""
        bare.ClearField("min_seq")
        print_ = pages.fingerprint(bare.SerializeToString(deterministic=True))
        seq, generation, after, skipped, shown = None, None, None, 0, ""
        if request.page_token:
            if len(vectors) > 1 and not best:
                raise invalid("page_token", "paging needs a single query, or QUERY_MODE_BEST")
            generation, seq, skipped, *place, shown = self._token_values(
                request.page_token, print_, str, int, int, float, int, str, str, str
            )
            after = Position(*place)
        common = Query(
            vectors=vectors,
            negatives=negatives,
            level=read.level(request.level),
            filter=read.filter(request.filter),
            min_score=request.min_score if request.HasField("min_score") else None,
            min_relevancy=request.min_relevancy if request.HasField("min_relevancy") else 0.5,
            relative_cutoff=request.relative_cutoff if request.HasField("relative_cutoff") else None,
            group_by_image=request.group_by == search_pb2.GROUP_BY_IMAGE,
            whole_image_margin=request.whole_image_margin if request.HasField("whole_image_margin") else 0.02,
            limit=read.page_size(request.page_size, _HITS),
            seq=seq,
            generation=generation,
            after=after,
            skipped=skipped,
            shown=pages.unpack(shown),
            effort=np.inf if request.exact else effort,
            include_masks=request.include_masks,
        )
        if best:
            return [common], print_
        return [replace(common, vectors=vectors[i : i + 1]) for i in range(len(vectors))], print_

    async def GetRecords(  # noqa: N802
        self, request: search_pb2.GetRecordsRequest, context: _Context
    ) -> search_pb2.GetRecordsResponse:
        """See the contract."""
        for name in ("record_ids", "image_ids"):
            self._read.at_most(name, len(getattr(request, name)), "max_filter_values")
        return await self._reads.run(lambda: self._get_records(request))

    def _get_records(self, request: search_pb2.GetRecordsRequest) -> search_pb2.GetRecordsResponse:
        field = "image_ids" if request.image_ids else "record_ids"
        room = ResponseBudget(self._most, field, "name fewer, or leave include_masks and include_vectors out")
        found = self._engine.get_records(
            request.collection,
            list(request.record_ids),
            list(request.image_ids),
            masks=request.include_masks,
            vectors=request.include_vectors,
            images_only=request.images_only,
            room=room,
        )
        answer = search_pb2.GetRecordsResponse(
            records=[record_to_proto(record) for record in found.records],
            images=[image_to_proto(image) for image in found.images],
            vectors=None if found.vectors is None else tensor_to_proto(found.vectors),
            seq=found.seq,
        )
        room.check(answer.ByteSize())
        return answer

    async def ListImages(  # noqa: N802
        self, request: search_pb2.ListImagesRequest, context: _Context
    ) -> search_pb2.ListImagesResponse:
        """See the contract."""
        return await self._reads.run(lambda: self._list_images(request))

    def _list_images(self, request: search_pb2.ListImagesRequest) -> search_pb2.ListImagesResponse:
        size = self._read.page_size(request.page_size, _ITEMS)
        print_ = pages.fingerprint(f"images of {request.collection}".encode())
        generation, after = None, None
        if request.page_token:
            generation, place, image_id = self._token_values(request.page_token, print_, str, int, str)
            after = (place, image_id)
        room = ResponseBudget(self._most, "page_size", "ask for fewer images")
        page = self._engine.list_images(request.collection, size, after, room, generation)
        answer = search_pb2.ListImagesResponse(
            images=[image_to_proto(image) for image in page.images],
            next_page_token=self._token(print_, page.generation, *page.next_key) if page.next_key else "",
            total_count=page.total_count,
        )
        room.check(answer.ByteSize())
        return answer

    async def Snapshot(  # noqa: N802
        self, request: search_pb2.SnapshotRequest, context: _Context
    ) -> search_pb2.SnapshotResponse:
        """See the contract."""
        name = request.name or time.strftime("%Y%m%dT%H%M%SZ.sqlite", time.gmtime())
        done = await self._snapshots.run(lambda: self._engine.snapshot(name))
        return search_pb2.SnapshotResponse(name=done.name, size_bytes=done.size_bytes, seq=done.seq)

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

"""The stages of a backfill, without Ray: check → segment → embed → write.

A model stage holds the service's own engine behind the service's own servicer, called without a transport, so
that its answers are those of the service. The write is the gateway's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import structlog

from backfill.job import Job
from backfill.rows import OUTCOMES, Row, from_table, is_systemic, to_table
from gateway.catalog import Catalog
from gateway.image_store import ImageStore
from gateway.image_writer import ImageWriter, NewImage
from gateway.records import (
    ImageFile,
    check_reserved,
    embed_requests,
    embedded_vectors,
    read_file,
    segment_request,
)
from gateway.service_clients import Services, model_mismatch, reading_from_writer, same_model
from gateway.vectors import joined, read_features
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.rpc.calls import deadline, gather_or_cancel
from regionsearch.v1 import region_search_pb2, search_pb2, segment_pb2, types_pb2

_Found: TypeAlias = search_pb2.GetCollectionResponse | search_pb2.CreateCollectionResponse

_FULL = 0.75  # share of a message for regions and vectors; the rest is for names, tags and attributes
# Batches of one image each make vectors independent of the order in which Ray delivers images; they are never
# refused, because a stage gets a bounded number of images at a time.
_BATCHING = {"reproducible": True, "max_queue": sys.maxsize}

_log = structlog.get_logger(__name__)


class Stage(ABC):
    """Processes tables of rows. Construct and call it in one thread, which runs its event loop.

    Args:
        job: The settings.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.collection = job.target
        self.loop = asyncio.new_event_loop()
        self._unusable: RegionSearchError | None = None
        try:
            self.loop.run_until_complete(self.open())
        except RegionSearchError as error:
            self._unusable = error  # Ray passes on the errors of calls, not those of constructors

    def __call__(self, table: pa.Table) -> pa.Table:
        """The rows of a table after this stage.

        Raises:
            RegionSearchError: A systemic one, which may be that of `open`.
        """
        self.check_open()
        rows = from_table(table)
        until = time.monotonic() + self.job.gateway.timeouts.restart_s
        while pending := [row for row in rows if not row.outcome]:
            try:
                self.loop.run_until_complete(self.run(pending))
                break
            except RegionSearchError as error:  # a busy searcher slows the backfill down, and does not end it
                if error.kind is not Kind.OVERLOADED or time.monotonic() > until:
                    raise
                time.sleep(error.retry_after_s or 1.0)
        return to_table(rows)

    def check_open(self) -> None:
        """Raises the error of `open`, if it failed."""
        if self._unusable is not None:
            raise self._unusable

    @abstractmethod
    async def open(self) -> None:
        """Prepares the stage, on its event loop.

        Raises:
            RegionSearchError: The stage cannot work.
        """

    @abstractmethod
    async def run(self, rows: Sequence[Row]) -> None:
        """Processes rows without an outcome.

        Raises:
            RegionSearchError: Systemic ones only.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Ends threads and connections, on the event loop."""

    def close(self) -> None:
        """Ends threads and connections."""
        self.loop.run_until_complete(self.aclose())
        self.loop.close()


class _WriterStage(Stage, ABC):
    """A stage that talks to the searcher and the image store, as the gateway does."""

    async def open(self) -> None:
        settings = self.job.gateway
        self.services = Services(settings)
        store = ImageStore(settings.image_store)
        self.writer = ImageWriter(self.services, Catalog(self.services, store, settings).images, store)

    async def aclose(self) -> None:
        await self.services.close()


class Check(_WriterStage):
    """Reads headers, and finishes images that are stored already: they only get new tags and attributes."""

    async def run(self, rows: Sequence[Row]) -> None:
        """See `Stage.run`."""
        limits = self.job.gateway.limits
        for row in rows:
            with _row(row):
                request = _request(row)
                check_reserved(request.attributes)
                limits.metadata.check(dict.fromkeys(request.tags), request.attributes)
                file = read_file(row.data, limits.image, facts=not self.job.gateway.strip_metadata)
                row.image_id, row.content_type = file.image_id, file.content_type
                row.facts = json.dumps(file.facts)
        left = [row for row in rows if not row.outcome]
        name = self.collection.name
        with deadline(self.job.gateway.timeouts.ingest_s), reading_from_writer():
            found = await self.writer.known(name, list({row.image_id for row in left}))
            known = {image.image_id: image for image in found.images}
            for row in left:
                with _row(row):
                    if row.image_id not in known:
                        continue
                    answer = await self.writer.duplicate(
                        name, known[row.image_id], found.seq, _request(row), _file(row)
                    )
                    if answer is not None:  # otherwise it has been deleted meanwhile, and is added again
                        row.finish(answer)


class Segment(Stage):
    """Finds the regions of images."""

    async def open(self) -> None:
        """Loads the segmenter's model."""
        from services.segmenter.engine import SegmentEngine
        from services.segmenter.service import batching_for, load
        from services.segmenter.servicer import SegmentServicer

        settings = self.job.segmenter
        backend, defaults = load(settings)
        self._engine = SegmentEngine(
            backend,
            batching_for(settings, backend).model_copy(update=_BATCHING),
            cache_bytes=0,
            max_candidate_bytes=settings.max_candidate_bytes,
            on_fatal=_exit,
        )
        self._servicer = SegmentServicer(self._engine, defaults, settings)

    async def run(self, rows: Sequence[Row]) -> None:
        """See `Stage.run`."""
        selection = self.job.gateway.selection.to_proto()

        async def segment(row: Row) -> None:
            with _row(row):
                request = segment_request(_request(row), self.collection, _file(row), selection)
                answer = await self._servicer.Segment(request, _CONTEXT)
                row.segmented = answer.SerializeToString()

        await gather_or_cancel(*(segment(row) for row in rows))

    async def aclose(self) -> None:
        """See `Stage.aclose`."""
        await self._engine.close()


class Embed(Stage):
    """Embeds images and their regions."""

    async def open(self) -> None:
        """Loads the embedder's model.

        Raises:
            RegionSearchError: MODEL_MISMATCH, when the collection is of another model.
        """
        from services.embedder.engine import EmbedEngine
        from services.embedder.service import load
        from services.embedder.servicer import EmbedServicer

        settings = self.job.embedder
        backends = load(settings)
        self._engine = EmbedEngine(
            backends, settings.batching.model_copy(update=_BATCHING), text_cache=0, on_fatal=_exit
        )
        await self._engine.warmup()
        self._servicer = EmbedServicer(self._engine, settings)
        model = self._servicer.model()
        if self.job.collection and not same_model(model, self.collection.model):
            raise model_mismatch(self.collection, model)

    def model(self) -> types_pb2.ModelInfo:
        """The model, with the crop policy of new collections."""
        model = self._servicer.model(self.job.embedder.crop_policy)
        model.crop_policy = self.job.gateway.crop_policy_value or model.crop_policy
        return model

    async def run(self, rows: Sequence[Row]) -> None:
        """See `Stage.run`."""

        async def embed(row: Row) -> None:
            with _row(row):
                segmented = segment_pb2.SegmentResponse.FromString(row.segmented)
                features = read_features(segmented, self.collection)
                requests = embed_requests(
                    _file(row).message,
                    segmented.regions,
                    self.collection,
                    types_pb2.PRIORITY_BULK,
                    self.job.gateway.embed_chunk,
                )
                answers = [await self._servicer.EmbedRegions(request, _CONTEXT) for request in requests]
                embeddings = np.concatenate([*map(embedded_vectors, answers)])
                row.vectors = joined(embeddings, features, self.collection).astype("<f4").tobytes()

        await gather_or_cancel(*(embed(row) for row in rows))

    async def aclose(self) -> None:
        """See `Stage.aclose`."""
        await self._engine.close()


class Write(_WriterStage):
    """Stores files, then writes the records of many images at once. Of its rows, `OUTCOMES` are left."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """The outcomes of a table's rows."""
        return super().__call__(table).select(list(OUTCOMES))

    async def run(self, rows: Sequence[Row]) -> None:
        """See `Stage.run`."""
        room = self.job.gateway.max_message_bytes * _FULL
        group: list[Row] = []
        taken = 0
        for row in rows:
            size = len(row.segmented) + len(row.vectors) + len(row.request)
            if group and taken + size > room:
                await self._write(group)
                group, taken = [], 0
            group.append(row)
            taken += size
        await self._write(group)

    async def _write(self, rows: Sequence[Row]) -> None:
        """Writes rows together; if that is refused, each alone, so that only those at fault fail."""
        try:
            with deadline(self.job.gateway.timeouts.ingest_s), reading_from_writer():
                answers = await self.writer.write(self.collection, [self._new(row) for row in rows])
        except RegionSearchError as error:
            if len(rows) == 1 or is_systemic(error):
                rows[0].fail(error)
            else:
                for row in rows:
                    await self._write([row])
        else:
            for row, answer in zip(rows, answers, strict=True):
                row.finish(answer)

    def _new(self, row: Row) -> NewImage:
        vectors = np.frombuffer(row.vectors, "<f4").reshape(-1, self.collection.model.dimension)
        segmented = segment_pb2.SegmentResponse.FromString(row.segmented)
        return NewImage(_request(row), _file(row), segmented, vectors)


def find_collection(job: Job, name: str) -> Job:
    """The job with its collection, which is created for the job's model if it does not exist.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for an invalid name, UNAVAILABLE.
    """

    async def ask(call: Callable[[Services], Awaitable[_Found]], no: Kind) -> search_pb2.Collection | None:
        services = Services(job.gateway)
        try:
            with deadline(job.gateway.timeouts.ingest_s), reading_from_writer():
                return (await call(services)).collection
        except RegionSearchError as error:
            if error.kind is no:
                return None
            raise
        finally:
            await services.close()

    def get(services: Services) -> Awaitable[_Found]:
        request = search_pb2.GetCollectionRequest(name=name)
        return services.searcher.call(services.search.GetCollection, request)

    def create(services: Services) -> Awaitable[_Found]:
        request = search_pb2.CreateCollectionRequest(name=name, model=model)
        return services.searcher.call(services.search.CreateCollection, request)

    found = asyncio.run(ask(get, Kind.NOT_FOUND))
    if found is None:
        embed = Embed(job)
        embed.check_open()
        model = embed.model()
        embed.close()
        found = asyncio.run(ask(create, Kind.ALREADY_EXISTS)) or asyncio.run(ask(get, Kind.NOT_FOUND))
    if found is None:
        raise RegionSearchError(
            Kind.ABORTED, f"collection {name!r} has just been deleted; run the command again"
        )
    return job.with_collection(found)


class _NoTransport:
    """The context of a servicer's call without gRPC."""

    def time_remaining(self) -> None:
        """There is no deadline."""


_CONTEXT: Any = _NoTransport()


@contextlib.contextmanager
def _row(row: Row) -> Iterator[None]:
    """Ends a row whose processing fails, unless the error is systemic."""
    try:
        yield
    except Exception as error:
        row.fail(error)


def _request(row: Row) -> region_search_pb2.IngestImageRequest:
    return region_search_pb2.IngestImageRequest.FromString(row.request)


def _file(row: Row) -> ImageFile:
    return ImageFile(row.data, row.image_id, row.content_type, json.loads(row.facts))


def _exit(reason: str) -> Any:
    """Ends the process after the loss of its device, as a service does; Ray starts another one."""
    _log.critical("the device is lost", reason=reason)
    os._exit(1)

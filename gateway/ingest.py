"""An image's way in: check → segment → embed → store the bytes → one atomic write → acknowledged.

The write of the records comes last, so that whatever dies on the way leaves nothing that can be seen: at
worst the bytes of an image that is not known yet, which a retry finds in their place. Sending an image
again is safe at any time, because all of its names are made from its content.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from prometheus_client import Counter

from gateway.catalog import Catalog, PendingCollection, available
from gateway.decoder import ImageDecoder
from gateway.image_store import ImageStore
from gateway.image_writer import ImageWriter, NewImage
from gateway.records import (
    IdempotencyKey,
    ImageFile,
    check_reserved,
    embed_requests,
    embedded_vectors,
    read_file,
    segment_request,
)
from gateway.service_clients import Services, model_mismatch, reading_from_writer, same_model
from gateway.settings import GatewaySettings
from gateway.vectors import joined, read_features
from regionsearch.defaults import COLLECTION as DEFAULT
from regionsearch.errors import Kind, RegionSearchError, overloaded
from regionsearch.idempotency import IDEMPOTENCY_KEY
from regionsearch.images import encode_image, image_from_proto
from regionsearch.rpc.calls import caller, deadline, fan_out
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import embed_pb2, region_search_pb2, search_pb2, segment_pb2, types_pb2
from services.runtime.fair import FairSlots, Shares

Progress: TypeAlias = "Callable[[region_search_pb2.IngestStage.ValueType], None]"

_IMAGES = Counter(
    "regionsearch_ingest_images_total",
    "Images that were sent, by what became of them (created, duplicate, failed), and why they failed.",
    ["outcome", "code"],
)
_OUTCOMES = {
    region_search_pb2.INGEST_OUTCOME_CREATED: "created",
    region_search_pb2.INGEST_OUTCOME_DUPLICATE: "duplicate",
}
_RAW_BYTES = 3  # of raw pixels, for each of their own: a copy with a fourth byte a pixel, and the PNG
_SEGMENT_SHARE = 0.7  # of the time left; the rest is for embedding and writing
_EMBED_SHARE = 0.8


def count_failure(error: BaseException) -> None:
    """Notes that an image was not stored; `Ingester.ingest` does so by itself."""
    kind = Kind.CANCELLED if isinstance(error, asyncio.CancelledError) else Kind.INTERNAL
    _IMAGES.labels("failed", (error.kind if isinstance(error, RegionSearchError) else kind).value).inc()


class Ingester:
    """Takes images in, a bounded number at a time."""

    def __init__(
        self,
        services: Services,
        catalog: Catalog,
        store: ImageStore,
        decoder: ImageDecoder,
        settings: GatewaySettings,
    ) -> None:
        self._services = services
        self._catalog = catalog
        self._writer = ImageWriter(services, catalog.images, store)
        self._decoder = decoder
        self._settings = settings
        self._limits = settings.limits
        self._slots = FairSlots(self._limits.max_images_in_work)
        self._admitted = Shares(self._limits.max_images_in_work + self._limits.max_images_waiting)
        self._same: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()

    @contextlib.contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Makes room for images; refuses all of a request at once, rather than some of them later.

        Raises:
            RegionSearchError: OVERLOADED.
        """
        who = caller()
        most = self._limits.max_images_in_work + self._limits.max_images_waiting
        if images > most or not self._admitted.fits(who, images):
            raise overloaded(
                f"{self._admitted.total} images are on their way in (max_images_waiting; one caller gets no "
                "more than it leaves to others); try again later",
                1.0,
            )
        self._admitted.add(who, images)
        try:
            yield
        finally:
            self._admitted.add(who, -images)

    def check(self, request: region_search_pb2.IngestImageRequest) -> None:
        """Refuses tags and attributes that could not be kept, before any work is done for their image.

        Raises:
            RegionSearchError: INVALID_ARGUMENT or TOO_LARGE.
        """
        check_reserved(request.attributes)
        self._limits.metadata.check(dict.fromkeys(request.tags), request.attributes)

    async def ingest(
        self,
        request: region_search_pb2.IngestImageRequest,
        *,
        priority: types_pb2.Priority.ValueType = types_pb2.PRIORITY_INTERACTIVE,
        idempotency_key: IdempotencyKey | None = None,
        progress: Progress = lambda stage: None,
    ) -> region_search_pb2.IngestImageResponse:
        """Takes one image in, for which there is room (`admit`); answers once all of it is on disk.

        Args:
            request: The image and what is said about it.
            priority: Interactive if a caller waits for it, bulk if it is one of many.
            idempotency_key: A repetition under the same key is answered like the first time.
            progress: Told when a stage begins.

        Raises:
            RegionSearchError: Nothing has changed then.
        """
        try:
            answer = await self._one(request, priority, idempotency_key, progress)
        except BaseException as error:
            count_failure(error)
            raise
        _IMAGES.labels(_OUTCOMES[answer.outcome], "OK").inc()
        return answer

    async def _one(
        self,
        request: region_search_pb2.IngestImageRequest,
        priority: types_pb2.Priority.ValueType,
        idempotency_key: IdempotencyKey | None,
        progress: Progress,
    ) -> region_search_pb2.IngestImageResponse:
        progress(region_search_pb2.INGEST_STAGE_RECEIVED)
        self.check(request)
        file = await self._decoder.run(_reading_bytes(request.image), lambda: self._read(request.image))
        # The same image twice at once: the second one waits and finds it known.
        lock = self._same.setdefault((request.collection or DEFAULT, file.image_id), asyncio.Lock())
        async with lock, self._slots.slot():
            with deadline(self._settings.timeouts.ingest_s), reading_from_writer():
                return await self._catalog.with_collection(
                    request.collection,
                    lambda pending: self._ingest(pending, request, file, priority, idempotency_key, progress),
                )

    def _read(self, image: types_pb2.Image) -> ImageFile:
        if image.WhichOneof("source") == "encoded":
            data = image.encoded
        else:
            data = encode_image(image_from_proto(image, self._limits.image))
        return read_file(data, self._limits.image, facts=not self._settings.strip_metadata)

    async def _ingest(
        self,
        pending: PendingCollection,
        request: region_search_pb2.IngestImageRequest,
        file: ImageFile,
        priority: types_pb2.Priority.ValueType,
        key: IdempotencyKey | None,
        progress: Progress,
    ) -> region_search_pb2.IngestImageResponse:
        collection = await pending
        known = await self._writer.known(collection.name, [file.image_id])
        for image in known.images:
            duplicate = await self._writer.duplicate(collection.name, image, known.seq, request, file, key)
            if duplicate is not None:
                return duplicate
        if key is not None:
            await self._check_key(collection, file, key)
        await self._catalog.check_model(collection)

        progress(region_search_pb2.INGEST_STAGE_SEGMENTING)
        segmented = await self._segment(request, collection, file, priority)
        progress(region_search_pb2.INGEST_STAGE_EMBEDDING)
        features = read_features(segmented, collection)
        embeddings = await self.embed(file.message, segmented.regions, collection, priority)
        vectors = joined(embeddings, features, collection)
        progress(region_search_pb2.INGEST_STAGE_STORING)
        new = NewImage(request, file, segmented, vectors, key)
        (answer,) = await self._writer.write(collection, [new])
        progress(region_search_pb2.INGEST_STAGE_DONE)
        return answer

    async def _check_key(
        self, collection: search_pb2.Collection, file: ImageFile, key: IdempotencyKey
    ) -> None:
        """Refuses a key under which another request has made images.

        Raises:
            RegionSearchError: ALREADY_EXISTS.
        """
        anything = np.zeros((1, collection.model.dimension), np.float32)
        anything[0, 0] = 1.0
        services = self._services
        asked = search_pb2.SearchRequest(
            collection=collection.name,
            model=collection.model,
            queries=tensor_to_proto(anything),
            level=search_pb2.LEVEL_IMAGE,
            filter=search_pb2.Filter(attributes={IDEMPOTENCY_KEY: key.key}),
            page_size=1,
        )
        answer = await services.searcher.call(services.search.Search, asked)
        for hit in answer.results[0].hits:
            key.check(hit.image.attributes, file.image_id)

    async def _segment(
        self,
        request: region_search_pb2.IngestImageRequest,
        collection: search_pb2.Collection,
        file: ImageFile,
        priority: types_pb2.Priority.ValueType,
    ) -> segment_pb2.SegmentResponse:
        message = segment_request(request, collection, file, self._settings.selection.to_proto())
        services = self._services
        # One of many waits where the services are busy; somebody who waits for one is told at once.
        retry_overload = priority == types_pb2.PRIORITY_BULK
        return await services.segmenter.call(
            services.segment.Segment,
            message,
            deadline_fraction=_SEGMENT_SHARE,
            retry_overload=retry_overload,
        )

    async def embed(
        self,
        image: types_pb2.Image,
        regions: Sequence[types_pb2.Region | search_pb2.Record],
        collection: search_pb2.Collection,
        priority: types_pb2.Priority.ValueType,
    ) -> np.ndarray:
        """Embeddings of the whole image and of each region, shape (1 + regions, embedding's dimension).

        One call takes all of them unless the regions are more than `embed_chunk`. An image that has been
        segmented is not refused any more: where the embedder is full it waits.

        Raises:
            RegionSearchError: MODEL_MISMATCH, when the embedder's model has changed meanwhile.
        """
        embedder = await self._catalog.embedder_of(available(collection))

        async def embed(request: embed_pb2.EmbedRegionsRequest) -> np.ndarray:
            answer = await embedder.call(
                embedder.stub.EmbedRegions, request, deadline_fraction=_EMBED_SHARE, retry_overload=True
            )
            if not same_model(answer.model, collection.model):
                raise model_mismatch(collection, answer.model)
            return embedded_vectors(answer)

        requests = list(embed_requests(image, regions, collection, priority, self._settings.embed_chunk))
        return np.concatenate(await fan_out(embed, requests))


def _reading_bytes(image: types_pb2.Image) -> int:
    """Memory that a look at an image takes: a copy of the file, or the making of one from raw pixels."""
    return 2 * len(image.encoded) + _RAW_BYTES * len(image.raw.rgb)

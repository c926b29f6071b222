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
from gateway.records import (
    IDEMPOTENCY_KEY,
    IdempotencyKey,
    ImageFile,
    additions,
    check_reserved,
    records,
    stored_image,
)
from gateway.service_clients import Services, model_mismatch, reading_from_writer, same_model
from gateway.settings import GatewaySettings
from gateway.vectors import features_output, joined, read_features
from regionsearch.defaults import COLLECTION as DEFAULT
from regionsearch.errors import Kind, RegionSearchError, overloaded
from regionsearch.images import encode_image, image_from_proto, image_id, probe_image
from regionsearch.rpc.calls import caller, chunked, deadline, fan_out
from regionsearch.tensors import tensor_from_proto, tensor_to_proto
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
        self._store = store
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
        """Looks at the header only; the segmenter is the first one to decode the rest."""
        if image.WhichOneof("source") == "encoded":
            data = image.encoded
        else:
            data = encode_image(image_from_proto(image, self._limits.image))
        header = probe_image(data, self._limits.image, "image.encoded")
        return ImageFile(data, image_id(data), header.content_type)

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
        known = await self._known(collection.name, file.image_id)
        if known is not None:
            duplicate = await self._duplicate(known, request, file, key)
            if duplicate is not None:
                return duplicate
        if key is not None:
            await self._check_key(collection, file, key)
        await self._catalog.check_model(collection)

        image = types_pb2.Image(encoded=file.data)
        progress(region_search_pb2.INGEST_STAGE_SEGMENTING)
        segmented = await self._segment(request, collection, image, priority)
        progress(region_search_pb2.INGEST_STAGE_EMBEDDING)
        features = read_features(segmented, collection)
        embeddings = await self.embed(image, segmented.regions, collection, priority)
        vectors = joined(embeddings, features, collection)
        progress(region_search_pb2.INGEST_STAGE_STORING)
        await self._store.put(collection.name, file.image_id, file.data)

        stored = stored_image(request, file, segmented, key)
        write = search_pb2.UpsertRequest(
            collection=collection.name,
            model=collection.model,
            images=[stored],
            records=records(file.image_id, segmented),
            vectors=tensor_to_proto(vectors),
            skip_existing=True,
        )
        services = self._services
        while True:
            answer = await services.searcher.call(services.search.Upsert, write, retry_overload=True)
            if not answer.skipped_image_ids:
                break
            known = await self._known(collection.name, file.image_id)  # another gateway was faster
            if known is not None:
                duplicate = await self._duplicate(known, request, file, key)
                if duplicate is not None:
                    return duplicate
            # and the image has been deleted since: it is ours to write after all
        # A deletion that ran at the same time removes the record, then the file, then looks whether the
        # record is there again: either it sees the new record, or this sees that the file is gone.
        if not await self._store.exists(collection.name, file.image_id):
            await self._store.put(collection.name, file.image_id, file.data)
        progress(region_search_pb2.INGEST_STAGE_DONE)
        return region_search_pb2.IngestImageResponse(
            outcome=region_search_pb2.INGEST_OUTCOME_CREATED,
            image_id=file.image_id,
            region_count=len(segmented.regions),
            seq=answer.seq,
            tags=stored.tags,
            name=stored.name,
        )

    async def _known(self, collection: str, identity: str) -> search_pb2.GetRecordsResponse | None:
        found = await self._catalog.images.records(collection, image_ids=[identity], images_only=True)
        return found if found.images else None

    async def _duplicate(
        self,
        known: search_pb2.GetRecordsResponse,
        request: region_search_pb2.IngestImageRequest,
        file: ImageFile,
        key: IdempotencyKey | None,
    ) -> region_search_pb2.IngestImageResponse | None:
        """The answer about an image that is known; its file is healed, and what is new about it is added.

        None when it has been deleted meanwhile.
        """
        (image,), seq = known.images, known.seq
        repeated = key is not None and image.attributes.get(IDEMPOTENCY_KEY) == key.key
        if key is not None and repeated:
            key.check(image.attributes, file.image_id)
        collection = request.collection or DEFAULT
        await self._store.heal(collection, file.image_id, file.data)
        update = additions(request, image)
        if update is not None:
            try:
                image, seq = await self._catalog.images.update(collection, update)
            except RegionSearchError as error:
                if error.kind is Kind.NOT_FOUND:
                    return None
                raise
        outcomes = region_search_pb2.IngestOutcome
        return region_search_pb2.IngestImageResponse(
            outcome=outcomes.INGEST_OUTCOME_CREATED if repeated else outcomes.INGEST_OUTCOME_DUPLICATE,
            image_id=file.image_id,
            region_count=image.region_count,
            seq=seq,
            tags=image.tags,
            name=image.name,
        )

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
        image: types_pb2.Image,
        priority: types_pb2.Priority.ValueType,
    ) -> segment_pb2.SegmentResponse:
        everything = (request if request.HasField("everything") else collection).everything
        selection = self._settings.selection.to_proto()
        selection.MergeFrom(everything.selection)
        # Hundreds of prompts: whoever waits for them, a click on another image goes first.
        message = segment_pb2.SegmentRequest(
            image=image,
            everything=everything,
            output=features_output(collection),
            priority=types_pb2.PRIORITY_BULK,
        )
        message.everything.selection.CopyFrom(selection)
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

        async def embed(part: tuple[bool, Sequence[types_pb2.Region | search_pb2.Record]]) -> np.ndarray:
            include_image, chunk = part
            request = embed_pb2.EmbedRegionsRequest(
                image=image,
                regions=[embed_pb2.RegionCut(box=r.box, mask=r.mask) for r in chunk],
                crop_policy=collection.model.crop_policy,
                priority=priority,
                include_image=include_image,
            )
            answer = await embedder.call(
                embedder.stub.EmbedRegions, request, deadline_fraction=_EMBED_SHARE, retry_overload=True
            )
            if not same_model(answer.model, collection.model):
                raise model_mismatch(collection, answer.model)
            vectors = tensor_from_proto(answer.vectors, "vectors", ndim=2)
            if not include_image:
                return vectors
            return np.concatenate([tensor_from_proto(answer.image_vector, "image_vector", ndim=2), vectors])

        chunks = list(chunked(regions, self._settings.embed_chunk)) or [[]]
        return np.concatenate(await fan_out(embed, [(n == 0, chunk) for n, chunk in enumerate(chunks)]))


def _reading_bytes(image: types_pb2.Image) -> int:
    """Memory that a look at an image takes: a copy of the file, or the making of one from raw pixels."""
    return 2 * len(image.encoded) + _RAW_BYTES * len(image.raw.rgb)

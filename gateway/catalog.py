"""Collections, and which models they go with."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeAlias, TypeVar

import structlog

from gateway.image_records import ASKED_AT_ONCE, ImageRecords
from gateway.image_store import ImageStore
from gateway.rights import require_creatable, require_visible, rights
from gateway.service_clients import (
    Embedder,
    Services,
    model_mismatch,
    reading_from_writer,
    same_model,
    without_policy,
)
from gateway.settings import GatewaySettings
from gateway.vectors import embedding_share
from regionsearch.defaults import COLLECTION as DEFAULT
from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.lru import LruCache
from regionsearch.rpc.calls import chunked, gather_or_cancel
from regionsearch.v1 import embed_pb2, search_pb2, segment_pb2, types_pb2

_log = structlog.get_logger(__name__)

_REMEMBERED_S = 1.0
_CUT_OFFS_S = 60.0  # after which the embedder is asked whether it was calibrated anew
_CUT_OFFS_WAIT_S = 1.0  # that a query may wait for it
_MOST_REMEMBERED = 1000
_STALE = (
    Kind.NOT_FOUND,
    Kind.MODEL_MISMATCH,
    Kind.FAILED_PRECONDITION,
)  # answers to somebody who goes by an old collection

Value = TypeVar("Value")
Result = TypeVar("Result")
PendingCollection: TypeAlias = "asyncio.Future[search_pb2.Collection]"
"""A collection that is known, or still being read."""


class Recent(Generic[Value]):
    """Values by name that were read less than a second ago."""

    def __init__(self) -> None:
        self._values: LruCache[str, tuple[float, Value]] = LruCache(_MOST_REMEMBERED)

    def get(self, name: str) -> Value | None:
        """The value, unless it is too old."""
        read_at, value = self._values.get(name) or (float("-inf"), None)
        return value if time.monotonic() - read_at < _REMEMBERED_S else None

    def put(self, name: str, value: Value) -> None:
        """Remembers a value that has just been read."""
        self._values.put(name, (time.monotonic(), value))

    def forget(self, name: str) -> None:
        """The value has changed."""
        self._values.remove(name)


class Catalog:
    """Makes, lists and deletes collections; their images are `images`."""

    def __init__(self, services: Services, store: ImageStore, settings: GatewaySettings) -> None:
        self.images = ImageRecords(services, store, settings)
        self._services = services
        self._store = store
        self._policy = settings.crop_policy_value
        self._max_page_size = settings.limits.max_page_size
        self._collections: Recent[search_pb2.Collection] = Recent()
        self._models: Recent[types_pb2.ModelInfo] = Recent()
        self._served: dict[str, tuple[float, embed_pb2.EmbedServiceGetModelResponse]] = {}

    async def embedder_model(
        self, policy: types_pb2.CropPolicy.ValueType = types_pb2.CROP_POLICY_UNSPECIFIED
    ) -> types_pb2.ModelInfo:
        """The model that makes vectors now, with `policy` or else the one of the settings or the embedder."""
        return await self.model_of(self._services.embedder, policy)

    async def model_of(
        self, embedder: Embedder, policy: types_pb2.CropPolicy.ValueType = types_pb2.CROP_POLICY_UNSPECIFIED
    ) -> types_pb2.ModelInfo:
        """The model of an embedder, with `policy` or else the one of the settings or the embedder."""
        request = embed_pb2.EmbedServiceGetModelRequest()
        answer = await embedder.call(embedder.stub.GetModel, request, retry_overload=True)
        model = answer.model
        model.crop_policy = policy or self._policy or model.crop_policy
        self._models.put(embedder.name, model)
        self._served[embedder.name] = time.monotonic(), answer
        return model

    async def embedder_of(self, pending: PendingCollection) -> Embedder:
        """The embedder with a collection's model; the first one where none has it.

        Goes by what the embedders served a second ago, and does not wait for the collection where there is
        only one of them.
        """
        embedders = self._services.embedders
        if len(embedders) > 1:
            collection = await pending
            for embedder in embedders:
                with contextlib.suppress(RegionSearchError):  # it is away; the other one may be the right one
                    model = self._models.get(embedder.name) or await self.model_of(embedder)
                    if same_model(without_policy(model), collection.model):
                        return embedder
        return embedders[0]

    async def cut_off(self, pending: PendingCollection) -> float | None:
        """The model's, for words and regions under the collection's crop policy; None where it is not known.

        Queries neither fail nor wait for it: while the embedder is away, the last known one stays in use.
        """
        embedder = await self.embedder_of(pending)
        served_at, served = self._served.get(embedder.name, (float("-inf"), None))
        if time.monotonic() - served_at >= _CUT_OFFS_S:
            if served is not None:
                self._served[embedder.name] = time.monotonic(), served  # others do not ask too
            with contextlib.suppress(RegionSearchError, TimeoutError):
                async with asyncio.timeout(_CUT_OFFS_WAIT_S):
                    await self.model_of(embedder)
            _, served = self._served.get(embedder.name, (served_at, None))
        model = (await pending).model
        if served is None or not same_model(without_policy(served.model), model):
            return None
        share = embedding_share(model)
        return next(
            (one.score * share for one in served.cut_offs if one.crop_policy == model.crop_policy), None
        )

    async def check_model(self, collection: search_pb2.Collection) -> None:
        """Refuses a collection whose vectors the embedder does not make; goes by what it served a second ago.

        Raises:
            RegionSearchError: MODEL_MISMATCH.
        """
        policy = collection.model.crop_policy
        embedder = await self.embedder_of(available(collection))
        known = self._models.get(embedder.name)
        if known is not None and same_model(without_policy(known), collection.model):
            return
        model = await self.model_of(embedder, policy)
        if not same_model(model, collection.model):
            raise model_mismatch(collection, model)

    async def create(
        self,
        name: str,
        policy: types_pb2.CropPolicy.ValueType = types_pb2.CROP_POLICY_UNSPECIFIED,
        binary_codes: search_pb2.BinaryCodes | None = None,
        everything: segment_pb2.EverythingOptions | None = None,
        features: types_pb2.SegmentFeatures | None = None,
        *,
        recall_target: float = 0.0,
    ) -> search_pb2.Collection:
        """Makes a collection for the embedder's present model.

        Args:
            name: Its name.
            policy: How regions are cropped; unspecified for the default.
            binary_codes: Its codes; None for none.
            everything: How regions of its images are looked for where an ingest does not say.
            features: Level and weight of the segmenter's features in its vectors; None for embeddings alone.
            recall_target: Least recall of its approximate indexes; 0 for the searcher's setting.

        Raises:
            RegionSearchError: ALREADY_EXISTS, or INVALID_ARGUMENT for a name that cannot be one, or a level
                that the segmenter does not have.
        """
        require_creatable(name)
        services = self._services
        model = await self.embedder_model(policy)
        if features is not None:
            await self.add_features(model, features)
        request = search_pb2.CreateCollectionRequest(
            name=name,
            model=model,
            binary_codes=binary_codes,
            everything=everything,
            recall_target=recall_target,
        )
        return (await services.searcher.call(services.search.CreateCollection, request)).collection

    async def train_codes(self, name: str, binary_codes: search_pb2.BinaryCodes) -> search_pb2.Collection:
        """Learns binary codes from the vectors of a collection, in place of those that it has.

        Raises:
            RegionSearchError: NOT_FOUND, or FAILED_PRECONDITION for one with few records.
        """
        services = self._services
        request = search_pb2.TrainCodesRequest(collection=name or DEFAULT, binary_codes=binary_codes)
        answer = await services.searcher.call(services.search.TrainCodes, request)
        self.forget(request.collection)
        return answer.collection

    async def add_features(self, model: types_pb2.ModelInfo, features: types_pb2.SegmentFeatures) -> None:
        """Adds the present segmenter's features, of a level and a weight, to the model of a new collection.

        Raises:
            RegionSearchError: INVALID_ARGUMENT for a level that the segmenter does not have.
        """
        services = self._services
        request = segment_pb2.SegmentServiceGetModelRequest()
        served = await services.segmenter.call(services.segment.GetModel, request, retry_overload=True)
        channels = served.feature_channels
        if features.level >= len(channels):
            raise invalid(
                "segment_features.level",
                f"segment_features.level is {features.level}; the feature maps of the segmenter's model "
                f"{served.model.variant} are 0 to {len(channels) - 1}",
            )
        for name in ("family", "variant", "weights_digest"):
            setattr(model.features.model, name, getattr(served.model, name))
        model.features.model.dimension = channels[features.level]
        model.features.level, model.features.weight = features.level, features.weight
        model.dimension += channels[features.level]

    async def ensure_default(self) -> search_pb2.Collection:
        """Makes the default collection unless it is there."""
        try:
            return await self.create(DEFAULT)
        except RegionSearchError as error:
            if error.kind is not Kind.ALREADY_EXISTS:
                raise
        collection = await self.get(DEFAULT)
        if not same_model(collection.model, await self.embedder_model()):
            _log.warning("the default collection is of another model", model=collection.model.variant)
        return collection

    async def get(self, name: str) -> search_pb2.Collection:
        """A collection; the default one comes into being when it is asked for.

        Raises:
            RegionSearchError: NOT_FOUND.
        """
        require_visible(name)
        reader = self._services.reader
        request = search_pb2.GetCollectionRequest(name=name or DEFAULT)
        try:
            found = (await reader.call(reader.stub.GetCollection, request)).collection
        except RegionSearchError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            self._collections.forget(request.name)
            if reader is not self._services.searcher:  # it may not have reached that replica yet
                with reading_from_writer():
                    return await self.get(name)
            if request.name != DEFAULT:
                raise
            found = await self.ensure_default()
        self._collections.put(request.name, found)
        return found

    async def with_collection(
        self, name: str, work: Callable[[PendingCollection], Awaitable[Result]]
    ) -> Result:
        """Does work that needs a collection's name and model, not its counts.

        A collection that was read within the last second is not read again. When a service then answers that
        something does not exist or is of another model, and the collection has changed meanwhile, the work
        is done again with the collection as it is now.

        Args:
            name: Name of the collection; empty for the default one.
            work: Must be safe to repeat. Its argument may still be pending, so that work that does not need
                it can begin.

        Raises:
            RegionSearchError: NOT_FOUND, and those of the work.
        """
        require_visible(name)
        known = self._collections.get(name or DEFAULT)
        try:
            if known is not None:
                return await work(available(known))
            reading = asyncio.ensure_future(self.get(name))
            # Where there is no such collection the reading fails first and cancels the work. A part of the
            # work that fails cancels its others, and must not cancel the reading that these await: that the
            # reading was cancelled would be told, before what the work failed of.
            answer: Result
            shielded = asyncio.shield(reading)
            answer, _ = await gather_or_cancel(_awaited(work(shielded)), _awaited(reading))
            return answer
        except RegionSearchError as error:
            if error.kind not in _STALE:
                raise
            for embedder in self._services.embedders:
                self._models.forget(embedder.name)
            if known is None:
                if reading.cancelled() or not reading.done() or reading.exception() is not None:
                    raise
                known = reading.result()  # which may have been given another model since
            present = await self.get(name)
            if (present.model, present.create_time) == (known.model, known.create_time):
                raise
        return await work(available(present))

    def forget(self, name: str) -> None:
        """Drops a collection that has changed from the cache."""
        self._collections.forget(name)

    async def list(self, page_size: int, page_token: str) -> search_pb2.ListCollectionsResponse:
        """Collections by name: those that the caller may see."""
        if (names := rights().collections) is not None:  # few, on one page
            return search_pb2.ListCollectionsResponse(
                collections=[one for name in sorted(names) if (one := await self._find(name)) is not None]
            )
        reader = self._services.reader
        request = search_pb2.ListCollectionsRequest(
            page_size=min(page_size, self._max_page_size), page_token=page_token
        )
        return await reader.call(reader.stub.ListCollections, request)

    async def _find(self, name: str) -> search_pb2.Collection | None:
        """A collection, None where there is no such."""
        try:
            return await self.get(name)
        except RegionSearchError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return None

    async def has_images(self) -> bool:
        """Whether there is any image in any collection."""
        token = ""
        while True:
            page = await self.list(0, token)
            if any(collection.image_count for collection in page.collections):
                return True
            token = page.next_page_token
            if not token:
                return False

    async def delete(self, name: str) -> None:
        """Deletes a collection with its records, then its images. The default one is empty afterwards.

        Images that come to a new collection of the same name meanwhile stay.
        """
        services = self._services
        await self._store.check_writable(name)
        request = search_pb2.DeleteCollectionRequest(name=name)
        await services.searcher.call(services.search.DeleteCollection, request)
        self._collections.forget(name)
        async for partition in self._store.partitions(name):
            for image_ids in chunked([*partition.images, *partition.aside], ASKED_AT_ONCE):
                await self.images.remove_files(name, image_ids)
        await self._store.tidy(name)
        if name == DEFAULT:
            await self.ensure_default()


async def _awaited(one: Awaitable[Result]) -> Result:
    return await one


def available(collection: search_pb2.Collection) -> PendingCollection:
    """A collection that is known, for what can wait for one."""
    future: PendingCollection = asyncio.get_running_loop().create_future()
    future.set_result(collection)
    return future

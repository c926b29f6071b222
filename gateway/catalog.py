"""Collections and the images in them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import structlog
from prometheus_client import Counter

from gateway.image_store import ImageStore
from gateway.model_compat import model_mismatch, same_model, without_policy
from gateway.records import HIDDEN, check_reserved, clean_name, hide_key
from gateway.service_clients import Services, remap_error_field
from gateway.settings import GatewaySettings
from regionsearch.errors import Kind, RegionSearchError, invalid, not_found, too_large
from regionsearch.lru import LruCache
from regionsearch.rpc import chunked, fan_out, gather_or_cancel
from regionsearch.schemas.requests.records import MAX_IDS
from regionsearch.v1 import embed_pb2, search_pb2, types_pb2

DEFAULT = "default"
ASKED_AT_ONCE = 32  # images that the searcher is asked about in one call
_CHECKED_AT_ONCE = 256  # of these, whose records are not wanted

_IMAGE_ID = re.compile("[0-9a-f]{64}")

_FILES_LEFT = Counter(
    "regionsearch_image_files_left_total",
    "Files of deleted images that could not be deleted; the sweep deletes them.",
)
_log = structlog.get_logger(__name__)

_REMEMBERED_S = 1.0
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
    """Makes, lists and deletes collections and images."""

    def __init__(self, services: Services, store: ImageStore, settings: GatewaySettings) -> None:
        self._services = services
        self._store = store
        self._policy = settings.crop_policy_value
        self._max_page_size = settings.limits.max_page_size
        self._metadata = settings.limits.metadata
        self._collections: Recent[search_pb2.Collection] = Recent()
        self._models: Recent[types_pb2.ModelInfo] = Recent()

    async def embedder_model(
        self, policy: types_pb2.CropPolicy.ValueType = types_pb2.CROP_POLICY_UNSPECIFIED
    ) -> types_pb2.ModelInfo:
        """The model that makes vectors now, with `policy` or else the one of the settings or the embedder."""
        services = self._services
        answer = await services.embedder.call(
            services.embed.GetModel, embed_pb2.EmbedServiceGetModelRequest(), retry_overload=True
        )
        model = answer.model
        model.crop_policy = policy or self._policy or model.crop_policy
        self._models.put("embedder", model)
        return model

    async def check_model(self, collection: search_pb2.Collection) -> None:
        """Refuses a collection whose vectors the embedder does not make; goes by what it served a second ago.

        Raises:
            RegionSearchError: MODEL_MISMATCH.
        """
        policy = collection.model.crop_policy
        known = self._models.get("embedder")
        if known is not None and same_model(without_policy(known), collection.model):
            return
        model = await self.embedder_model(policy)
        if not same_model(model, collection.model):
            raise model_mismatch(collection, model)

    async def create(
        self,
        name: str,
        policy: types_pb2.CropPolicy.ValueType = types_pb2.CROP_POLICY_UNSPECIFIED,
        binary_codes: search_pb2.BinaryCodes | None = None,
    ) -> search_pb2.Collection:
        """Makes a collection for the embedder's present model.

        Raises:
            RegionSearchError: ALREADY_EXISTS, or INVALID_ARGUMENT for a name that cannot be one.
        """
        services = self._services
        request = search_pb2.CreateCollectionRequest(
            name=name, model=await self.embedder_model(policy), binary_codes=binary_codes
        )
        return (await services.searcher.call(services.search.CreateCollection, request)).collection

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
        services = self._services
        request = search_pb2.GetCollectionRequest(name=name or DEFAULT)
        try:
            found = (await services.searcher.call(services.search.GetCollection, request)).collection
        except RegionSearchError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            self._collections.forget(request.name)
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
            name: Of the collection; the default one when empty.
            work: Safe to repeat. Its argument may still be on its way, so that what does not need it begins.

        Raises:
            RegionSearchError: NOT_FOUND, and those of the work.
        """
        known = self._collections.get(name or DEFAULT)
        try:
            if known is not None:
                return await work(_available(known))
            reading = asyncio.ensure_future(self.get(name))
            # Where there is no such collection the reading fails first and cancels the work.
            answer: Result
            answer, _ = await gather_or_cancel(_awaited(work(reading)), _awaited(reading))
            return answer
        except RegionSearchError as error:
            if error.kind not in _STALE:
                raise
            self._models.forget("embedder")
            if known is None:
                raise
            present = await self.get(name)
            if (present.model, present.create_time) == (known.model, known.create_time):
                raise
        return await work(_available(present))

    async def list(self, page_size: int, page_token: str) -> search_pb2.ListCollectionsResponse:
        """Collections by name."""
        services = self._services
        request = search_pb2.ListCollectionsRequest(
            page_size=min(page_size, self._max_page_size), page_token=page_token
        )
        return await services.searcher.call(services.search.ListCollections, request)

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
                await self._let_go(name, image_ids)
        await self._store.tidy(name)
        if name == DEFAULT:
            await self.ensure_default()

    async def unknown(self, collection: str, image_ids: Sequence[str]) -> Sequence[str]:
        """Those of the images that have no record; all of them where there is no such collection."""
        try:
            found = await self.records(collection, image_ids=image_ids, images_only=True)
        except RegionSearchError as error:
            if (
                error.kind is Kind.TOO_LARGE and len(image_ids) > 1
            ):  # an older store may hold thousands of tags
                half = len(image_ids) // 2
                one = await self.unknown(collection, image_ids[:half])
                return [*one, *await self.unknown(collection, image_ids[half:])]
            if error.kind is not Kind.NOT_FOUND:
                raise
            return image_ids
        known = {image.image_id for image in found.images}
        return [image_id for image_id in image_ids if image_id not in known]

    async def resolve_quarantined(self, collection: str, image_ids: Sequence[str]) -> Sequence[str]:
        """Decides about images that are aside: those that have a record come back, the others are deleted.

        Returns:
            Those that were deleted. All come back when the searcher does not answer.
        """
        gone: Sequence[str] = ()
        try:
            gone = await self.unknown(collection, image_ids)
        finally:
            decide = dict.fromkeys(image_ids, self._store.restore)
            decide |= dict.fromkeys(gone, self._store.purge)
            await asyncio.gather(*(done(collection, image_id) for image_id, done in decide.items()))
        return gone

    async def _let_go(self, collection: str, image_ids: Sequence[str]) -> None:
        """Deletes images whose records have gone.

        They may be sent again at the same time. So they are moved aside before the searcher is asked: either
        it knows of them by then, or their ingest sees that they are away and stores them anew.
        """
        await asyncio.gather(*(self._store.quarantine(collection, image_id, 0) for image_id in image_ids))
        await self.resolve_quarantined(collection, image_ids)

    async def images(self, collection: str, page_size: int, page_token: str) -> search_pb2.ListImagesResponse:
        """Images, newest first."""
        services = self._services
        request = search_pb2.ListImagesRequest(
            collection=collection or DEFAULT,
            page_size=min(page_size, self._max_page_size),
            page_token=page_token,
        )
        page = await services.searcher.call(services.search.ListImages, request)
        for image in page.images:
            hide_key(image)
        return page

    async def records(
        self,
        collection: str,
        *,
        image_ids: Sequence[str] = (),
        record_ids: Sequence[str] = (),
        masks: bool = False,
        vectors: bool = False,
        images_only: bool = False,
    ) -> search_pb2.GetRecordsResponse:
        """Records and images by id, or only the images; what does not exist is left out."""
        services = self._services
        request = search_pb2.GetRecordsRequest(
            collection=collection or DEFAULT,
            image_ids=image_ids,
            record_ids=record_ids,
            include_masks=masks,
            include_vectors=vectors,
            images_only=images_only,
        )
        return await services.searcher.call(services.search.GetRecords, request)

    async def image(self, collection: str, image_id: str) -> search_pb2.StoredImage:
        """One image.

        Raises:
            RegionSearchError: NOT_FOUND.
        """
        found = await self.records(collection, image_ids=[image_id], images_only=True)
        return _only_image(found, collection, image_id)

    async def stored(self, collection: str, image_ids: Sequence[str]) -> Sequence[search_pb2.StoredImage]:
        """The images that need not be sent: their records and files are there. Files are not read.

        Args:
            collection: Where to look.
            image_ids: At most `MAX_IDS`.

        Returns:
            Those that are there, in the order of their ids.

        Raises:
            RegionSearchError: INVALID_ARGUMENT for what is not an id, TOO_LARGE for too many, NOT_FOUND when
                there is no such collection.
        """
        if not image_ids:
            raise invalid("image_ids", "image_ids is empty: say which images to look for")
        if len(image_ids) > MAX_IDS:
            raise too_large(
                "image_ids", f"{len(image_ids)} image_ids are over the limit of {MAX_IDS}; ask in parts"
            )
        for index, image_id in enumerate(image_ids):
            if not _IMAGE_ID.fullmatch(image_id):
                place = f"image_ids[{index}]"
                raise invalid(place, f"{place} is not a valid image id: expected 64 hexadecimal digits")

        async def ask(ids: Sequence[str]) -> Sequence[search_pb2.StoredImage]:
            return (await self.records(collection, image_ids=ids, images_only=True)).images

        async def has_file(image: search_pb2.StoredImage) -> bool:
            return await self._store.exists(collection or DEFAULT, image.image_id)

        parts = await fan_out(ask, list(chunked(list(dict.fromkeys(image_ids)), _CHECKED_AT_ONCE)))
        images = [image for part in parts for image in part]
        there = await fan_out(has_file, images)
        for image in images:
            hide_key(image)
        return [image for image, found in zip(images, there, strict=True) if found]

    async def regions(
        self, collection: str, image_id: str, *, masks: bool = False, vectors: bool = False
    ) -> search_pb2.GetRecordsResponse:
        """An image and the records of its regions, without that of the whole image.

        Raises:
            RegionSearchError: NOT_FOUND, when there is no such image.
        """
        found = await self.records(collection, image_ids=[image_id], masks=masks, vectors=vectors)
        _only_image(found, collection, image_id)
        if found.records and found.records[0].level == search_pb2.LEVEL_IMAGE:
            if vectors:
                row = found.vectors.shape[1] * 4
                found.vectors.data = found.vectors.data[row:]
                found.vectors.shape[0] -= 1
            del found.records[0]
        return found

    async def region(self, collection: str, image_id: str, region_id: str) -> search_pb2.Record:
        """One region with its mask.

        Raises:
            RegionSearchError: NOT_FOUND.
        """
        found = await self.records(collection, record_ids=[region_id], masks=True)
        for record in found.records:
            if record.image_id == image_id and record.level == search_pb2.LEVEL_REGION:
                return record
        raise not_found("region_id", f"image {image_id!r} has no region {region_id!r}")

    async def content(self, collection: str, image_id: str) -> bytes:
        """The bytes of an image as they were sent.

        Raises:
            RegionSearchError: NOT_FOUND, when there is no such image.
        """
        await self.image(collection, image_id)  # an image whose ingest did not end is not there yet
        return await self._store.get(collection or DEFAULT, image_id)

    async def update_image(
        self, collection: str, update: search_pb2.ImageUpdate
    ) -> tuple[search_pb2.StoredImage, int]:
        """Changes an image's name, tags or attributes; nothing is segmented or embedded again.

        Args:
            collection: Where it is.
            update: The change. Its `as_read` is what `image` answered.

        Returns:
            The image as it is now, and the write's seq.

        Raises:
            RegionSearchError: NOT_FOUND; ABORTED when it is not as it was read; INVALID_ARGUMENT or TOO_LARGE
                for tags and attributes that cannot be kept.
        """
        if not update.image_id:
            raise invalid("update.image_id", "update.image_id is missing: say which image to change")
        check_reserved([*update.set_attributes, *update.remove_attributes])
        self._metadata.check(dict.fromkeys([*update.tags.values, *update.add_tags]), update.set_attributes)
        change = search_pb2.ImageUpdate()
        change.CopyFrom(update)
        if change.HasField("name"):
            change.name = clean_name(change.name)
        if change.HasField("as_read"):
            change.as_read.image_id = change.image_id
            change.as_read.CopyFrom(await self._revealed(collection, change.as_read))
        services = self._services
        request = search_pb2.UpdateImagesRequest(collection=collection or DEFAULT, updates=[change])
        with remap_error_field("updates[0].", ""):
            answer = await services.searcher.call(services.search.UpdateImages, request)
        if not answer.images:
            raise _no_image(collection, update.image_id)
        hide_key(answer.images[0])
        return answer.images[0], answer.seq

    async def _revealed(self, collection: str, as_read: search_pb2.StoredImage) -> search_pb2.StoredImage:
        """What a caller has read of an image, with the hidden attributes that are stored."""
        revealed = search_pb2.StoredImage()
        revealed.CopyFrom(as_read)
        hide_key(revealed)
        stored = await self.records(collection, image_ids=[as_read.image_id], images_only=True)
        for image in stored.images:
            kept = {name: image.attributes[name] for name in HIDDEN if name in image.attributes}
            revealed.attributes.update(kept)
        return revealed

    async def delete_image(
        self, collection: str, image_id: str, as_read: search_pb2.StoredImage | None = None
    ) -> int:
        """Deletes an image with its regions, then its image.

        Args:
            collection: Where it is.
            image_id: Its id.
            as_read: What `image` answered; one that has been changed, or deleted and added again, since then
                is left.

        Returns:
            The write's seq.

        Raises:
            RegionSearchError: NOT_FOUND; ABORTED when it is not as it was read; UNAVAILABLE when the image
                store cannot be written. Nothing is deleted then.
        """
        services, collection = self._services, collection or DEFAULT
        await self._store.check_writable(collection, image_id)
        request = search_pb2.DeleteRequest(collection=collection, image_ids=[image_id])
        if as_read is not None:
            request.as_read.CopyFrom(await self._revealed(collection, as_read))
        answer = await services.searcher.call(services.search.Delete, request)
        if not answer.deleted_image_count:
            raise _no_image(collection, image_id)
        try:
            await self._let_go(collection, [image_id])
        except RegionSearchError as error:
            # The image is gone for everybody, and asking again would be NOT_FOUND: the sweep does the rest.
            _FILES_LEFT.inc()
            _log.error(
                "the file of a deleted image was left",
                collection=collection,
                image=image_id,
                error=error.message,
            )
        return answer.seq


async def _awaited(one: Awaitable[Result]) -> Result:
    return await one


def _available(collection: search_pb2.Collection) -> PendingCollection:
    future: PendingCollection = asyncio.get_running_loop().create_future()
    future.set_result(collection)
    return future


def _only_image(
    found: search_pb2.GetRecordsResponse, collection: str, image_id: str
) -> search_pb2.StoredImage:
    if not found.images:
        raise _no_image(collection, image_id)
    hide_key(found.images[0])
    return found.images[0]


def _no_image(collection: str, image_id: str) -> RegionSearchError:
    return not_found("image_id", f"there is no image {image_id!r} in collection {collection or DEFAULT!r}")

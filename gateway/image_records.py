"""Images and their regions: what the searcher knows of them, and their files."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import structlog
from prometheus_client import Counter

from gateway.image_store import ImageStore
from gateway.records import HIDDEN, check_filter, check_reserved, clean_name, hide_key
from gateway.service_clients import Services, reading_from_writer, remap_error_field
from gateway.settings import GatewaySettings
from regionsearch.defaults import COLLECTION as DEFAULT
from regionsearch.errors import Kind, RegionSearchError, invalid, not_found, too_large
from regionsearch.rpc.calls import chunked, fan_out
from regionsearch.schemas.requests.records import MAX_IDS
from regionsearch.v1 import region_search_pb2, search_pb2

ASKED_AT_ONCE = 32  # images that the searcher is asked about in one call
_CHECKED_AT_ONCE = 256  # of these, whose records are not wanted

_IMAGE_ID = re.compile("[0-9a-f]{64}")

_FILES_LEFT = Counter(
    "regionsearch_image_files_left_total",
    "Files of deleted images that could not be deleted; the sweep deletes them.",
)
_log = structlog.get_logger(__name__)


class ImageRecords:
    """Reads, lists, changes and deletes the images of collections."""

    def __init__(self, services: Services, store: ImageStore, settings: GatewaySettings) -> None:
        self._services = services
        self._store = store
        self._max_page_size = settings.limits.max_page_size
        self._metadata = settings.limits.metadata

    async def get(self, collection: str, image_id: str) -> search_pb2.StoredImage:
        """One image.

        Raises:
            RegionSearchError: NOT_FOUND.
        """
        found = await self.records(collection, image_ids=[image_id], images_only=True)
        return _only_image(found, collection, image_id)

    async def list(
        self,
        collection: str,
        page_size: int,
        page_token: str,
        wanted: search_pb2.Filter | None = None,
        *,
        order_by: str = "",
        ascending: bool = False,
    ) -> search_pb2.ListImagesResponse:
        """Images, newest first or in the order asked for; with a filter those of which a record passes."""
        if wanted is not None:
            check_filter(wanted)
        check_reserved([order_by.removeprefix("attributes.")], "order_by")
        reader = self._services.reader
        request = search_pb2.ListImagesRequest(
            collection=collection or DEFAULT,
            page_size=min(page_size, self._max_page_size),
            page_token=page_token,
            filter=wanted,
            order_by=order_by,
            ascending=ascending,
        )
        page = await reader.call(reader.stub.ListImages, request)
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
        reader = self._services.reader
        request = search_pb2.GetRecordsRequest(
            collection=collection or DEFAULT,
            image_ids=image_ids,
            record_ids=record_ids,
            include_masks=masks,
            include_vectors=vectors,
            images_only=images_only,
        )
        return await reader.call(reader.stub.GetRecords, request)

    async def scroll(
        self, request: region_search_pb2.RegionSearchServiceScrollRequest
    ) -> search_pb2.ScrollResponse:
        """Records by filter, page by page, with their images."""
        check_filter(request.filter)
        services = self._services
        message = search_pb2.ScrollRequest(
            collection=request.collection or DEFAULT,
            level=request.level,
            filter=request.filter if request.HasField("filter") else None,
            page_size=min(request.page_size, self._max_page_size),
            page_token=request.page_token,
            include_masks=request.include_masks,
            min_seq=request.min_seq if request.HasField("min_seq") else None,
        )
        page = await services.reader.call(services.reader.stub.Scroll, message)
        for image in page.images:
            hide_key(image)
        return page

    async def count(
        self, request: region_search_pb2.RegionSearchServiceCountRequest
    ) -> search_pb2.CountResponse:
        """How many records and images pass a filter, in all and by facets."""
        check_filter(request.filter)
        check_reserved((facet.attribute for facet in request.facets), "facets")
        services = self._services
        message = search_pb2.CountRequest(
            collection=request.collection or DEFAULT,
            level=request.level,
            filter=request.filter if request.HasField("filter") else None,
            facets=request.facets,
            min_seq=request.min_seq if request.HasField("min_seq") else None,
        )
        return await services.reader.call(services.reader.stub.Count, message)

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
        await self.get(collection, image_id)  # an image whose ingest did not end is not there yet
        return await self._store.get(collection or DEFAULT, image_id)

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

    async def unknown(self, collection: str, image_ids: Sequence[str]) -> Sequence[str]:
        """Returns the images without a record; all of them if the collection does not exist."""
        try:
            with reading_from_writer():
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

    async def update(
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
        with reading_from_writer():
            stored = await self.records(collection, image_ids=[as_read.image_id], images_only=True)
        for image in stored.images:
            kept = {name: image.attributes[name] for name in HIDDEN if name in image.attributes}
            revealed.attributes.update(kept)
        return revealed

    async def delete(
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
            await self.remove_files(collection, [image_id])
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

    async def remove_files(self, collection: str, image_ids: Sequence[str]) -> None:
        """Deletes images whose records have gone.

        They may be sent again at the same time. So they are quarantined before the searcher is asked: either
        it knows them by then, or their ingest does not find them and stores them again.
        """
        await asyncio.gather(*(self._store.quarantine(collection, image_id, 0) for image_id in image_ids))
        await self.resolve_quarantined(collection, image_ids)

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


def _only_image(
    found: search_pb2.GetRecordsResponse, collection: str, image_id: str
) -> search_pb2.StoredImage:
    if not found.images:
        raise _no_image(collection, image_id)
    hide_key(found.images[0])
    return found.images[0]


def _no_image(collection: str, image_id: str) -> RegionSearchError:
    return not_found("image_id", f"there is no image {image_id!r} in collection {collection or DEFAULT!r}")

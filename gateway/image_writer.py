"""The last part of an image's way in: is it known already, and if not, its file and its records are written.

Shared by the gateway's ingest and the backfill, so that an image is the same whichever way it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.image_records import ImageRecords
from gateway.image_store import ImageStore
from gateway.records import IdempotencyKey, ImageFile, additions, records, stored_image
from gateway.service_clients import Services
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.idempotency import IDEMPOTENCY_KEY
from regionsearch.rpc.calls import fan_out
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import region_search_pb2, search_pb2, segment_pb2

_FILES_AT_ONCE = 8  # written to the image store


@dataclass(frozen=True)
class NewImage:
    """An image that has been segmented and embedded.

    Attributes:
        request: What is said about it.
        file: Its file.
        segmented: Its regions.
        vectors: float32 (1 + regions, dimension): of the whole image, then of the regions.
        key: Name of the request that sent it.
    """

    request: region_search_pb2.IngestImageRequest
    file: ImageFile
    segmented: segment_pb2.SegmentResponse
    vectors: np.ndarray
    key: IdempotencyKey | None = None


class ImageWriter:
    """Writes new images, and completes known ones."""

    def __init__(self, services: Services, images: ImageRecords, store: ImageStore) -> None:
        self._services = services
        self._images = images
        self._store = store

    async def known(self, collection: str, image_ids: Sequence[str]) -> search_pb2.GetRecordsResponse:
        """The images among `image_ids` that the collection has."""
        return await self._images.records(collection, image_ids=image_ids, images_only=True)

    async def duplicate(
        self,
        collection: str,
        image: search_pb2.StoredImage,
        seq: int,
        request: region_search_pb2.IngestImageRequest,
        file: ImageFile,
        key: IdempotencyKey | None = None,
    ) -> region_search_pb2.IngestImageResponse | None:
        """The answer about an image that is known; its file is healed, and what is new about it is added.

        None when it has been deleted meanwhile.

        Raises:
            RegionSearchError: ALREADY_EXISTS where the key belongs to another request.
        """
        repeated = key is not None and image.attributes.get(IDEMPOTENCY_KEY) == key.key
        if key is not None and repeated:
            key.check(image.attributes, file.image_id)
        await self._store.heal(collection, file.image_id, file.data)
        update = additions(request, file, image)
        if update is not None:
            try:
                image, seq = await self._images.update(collection, update)
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

    async def write(
        self, collection: search_pb2.Collection, images: Sequence[NewImage]
    ) -> list[region_search_pb2.IngestImageResponse]:
        """Stores the files, then writes all records at once; one answer for each image.

        The records come last: whatever dies on the way leaves nothing that can be seen. An image that another
        writer was faster with is a duplicate, as is one that is among `images` twice.

        Raises:
            RegionSearchError: Sending the images again is safe; a single one has not been written.
                ALREADY_EXISTS where a key belongs to another request, which was faster.
        """
        name = collection.name

        async def put(image: NewImage) -> None:
            await self._store.put(name, image.file.image_id, image.file.data)

        async def put_again(image: NewImage) -> None:
            # A deletion that ran at the same time removes the record, then the file, then looks whether the
            # record is there again: either it sees the new record, or this sees that the file is gone.
            if not await self._store.exists(name, image.file.image_id):
                await put(image)

        await fan_out(put, images, _FILES_AT_ONCE)
        answers: list[region_search_pb2.IngestImageResponse | None] = [None] * len(images)
        while left := [place for place, answer in enumerate(answers) if answer is None]:
            first = {images[place].file.image_id: place for place in reversed(left)}
            fresh = list(first.values())
            try:
                answer = await self._upsert(collection, [images[place] for place in fresh])
            except RegionSearchError as error:
                if error.kind is Kind.ALREADY_EXISTS:
                    await self._images.remove_files(name, list(first))
                raise
            skipped = set(answer.skipped_image_ids)
            written = [place for place in fresh if images[place].file.image_id not in skipped]
            await fan_out(put_again, [images[place] for place in written], _FILES_AT_ONCE)
            for place in written:
                answers[place] = _created(images[place], answer.seq)
            others = [place for place in left if place not in written]
            if not others:
                break
            # Another writer was faster, or the image is there twice. Where it has been deleted since, it is
            # ours to write after all.
            found = await self.known(name, list({images[place].file.image_id for place in others}))
            known = {image.image_id: image for image in found.images}
            for place in others:
                new = images[place]
                if new.file.image_id in known:
                    stored = known[new.file.image_id]
                    answers[place] = await self.duplicate(
                        name, stored, found.seq, new.request, new.file, new.key
                    )
        return [answer for answer in answers if answer is not None]

    async def _upsert(
        self, collection: search_pb2.Collection, images: Sequence[NewImage]
    ) -> search_pb2.UpsertResponse:
        write = search_pb2.UpsertRequest(
            collection=collection.name,
            model=collection.model,
            images=[stored_image(new.request, new.file, new.segmented, new.key) for new in images],
            records=[one for new in images for one in records(new.file.image_id, new.segmented)],
            vectors=tensor_to_proto(np.concatenate([new.vectors for new in images])),
            skip_existing=True,
            check_idempotency_key=any(new.key is not None for new in images),
        )
        services = self._services
        return await services.searcher.call(services.search.Upsert, write, retry_overload=True)


def _created(new: NewImage, seq: int) -> region_search_pb2.IngestImageResponse:
    stored = stored_image(new.request, new.file, new.segmented, new.key)
    return region_search_pb2.IngestImageResponse(
        outcome=region_search_pb2.INGEST_OUTCOME_CREATED,
        image_id=new.file.image_id,
        region_count=len(new.segmented.regions),
        seq=seq,
        tags=stored.tags,
        name=stored.name,
    )

"""Stored images and their regions: facts, files, images of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response

from gateway import coco, render
from gateway.core import Gateway
from gateway.http.access import needs
from gateway.http.body_parser import read_body
from gateway.http.conditional import CHANGED, changed, check_if_match, etag_of, image_response, json_with_etag
from gateway.http.openapi import COCO, COCO_CONTENT, IMAGE, body_of
from gateway.rights import Scope
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images.metadata import LOSSLESS, without_metadata
from regionsearch.schemas.requests.records import ImageChangeBody, ImageIdsBody
from regionsearch.schemas.requests.scrolls import ImagesPage
from regionsearch.schemas.responses.records import Image, ImagePage, StoredImages, UpdatedImage
from regionsearch.schemas.responses.regions import Region, Regions
from regionsearch.v1 import search_pb2

_MASK_BYTES = 5  # of one pixel, on the way from run lengths to a PNG


Width = Annotated[int, Query(ge=16, le=2048, description="Pixels of the longer side.")]
IfMatch = Annotated[
    str | None, Header(description="ETag of the image as it was read; 412 when it has changed since.")
]


@contextlib.contextmanager
def _precondition() -> Iterator[None]:
    """Answers 412 where somebody else changes the image between `If-Match` and the change."""
    try:
        yield
    except RegionSearchError as error:
        if error.kind is Kind.ABORTED:
            raise changed() from None
        raise


def _image_answer(*types: str) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"content": dict.fromkeys(types, IMAGE)},
        304: {"description": "Not modified"},
    }


def _region_etag(record: search_pb2.Record, kind: str) -> str:
    """Of an image of a region: an image that is added again may have other regions under the same ids."""
    digest = hashlib.sha256(record.SerializeToString(deterministic=True)).hexdigest()
    return f"{digest[:32]}-{kind}"


def router(gateway: Gateway) -> APIRouter:
    """The routes of stored images."""
    routes = APIRouter(prefix="/v1/collections/{collection}/images", tags=["images"])
    images = gateway.catalog.images
    read, write = [needs(gateway, Scope.SEARCH)], [needs(gateway, Scope.WRITE)]

    async def matching(
        collection: str, image_id: str, request: Request, if_match: str | None
    ) -> search_pb2.StoredImage | None:
        """The image as it is now, if the request wants it to be in a certain state, which it then is."""
        if if_match is None or if_match.strip() == "*":
            return None
        image = await images.get(collection, image_id)
        check_if_match(request, Image.from_proto(image).model_dump())
        return image

    @routes.get("", summary="List images", response_model=ImagePage, dependencies=read)
    async def list_images(
        collection: str, request: Request, page: Annotated[ImagesPage, Query()]
    ) -> Response:
        """Newest first, or in the order that `order_by` and `ascending` ask for."""
        asked = page.to_proto(collection)
        wanted = asked.filter if asked.HasField("filter") else None
        found = await images.list(
            collection,
            asked.page_size,
            asked.page_token,
            wanted,
            order_by=asked.order_by,
            ascending=asked.ascending,
        )
        return json_with_etag(request, ImagePage.from_proto(found).model_dump())

    @routes.post(
        ":check",
        summary="Which images need not be sent",
        response_model=StoredImages,
        dependencies=read,
        openapi_extra=body_of(ImageIdsBody, {"image_ids": ["0" * 64]}),
    )
    async def check_images(collection: str, request: Request) -> StoredImages:
        """Which of these images are stored already: an image's id is the SHA-256 of its file.

        Files are not read: to repair one that may be damaged, send it.
        """
        body = await read_body(request, ImageIdsBody, gateway.settings.limits)
        return StoredImages.from_proto(await images.stored(collection, body.image_ids))

    @routes.get("/{image_id}", summary="An image", response_model=Image, dependencies=read)
    async def get_image(collection: str, image_id: str, request: Request) -> Response:
        """What is known about it. Its `ETag` goes into the `If-Match` of a change or a deletion."""
        image = await images.get(collection, image_id)
        return json_with_etag(request, Image.from_proto(image).model_dump())

    @routes.patch(
        "/{image_id}",
        summary="Change an image's name, tags or attributes",
        response_model=UpdatedImage,
        responses=CHANGED,
        dependencies=write,
        openapi_extra=body_of(ImageChangeBody, {"add_tags": ["holiday"], "attributes": {"place": "Oslo"}}),
    )
    async def change_image(
        collection: str, image_id: str, request: Request, if_match: IfMatch = None
    ) -> Response:
        """As a JSON merge patch: what the body does not name stays. Searches see the change at once.

        Nothing is segmented or embedded again; regions and vectors stay as they are.
        """
        body = await read_body(request, ImageChangeBody, gateway.settings.limits)
        update = body.to_proto(image_id)
        with _precondition():
            as_read = await matching(collection, image_id, request, if_match)
            if as_read is not None:
                update.as_read.CopyFrom(as_read)
            image, seq = await images.update(collection, update)
        facts = Image.from_proto(image).model_dump()
        return JSONResponse(facts | {"seq": seq}, headers={"ETag": etag_of(facts)})

    @routes.delete(
        "/{image_id}",
        summary="Delete an image",
        status_code=204,
        response_class=Response,
        responses=CHANGED,
        dependencies=[needs(gateway, Scope.DELETE)],
    )
    async def delete_image(
        collection: str, image_id: str, request: Request, if_match: IfMatch = None
    ) -> Response:
        """With its regions and its file."""
        with _precondition():
            as_read = await matching(collection, image_id, request, if_match)
            await images.delete(collection, image_id, as_read)
        return Response(status_code=204)

    @routes.get(
        "/{image_id}/content",
        summary="An image's file",
        response_class=Response,
        responses=_image_answer("image/*"),
        dependencies=read,
    )
    async def get_content(
        collection: str,
        image_id: str,
        request: Request,
        form: Annotated[
            Literal["webp"] | None,
            Query(alias="format", description="An upright WebP, its longer side within 4096 pixels."),
        ] = None,
    ) -> Response:
        """The bytes as they were sent, or without their metadata where the operator wants it so.

        With `format=webp` a rendering that every browser shows, of HEIC and TIFF too.
        """
        image = await images.get(collection, image_id)
        strip = gateway.settings.strip_metadata
        rendered = form == "webp" or (strip and image.content_type not in LOSSLESS)

        async def make() -> bytes:
            data = await gateway.store.get(collection, image_id)
            if rendered:
                return await gateway.decoder.decoded(data, render.full, render.full_bytes)
            if strip:
                return await gateway.decoder.run(2 * len(data), lambda: without_metadata(data))
            return data

        if rendered:
            return await image_response(request, f"{image_id}-full", "image/webp", make, immutable=True)
        etag = f"{image_id}-stripped" if strip else image_id
        return await image_response(request, etag, image.content_type, make, immutable=True)

    @routes.get(
        "/{image_id}/thumbnail",
        summary="A small image",
        response_class=Response,
        responses=_image_answer("image/webp"),
        dependencies=read,
    )
    async def get_thumbnail(collection: str, image_id: str, request: Request, width: Width = 320) -> Response:
        """Upright; its longer side is `width` pixels, unless the image is smaller."""
        await images.get(collection, image_id)

        async def make() -> bytes:
            return await gateway.thumbnails.get(collection, image_id, width)

        return await image_response(request, f"{image_id}-{width}", "image/webp", make, immutable=True)

    @routes.get(
        "/{image_id}/regions",
        summary="An image's regions",
        response_model=Regions,
        responses={200: {"content": COCO_CONTENT}},
        dependencies=read,
    )
    async def get_regions(
        collection: str,
        image_id: str,
        request: Request,
        include: Annotated[list[Literal["mask"]] | None, Query(description="mask adds the masks.")] = None,
        region_id: Annotated[str | None, Query(max_length=160, description="Only this one.")] = None,
        form: Annotated[
            Literal["json", "coco"],
            Query(alias="format", description="coco: with masks, as COCO annotations."),
        ] = "json",
    ) -> Response:
        """Best first. `format=coco` gives a COCO document with masks."""
        with_masks = form == "coco" or "mask" in (include or [])
        found = await images.regions(collection, image_id, masks=with_masks)
        records = [one for one in found.records if region_id is None or one.record_id == region_id]
        if form == "coco":
            return json_with_etag(request, coco.export_regions(found.images[0], records), COCO)
        answer = Regions(
            image=Image.from_proto(found.images[0]), regions=tuple(map(Region.from_proto, records))
        )
        return json_with_etag(request, answer.model_dump(exclude_none=True))

    @routes.get(
        "/{image_id}/regions/{region_id}/mask.png",
        summary="A region's mask",
        response_class=Response,
        responses=_image_answer("image/png"),
        dependencies=read,
    )
    async def get_mask(collection: str, image_id: str, region_id: str, request: Request) -> Response:
        """White on black, as large as the image."""
        record = await images.region(collection, image_id, region_id)

        async def make() -> bytes:
            area = record.mask.height * record.mask.width
            return await gateway.decoder.run(
                _MASK_BYTES * area, lambda: render.encode(render.mask_image(record.mask), "png")
            )

        return await image_response(request, _region_etag(record, "mask"), "image/png", make, immutable=False)

    @routes.get(
        "/{image_id}/regions/{region_id}/crop.png",
        summary="A region cut out",
        response_class=Response,
        responses=_image_answer("image/png"),
        dependencies=read,
    )
    async def get_crop(collection: str, image_id: str, region_id: str, request: Request) -> Response:
        """The region's box, transparent outside of its mask."""
        record = await images.region(collection, image_id, region_id)

        async def make() -> bytes:
            data = await gateway.store.get(collection, image_id)
            return await gateway.decoder.decoded(
                data,
                lambda image: render.encode(render.cut_out(image.decode(), record.mask, record.box), "png"),
            )

        etag, name = _region_etag(record, "crop"), f"{region_id}.png"
        return await image_response(request, etag, "image/png", make, immutable=False, name=name)

    return routes

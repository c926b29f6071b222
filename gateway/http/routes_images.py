"""Stored images and their regions: facts, files, pictures of them."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from gateway import coco, render
from gateway.access import Scope
from gateway.core import Gateway
from gateway.http.access import needs
from gateway.http.answers import Image, Images, Region, Regions
from gateway.http.conditional import CHANGED, changed, check_if_match, json_with_etag, picture
from gateway.http.hits import CocoDocument
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images import decode_image
from regionsearch.v1 import search_pb2

PageSize = Annotated[int, Query(ge=0, le=2**31 - 1, description="0 means 100; at most 1000.")]
Format = Literal["png", "webp"]


def _image_answer(*types: str) -> dict[int | str, dict[str, Any]]:
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {
        200: {"content": dict.fromkeys(types, schema)},
        304: {"description": "Not modified"},
    }


def _region_etag(record: search_pb2.Record, kind: str) -> str:
    """Of a picture of a region: a picture that is added again may have other regions under the same ids."""
    digest = hashlib.sha256(record.SerializeToString(deterministic=True)).hexdigest()
    return f"{digest[:32]}-{kind}"


def router(gateway: Gateway) -> APIRouter:
    """The routes of stored images."""
    routes = APIRouter(prefix="/v1/collections/{collection}/images", tags=["images"])
    catalog = gateway.catalog
    read = [needs(gateway, Scope.READ)]

    @routes.get("", summary="List images", response_model=Images, dependencies=read)
    async def list_images(
        collection: str, request: Request, page_size: PageSize = 0, page_token: str = ""
    ) -> Response:
        """Newest first."""
        page = await catalog.images(collection, page_size, page_token)
        answer = Images(
            images=[Image.of(image) for image in page.images],
            next_page_token=page.next_page_token,
            total_count=page.total_count,
        )
        return json_with_etag(request, answer.model_dump())

    @routes.get("/{image_id}", summary="An image", response_model=Image, dependencies=read)
    async def get_image(collection: str, image_id: str, request: Request) -> Response:
        """What is known about it. Its `ETag` goes into the `If-Match` of a deletion."""
        image = await catalog.image(collection, image_id)
        return json_with_etag(request, Image.of(image).model_dump())

    @routes.delete(
        "/{image_id}",
        summary="Delete an image",
        status_code=204,
        response_class=Response,
        responses=CHANGED,
        dependencies=[needs(gateway, Scope.WRITE)],
    )
    async def delete_image(
        collection: str,
        image_id: str,
        request: Request,
        if_match: Annotated[
            str | None, Header(description="ETag of the image as it was read; 412 when it has changed since.")
        ] = None,
    ) -> Response:
        """With its regions and its file."""
        as_read = None
        if if_match is not None and if_match.strip() != "*":
            as_read = await catalog.image(collection, image_id)
            check_if_match(request, Image.of(as_read).model_dump())
        try:
            await catalog.delete_image(collection, image_id, as_read)
        except RegionSearchError as error:
            if error.kind is Kind.ABORTED:
                raise changed() from None
            raise
        return Response(status_code=204)

    @routes.get(
        "/{image_id}/content",
        summary="An image's file",
        response_class=Response,
        responses=_image_answer("image/*"),
        dependencies=read,
    )
    async def get_content(collection: str, image_id: str, request: Request) -> Response:
        """The bytes as they were sent."""
        image = await catalog.image(collection, image_id)

        async def make() -> bytes:
            return await gateway.store.get(collection, image_id)

        return await picture(request, image_id, image.content_type, make, immutable=True)

    @routes.get(
        "/{image_id}/thumbnail",
        summary="A small picture",
        response_class=Response,
        responses=_image_answer("image/webp"),
        dependencies=read,
    )
    async def get_thumbnail(
        collection: str, image_id: str, request: Request, width: Annotated[int, Query(ge=16, le=2048)] = 320
    ) -> Response:
        """Upright; its longer side is `width` pixels, unless the picture is smaller."""
        await catalog.image(collection, image_id)

        async def make() -> bytes:
            return await gateway.thumbnails.get(collection, image_id, width)

        return await picture(request, f"{image_id}-{width}", "image/webp", make, immutable=True)

    @routes.get(
        "/{image_id}/regions",
        summary="An image's regions",
        response_model=Regions | CocoDocument,
        dependencies=read,
    )
    async def get_regions(
        collection: str,
        image_id: str,
        request: Request,
        include: Annotated[list[Literal["mask"]] | None, Query(description="mask adds the masks.")] = None,
        form: Annotated[Literal["json", "coco"], Query(alias="format")] = "json",
    ) -> Response:
        """Best first. `format=coco` gives a COCO document with masks."""
        with_masks = form == "coco" or "mask" in (include or [])
        found = await catalog.regions(collection, image_id, masks=with_masks)
        if form == "coco":
            return json_with_etag(request, coco.export_regions(found.images[0], found.records))
        answer = Regions(
            image=Image.of(found.images[0]), regions=[Region.of(record) for record in found.records]
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
        record = await catalog.region(collection, image_id, region_id)

        async def make() -> bytes:
            return await asyncio.to_thread(lambda: render.encode(render.mask_image(record.mask), "png"))

        return await picture(request, _region_etag(record, "mask"), "image/png", make, immutable=False)

    @routes.get(
        "/{image_id}/regions/{region_id}/crop.png",
        summary="A region cut out",
        response_class=Response,
        responses=_image_answer("image/png"),
        dependencies=read,
    )
    async def get_crop(collection: str, image_id: str, region_id: str, request: Request) -> Response:
        """The region's box, transparent outside of its mask."""
        record = await catalog.region(collection, image_id, region_id)

        async def make() -> bytes:
            data = await gateway.store.get(collection, image_id)

            def cut() -> bytes:
                pixels = decode_image(data, gateway.settings.limits.image)
                return render.encode(render.cut_out(pixels, record.mask, record.box), "png")

            return await asyncio.to_thread(cut)

        etag, name = _region_etag(record, "crop"), f"{region_id}.png"
        return await picture(request, etag, "image/png", make, immutable=False, name=name)

    return routes

"""Images: adding, listing, looking at, changing and deleting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from regionsearch import defaults
from regionsearch.client.image_inputs import ImageInput, name_of, read_image_input
from regionsearch.client.operations.base import (
    GrpcCall,
    HttpRequest,
    Operation,
    answer,
    document,
    given,
    nothing,
    path_of,
)
from regionsearch.client.transports import error_of
from regionsearch.schemas.requests.inference import EverythingOptions
from regionsearch.schemas.requests.records import ImageChangeBody, ImageIdsBody, IngestBody
from regionsearch.schemas.requests.scrolls import ImagesPage
from regionsearch.schemas.requests.searches import Include
from regionsearch.schemas.responses.records import Image, ImagePage, IngestResult, StoredImages, UpdatedImage
from regionsearch.schemas.responses.regions import Region, Regions
from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1.region_search_pb2_grpc import RegionSearchServiceStub


def ingest_one(
    source: ImageInput,
    collection: str = defaults.COLLECTION,
    *,
    tags: Sequence[str] = (),
    attributes: Mapping[str, str] | None = None,
    everything: EverythingOptions | None = None,
) -> Operation[IngestResult]:
    """Adds one image; the same bytes again are a `duplicate`, which gets the tags and attributes too.

    Args:
        source: The image.
        collection: Where to.
        tags: Put on it.
        attributes: Further facts about it.
        everything: How its regions are looked for; None: as it suits the model.

    Raises:
        RegionSearchError: UNSUPPORTED_IMAGE or TOO_LARGE for what is refused, INVALID_ARGUMENT for a file
            that cannot be read.
    """
    name = name_of(source)
    about = IngestBody.read({"tags": tags, "attributes": attributes or {}, "everything": everything})

    def request() -> HttpRequest:
        file = (name, read_image_input(source))
        path = path_of(collection, "images")
        return HttpRequest("POST", path, files=[("files", file)], form=about.to_form())

    def read(response: httpx.Response) -> IngestResult:
        (result,) = response.json()["results"]
        if result.get("error"):
            raise error_of(result["error"])
        return IngestResult.model_validate(result)

    def message() -> pb.IngestImageRequest:
        request = about.to_proto(collection)
        request.name = name
        request.image.encoded = read_image_input(source)
        return request

    return Operation(
        "ingest",
        request,
        read,
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).IngestImage,
            message,
            lambda answer: IngestResult.from_proto(name, answer),
        ),
    )


def check_images(
    image_ids: Sequence[str], collection: str = defaults.COLLECTION
) -> Operation[tuple[Image, ...]]:
    """The images among these that are stored already, so that their files need not be sent.

    Args:
        image_ids: SHA-256 of files, as hexadecimal digits; at most 1,000.
        collection: Where to look.
    """
    body = ImageIdsBody.read({"image_ids": image_ids})
    return Operation(
        "check_images",
        lambda: HttpRequest("POST", f"{path_of(collection, 'images')}:check", body=body),
        lambda response: StoredImages.model_validate(response.json()).images,
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).CheckImages,
            lambda: body.to_proto(collection),
            lambda answer: StoredImages.from_proto(answer.images).images,
        ),
    )


def update_image(
    image_id: str,
    collection: str = defaults.COLLECTION,
    *,
    name: str | None = None,
    tags: Sequence[str] | None = None,
    add_tags: Sequence[str] = (),
    remove_tags: Sequence[str] = (),
    attributes: Mapping[str, str | None] | None = None,
) -> Operation[UpdatedImage]:
    """Changes what is said about an image; its regions and vectors stay. What is not given stays as it is.

    Args:
        image_id: The image.
        collection: Where it is.
        name: Its new name; empty for none.
        tags: All of its tags from now on.
        add_tags: Further tags.
        remove_tags: Tags that it loses.
        attributes: Values to set; None takes an attribute away.

    Raises:
        RegionSearchError: NOT_FOUND when there is no such image, TOO_LARGE for more than an image may have.
    """
    changed = {"add_tags": add_tags, "remove_tags": remove_tags, "attributes": attributes or {}}
    body = ImageChangeBody.read(changed | given(name=name, tags=tags))
    path = path_of(collection, "images", image_id)
    return Operation(
        "update_image",
        lambda: HttpRequest("PATCH", path, body=body),
        answer(UpdatedImage),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).UpdateImage,
            lambda: pb.UpdateImageRequest(collection=collection, update=body.to_proto(image_id)),
            lambda answer: UpdatedImage.from_update(answer.image, answer.seq),
        ),
    )


def list_images(
    collection: str = defaults.COLLECTION,
    *,
    filter: Mapping[str, Any] | None = None,
    order_by: str | None = None,
    ascending: bool | None = None,
    page_size: int | None = None,
    page_token: str = "",
) -> Operation[ImagePage]:
    """One page of a collection's images, newest first; 100 of them when `page_size` is absent.

    With a filter, as of `search`, those of which a region, or the whole, passes. `order_by` is "created_at"
    (when they were added), "name" or an attribute such as "attributes.taken_at"; the highest value comes
    first unless `ascending`, and images without one come last.
    """
    page = ImagesPage.read(
        given(
            page_size=page_size, page_token=page_token, filter=filter, order_by=order_by, ascending=ascending
        )
    )
    return Operation(
        "list_images",
        lambda: HttpRequest("GET", path_of(collection, "images"), params=page.model_dump(exclude_none=True)),
        answer(ImagePage),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).ListImages,
            lambda: page.to_proto(collection),
            ImagePage.from_proto,
        ),
    )


def image(image_id: str, collection: str = defaults.COLLECTION) -> Operation[Image]:
    """What is known of an image.

    Raises:
        RegionSearchError: NOT_FOUND when there is no such image.
    """
    path = path_of(collection, "images", image_id)
    return Operation(
        "image",
        lambda: HttpRequest("GET", path),
        lambda response: Image.model_validate(response.json()),
    )


def thumbnail(image_id: str, collection: str = defaults.COLLECTION, *, width: int = 320) -> Operation[bytes]:
    """The image as WebP, upright; its longer side is `width` pixels (16 to 2048), unless it is smaller."""
    return _file("thumbnail", collection, image_id, "thumbnail", width=width)


def crop(region_id: str, collection: str = defaults.COLLECTION) -> Operation[bytes]:
    """A region cut out of its image as PNG, transparent outside of its mask."""
    image_id = region_id.rpartition("-")[0]
    return _file("crop", collection, image_id, "regions", region_id, "crop.png")


def mask_png(region_id: str, collection: str = defaults.COLLECTION) -> Operation[bytes]:
    """A region's mask as PNG, white on black, as large as its image."""
    image_id = region_id.rpartition("-")[0]
    return _file("mask_png", collection, image_id, "regions", region_id, "mask.png")


def content(image_id: str, collection: str = defaults.COLLECTION) -> Operation[bytes]:
    """The file of an image, as it was sent."""
    return _file("content", collection, image_id, "content")


def regions(
    image_id: str, collection: str = defaults.COLLECTION, *, include: Sequence[Include] = ()
) -> Operation[tuple[Region, ...]]:
    """The regions of an image, best first; with `include=["mask"]` their masks too."""
    params = {"include": list(include)}
    return Operation(
        "regions",
        lambda: HttpRequest("GET", path_of(collection, "images", image_id, "regions"), params=params),
        lambda response: Regions.model_validate(response.json()).regions,
    )


def export_regions(image_id: str, collection: str = defaults.COLLECTION) -> Operation[dict[str, Any]]:
    """All regions of an image as a COCO document with masks."""
    path = path_of(collection, "images", image_id, "regions")
    return Operation("export_regions", lambda: HttpRequest("GET", path, params={"format": "coco"}), document)


def delete_image(image_id: str, collection: str = defaults.COLLECTION) -> Operation[None]:
    """Deletes an image with its regions."""
    return Operation(
        "delete_image",
        lambda: HttpRequest("DELETE", path_of(collection, "images", image_id)),
        nothing,
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).DeleteImage,
            lambda: pb.DeleteImageRequest(collection=collection, image_id=image_id),
            nothing,
        ),
    )


def _file(name: str, collection: str, *place: str, **params: Any) -> Operation[bytes]:
    path = path_of(collection, "images", *place)
    return Operation(
        name,
        lambda: HttpRequest("GET", path, params=params),
        lambda response: response.content,
    )

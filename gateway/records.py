"""What the searcher is told about a picture: names made from its content, and nothing else to look up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from regionsearch.errors import invalid
from regionsearch.v1 import region_search_pb2, search_pb2, segment_pb2, types_pb2

IDEMPOTENCY_KEY = "_idempotency_key"
"""Attribute that keeps the key of the request that made an image; callers do not see it."""

_MAX_NAME = 255


@dataclass(frozen=True)
class Picture:
    """A picture's file.

    Attributes:
        data: Its bytes.
        identity: Their SHA-256.
        content_type: By its header.
    """

    data: bytes
    identity: str
    content_type: str


def checked_key(key: str | None) -> str | None:
    """An idempotency key as it may be kept with an image.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for one that is too long or cannot be printed.
    """
    if key is not None and not (0 < len(key) <= _MAX_NAME and key.isprintable()):
        raise invalid("idempotency-key", f"an idempotency key has 1 to {_MAX_NAME} printable characters")
    return key


def check_reserved(names: Iterable[str], field: str = "attributes") -> None:
    """Refuses what callers can neither set nor see nor ask for.

    Raises:
        RegionSearchError: INVALID_ARGUMENT.
    """
    if IDEMPOTENCY_KEY in names:
        raise invalid(field, f"{field}: the attribute {IDEMPOTENCY_KEY} is reserved; choose another name")


def hide_key(image: search_pb2.StoredImage) -> None:
    """Takes the idempotency key out of what a caller is told about an image."""
    if IDEMPOTENCY_KEY in image.attributes:
        del image.attributes[IDEMPOTENCY_KEY]


def clean_name(name: str) -> str:
    """What a user calls a picture, fit for showing: without control characters, at most 255 characters."""
    return "".join(c for c in name if c.isprintable())[:_MAX_NAME]


def stored_image(
    request: region_search_pb2.IngestImageRequest,
    picture: Picture,
    segmented: segment_pb2.SegmentResponse,
    key: str | None,
) -> search_pb2.StoredImage:
    """The image's own entry."""
    return search_pb2.StoredImage(
        image_id=picture.identity,
        name=clean_name(request.name),
        width=segmented.image_width,
        height=segmented.image_height,
        content_type=picture.content_type,
        size_bytes=len(picture.data),
        tags=list(dict.fromkeys(request.tags)),
        attributes=dict(request.attributes) | ({IDEMPOTENCY_KEY: key} if key else {}),
    )


def records(identity: str, segmented: segment_pb2.SegmentResponse) -> list[search_pb2.Record]:
    """The record of the whole image, then those of its regions, best first."""
    width, height = segmented.image_width, segmented.image_height
    whole = search_pb2.Record(
        record_id=f"{identity}-image",
        image_id=identity,
        level=search_pb2.LEVEL_IMAGE,
        box=types_pb2.Box(x_max=width, y_max=height),
        area=width * height,
    )
    regions = [
        search_pb2.Record(
            record_id=f"{identity}-r{index:03d}",
            image_id=identity,
            level=search_pb2.LEVEL_REGION,
            box=region.box,
            mask=region.mask,
            area=region.area,
            predicted_iou=region.predicted_iou,
            stability_score=region.stability_score,
        )
        for index, region in enumerate(segmented.regions)
    ]
    return [whole, *regions]

"""The contract's messages as results: the gRPC side of reading an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from regionsearch.client.results import (
    Box,
    Hit,
    HitImage,
    Image,
    ImagePage,
    IngestProgress,
    IngestResult,
    Mask,
    Problem,
    ScoredRegion,
    SearchResult,
    UpdatedImage,
    WithinResult,
)
from regionsearch.errors import from_status
from regionsearch.v1 import region_search_pb2, search_pb2, types_pb2


def read_ingest(name: str, answer: region_search_pb2.IngestImageResponse) -> IngestResult:
    """What became of an image."""
    created = answer.outcome == region_search_pb2.INGEST_OUTCOME_CREATED
    renamed = not created and answer.name not in ("", name)
    return IngestResult(
        name=name,
        outcome="created" if created else "duplicate",
        image_id=answer.image_id,
        regions=answer.region_count,
        known_as=answer.name if renamed else None,
        tags=tuple(answer.tags),
        seq=answer.seq,
    )


def read_progress(name: str, answer: region_search_pb2.IngestImagesResponse) -> IngestProgress:
    """How far an image of a stream is."""
    result = None
    if answer.HasField("response"):
        result = read_ingest(name, answer.response)
    elif answer.HasField("error"):
        error = from_status(answer.error)
        problem = Problem(code=error.kind.value, detail=error.message)
        result = IngestResult(name=name, outcome="failed", error=problem)
    stage = region_search_pb2.IngestStage.Name(answer.stage).removeprefix("INGEST_STAGE_").lower()
    return IngestProgress(name=name, stage=stage, result=result)


def read_search(
    phrases: Sequence[str], answer: region_search_pb2.RegionSearchServiceSearchResponse
) -> SearchResult:
    """A page of hits; the phrases are those of the query."""
    hits = tuple(_hit(hit, phrases) for hit in answer.hits)
    return SearchResult(
        hits=hits,
        next_page_token=answer.next_page_token,
        seq=answer.seq,
        truncated=tuple(answer.truncated),
    )


def read_within(phrases: Sequence[str], answer: region_search_pb2.SearchWithinResponse) -> WithinResult:
    """Every region of an image."""
    regions = tuple(
        ScoredRegion(
            region_id=one.region_id or None,
            box=_box(one.region.box),
            mask=_mask(one.region.mask),
            area=one.region.area,
            predicted_iou=one.region.predicted_iou,
            stability_score=one.region.stability_score,
            score=one.score,
            relevancy=_optional(one, "relevancy"),
            label=phrases[one.text_index],
            text_index=one.text_index,
            is_hit=one.is_hit,
        )
        for one in answer.regions
    )
    union = Mask(size=(answer.union_mask.height, answer.union_mask.width), counts=answer.union_mask.coco_rle)
    return WithinResult(
        width=answer.image_width,
        height=answer.image_height,
        regions=regions,
        union_mask=union,
        truncated=tuple(answer.truncated),
    )


def read_images(answer: region_search_pb2.RegionSearchServiceListImagesResponse) -> ImagePage:
    """A page of images."""
    return ImagePage(
        images=tuple(_image(image) for image in answer.images),
        next_page_token=answer.next_page_token,
        total_count=answer.total_count,
    )


def read_checked(answer: region_search_pb2.CheckImagesResponse) -> tuple[Image, ...]:
    """Images that are stored."""
    return tuple(_image(image) for image in answer.images)


def read_updated(answer: region_search_pb2.UpdateImageResponse) -> UpdatedImage:
    """An image after a change."""
    return UpdatedImage(**_image(answer.image).model_dump(), seq=answer.seq)


def _hit(hit: search_pb2.Hit, phrases: Sequence[str]) -> Hit:
    record, image = hit.record, hit.image
    region = record.level == search_pb2.LEVEL_REGION
    return Hit(
        rank=hit.rank,
        score=hit.score,
        relevancy=_optional(hit, "relevancy"),
        image_id=record.image_id,
        region_id=record.record_id if region else None,
        level="region" if region else "image",
        box=_box(record.box),
        mask=_mask(record.mask) if record.HasField("mask") else None,
        image=HitImage(width=image.width, height=image.height, name=image.name, tags=tuple(image.tags)),
        label=phrases[hit.query_index] if phrases else None,
        best_region=_hit(hit.best_region, phrases) if hit.HasField("best_region") else None,
    )


def _image(image: search_pb2.StoredImage) -> Image:
    return Image(
        image_id=image.image_id,
        name=image.name,
        width=image.width,
        height=image.height,
        content_type=image.content_type,
        size_bytes=image.size_bytes,
        tags=tuple(image.tags),
        attributes=dict(image.attributes),
        created_at=_time(image.create_time),
        region_count=image.region_count,
    )


def _box(box: types_pb2.Box) -> Box:
    return Box(x_min=box.x_min, y_min=box.y_min, x_max=box.x_max, y_max=box.y_max)


def _mask(mask: types_pb2.Mask) -> Mask:
    return Mask(size=(mask.height, mask.width), counts=mask.coco_rle)


def _time(time: Timestamp) -> str:
    return time.ToJsonString()


def _optional(message: Any, field: str) -> float | None:
    return getattr(message, field) if message.HasField(field) else None

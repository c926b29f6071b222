"""Hits and regions of messages in COCO's annotation format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from regionsearch.exports import CocoWriter
from regionsearch.v1 import region_search_pb2, search_pb2, segment_pb2, types_pb2


def export_hits(
    hits: Iterable[search_pb2.Hit], phrases: Sequence[str], next_page_token: str = ""
) -> dict[str, Any]:
    """Hits of a search; the phrases are the categories.

    A whole image that stands for its best region is that region; one that stands for itself is
    outlined as a whole. Where there are more hits, `info` has the token of the next page.
    """
    document = CocoWriter(phrases)
    if next_page_token:
        document.values["info"]["next_page_token"] = next_page_token
    for hit in hits:
        shown = hit.best_region if hit.HasField("best_region") else hit
        image, record = hit.image, shown.record
        number = document.image(record.image_id, image.width, image.height, image.name, image.content_type)
        _add(document, number, record, shown.query_index, shown.score, region_id=record.record_id)
    return document.values


def export_within(
    answer: region_search_pb2.SearchWithinResponse, phrases: Sequence[str], image_id: str, name: str
) -> dict[str, Any]:
    """The hits of a search inside one image."""
    document = CocoWriter(phrases)
    image = document.image(image_id, answer.image_width, answer.image_height, name)
    for found in answer.regions:
        if found.is_hit:
            region = found.region
            _add(document, image, region, found.text_index, found.score, region_id=found.region_id)
    return document.values


def export_regions(image: search_pb2.StoredImage, records: Iterable[search_pb2.Record]) -> dict[str, Any]:
    """Regions of a stored image."""
    document = CocoWriter(())
    number = document.image(image.image_id, image.width, image.height, image.name, image.content_type)
    for record in records:
        _add(document, number, record, 0, record.predicted_iou, region_id=record.record_id)
    return document.values


def export_segments(
    answer: segment_pb2.SegmentResponse, phrases: Sequence[str], image_id: str, name: str
) -> dict[str, Any]:
    """What a model has segmented: all regions, all that phrases name, or the best mask of each prompt."""
    document = CocoWriter(phrases)
    image = document.image(image_id, answer.image_width, answer.image_height, name)
    for region in answer.regions:
        _add(document, image, region, 0, region.predicted_iou)
    for index, result in enumerate(answer.results):
        masks = [one for one in result.candidates if one.area]
        for region in masks if phrases else masks[:1]:
            _add(document, image, region, index if phrases else 0, region.predicted_iou)
    return document.values


def _add(
    document: CocoWriter,
    image: int,
    region: types_pb2.Region | search_pb2.Record,
    phrase: int,
    score: float,
    region_id: str = "",
) -> None:
    box, mask = region.box, region.mask
    document.add(
        image,
        (box.x_min, box.y_min, box.x_max, box.y_max),
        region.area,
        (mask.height, mask.width, mask.coco_rle) if mask.coco_rle else None,
        phrase=phrase,
        score=score,
        region_id=region_id,
    )

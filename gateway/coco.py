"""Hits and regions in COCO's annotation format, for labelling tools and notebooks.

Every annotation has a segmentation that pycocotools decodes, and `iscrowd` is 0: COCO's own files keep run
lengths for crowds, but evaluators leave crowds out, and so would they these. Importers join images by
`file_name` and categories by `name`, so both are unique in a document.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable, Sequence
from typing import Any

from regionsearch.coco import unique_file_name
from regionsearch.v1 import region_search_pb2, search_pb2, segment_pb2, types_pb2

UNNAMED = "object"
"""The category of what no phrase was asked for."""


def export_hits(
    hits: Iterable[search_pb2.Hit], phrases: Sequence[str], next_page_token: str = ""
) -> dict[str, Any]:
    """Hits of a search; the phrases are the categories.

    A whole image that stands for its best region is that region; one that stands for itself is
    outlined as a whole. Where there are more hits, `info` has the token of the next page.
    """
    document = _Document(phrases)
    if next_page_token:
        document.values["info"]["next_page_token"] = next_page_token
    for hit in hits:
        shown = hit.best_region if hit.HasField("best_region") else hit
        image, record = hit.image, shown.record
        number = document.image(record.image_id, image.width, image.height, image.name, image.content_type)
        document.add(number, record, shown.query_index, shown.score, region_id=record.record_id)
    return document.values


def export_within(
    answer: region_search_pb2.SearchWithinResponse, phrases: Sequence[str], image_id: str, name: str
) -> dict[str, Any]:
    """The hits of a search inside one image."""
    document = _Document(phrases)
    image = document.image(image_id, answer.image_width, answer.image_height, name)
    for found in answer.regions:
        if found.is_hit:
            region = found.region
            document.add(image, region, found.text_index, found.score, region_id=found.region_id)
    return document.values


def export_regions(image: search_pb2.StoredImage, records: Iterable[search_pb2.Record]) -> dict[str, Any]:
    """Regions of a stored image."""
    document = _Document(())
    number = document.image(image.image_id, image.width, image.height, image.name, image.content_type)
    for record in records:
        document.add(number, record, 0, record.predicted_iou, region_id=record.record_id)
    return document.values


def export_segments(answer: segment_pb2.SegmentResponse, image_id: str, name: str) -> dict[str, Any]:
    """What a model has segmented: all regions, or of each prompt the best mask that is not empty."""
    document = _Document(())
    image = document.image(image_id, answer.image_width, answer.image_height, name)
    best = (next((one for one in result.candidates if one.area), None) for result in answer.results)
    for region in [*answer.regions, *(one for one in best if one is not None)]:
        document.add(image, region, 0, region.predicted_iou)
    return document.values


class _Document:
    def __init__(self, phrases: Sequence[str]) -> None:
        names = list(dict.fromkeys(phrases)) or [UNNAMED]
        self._category = [names.index(phrase) + 1 for phrase in phrases] or [1]
        self._images: dict[str, int] = {}
        self._file_names: set[str] = set()
        self.values: dict[str, Any] = {
            "info": {"description": "Region Search"},
            "images": [],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
            "annotations": [],
        }

    def image(self, image_id: str, width: int, height: int, name: str, content_type: str = "") -> int:
        """The number of an image, which is added when it is new."""
        if image_id not in self._images:
            self._images[image_id] = number = len(self._images) + 1
            called = name or image_id + (mimetypes.guess_extension(content_type) or "")
            file_name = unique_file_name(called, image_id, self._file_names)
            self.values["images"].append(
                {"id": number, "width": width, "height": height, "file_name": file_name, "sha256": image_id}
            )
        return self._images[image_id]

    def add(
        self,
        image: int,
        region: types_pb2.Region | search_pb2.Record,
        phrase: int,
        score: float,
        *,
        region_id: str = "",
    ) -> None:
        """One annotation; COCO's boxes are x, y, width, height."""
        box = region.box
        annotation = {
            "id": len(self.values["annotations"]) + 1,
            "image_id": image,
            "category_id": self._category[phrase],
            "bbox": [box.x_min, box.y_min, box.x_max - box.x_min, box.y_max - box.y_min],
            "area": region.area,
            "iscrowd": 0,
            "score": score,
            "segmentation": _segmentation(region.mask, box),
        }
        if region_id:
            annotation["region_id"] = region_id
        self.values["annotations"].append(annotation)


def _segmentation(mask: types_pb2.Mask, box: types_pb2.Box) -> Any:
    """A mask's run lengths; where there is none, as for a whole image, its box as a polygon."""
    if mask.coco_rle:
        return {"size": [mask.height, mask.width], "counts": mask.coco_rle}
    left, top, right, bottom = box.x_min, box.y_min, box.x_max, box.y_max
    return [[left, top, right, top, right, bottom, left, bottom]]

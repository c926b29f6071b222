"""Finds and regions in COCO's annotation format, for labelling tools and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from regionsearch.v1 import region_search_pb2, search_pb2, types_pb2

_UNNAMED = "object"


def export_hits(hits: Iterable[search_pb2.Hit], phrases: Sequence[str]) -> dict[str, Any]:
    """Hits of a search; the phrases are the categories. Whole images have a box and no segmentation."""
    document = _Document(phrases)
    for hit in hits:
        image = document.image(hit.record.image_id, hit.image.width, hit.image.height, hit.image.name)
        record = hit.record
        document.add(
            image, record.record_id, record.box, record.mask, record.area, hit.query_index, hit.score
        )
    return document.values


def export_within(
    answer: region_search_pb2.SearchWithinResponse, phrases: Sequence[str], image_id: str
) -> dict[str, Any]:
    """The hits of a search inside one picture."""
    document = _Document(phrases)
    image = document.image(image_id, answer.image_width, answer.image_height, "")
    for found in answer.regions:
        if found.is_hit:
            region = found.region
            document.add(
                image, found.region_id, region.box, region.mask, region.area, found.text_index, found.score
            )
    return document.values


def export_regions(image: search_pb2.StoredImage, records: Iterable[search_pb2.Record]) -> dict[str, Any]:
    """All regions of a stored image."""
    document = _Document(())
    number = document.image(image.image_id, image.width, image.height, image.name)
    for record in records:
        document.add(number, record.record_id, record.box, record.mask, record.area, 0, record.predicted_iou)
    return document.values


class _Document:
    def __init__(self, phrases: Sequence[str]) -> None:
        names = list(phrases) or [_UNNAMED]
        self.values: dict[str, Any] = {
            "info": {"description": "Region Search"},
            "images": [],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
            "annotations": [],
        }
        self._images: dict[str, int] = {}

    def image(self, image_id: str, width: int, height: int, name: str) -> int:
        """The number of an image, which is added when it is new."""
        if image_id not in self._images:
            self._images[image_id] = number = len(self._images) + 1
            self.values["images"].append(
                {"id": number, "width": width, "height": height, "file_name": name, "sha256": image_id}
            )
        return self._images[image_id]

    def add(
        self,
        image: int,
        region_id: str,
        box: types_pb2.Box,
        mask: types_pb2.Mask,
        area: int,
        category: int,
        score: float,
    ) -> None:
        """One annotation; COCO's boxes are x, y, width, height."""
        annotation = {
            "id": len(self.values["annotations"]) + 1,
            "image_id": image,
            "category_id": category + 1,
            "bbox": [box.x_min, box.y_min, box.x_max - box.x_min, box.y_max - box.y_min],
            "area": area,
            "iscrowd": 0,
            "score": score,
            "region_id": region_id,
        }
        if mask.coco_rle:
            annotation["segmentation"] = {"size": [mask.height, mask.width], "counts": mask.coco_rle}
        self.values["annotations"].append(annotation)

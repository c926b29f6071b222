"""Writing COCO annotations, for labelling tools and notebooks.

Every annotation has a segmentation that pycocotools decodes, and `iscrowd` is 0: COCO's own files keep run
lengths for crowds, but evaluators leave crowds out, and so would they these. Importers join images by
`file_name` and categories by `name`, so both are unique in a document.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

UNNAMED = "object"
"""The category of what no phrase was asked for."""

_ID_PART = 8


def unique_file_name(name: str, image_id: str, taken: set[str]) -> str:
    """A `file_name` that no other image of a document has: importers take images of one name for one image.

    Args:
        name: What the image is called, perhaps with folders.
        image_id: Its id, a part of which stands before a name that is taken.
        taken: The names of the document so far; the answer is added.
    """
    path = PurePosixPath(name)
    length = _ID_PART
    while str(path) in taken:
        path = path.with_name(f"{image_id[:length]}-{PurePosixPath(name).name}")
        length += _ID_PART
    taken.add(str(path))
    return str(path)


class CocoWriter:
    """A COCO document that grows.

    Args:
        phrases: Its categories; one of them may come twice.

    Attributes:
        values: The document.
    """

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
        edges: tuple[float, float, float, float],
        area: int,
        mask: tuple[int, int, str] | None,
        *,
        phrase: int = 0,
        score: float,
        region_id: str = "",
    ) -> None:
        """Adds an annotation.

        Args:
            image: Number of its image.
            edges: Left, top, right and bottom; COCO's boxes are x, y, width, height.
            area: Pixels.
            mask: Height, width and compressed run lengths; None, as for a whole image, for its box.
            phrase: Index of the phrase that it fits.
            score: Of the hit, or the predicted IoU.
            region_id: Of a stored region.
        """
        left, top, right, bottom = edges
        segmentation: Any = [[left, top, right, top, right, bottom, left, bottom]]
        if mask is not None:
            segmentation = {"size": [mask[0], mask[1]], "counts": mask[2]}
        annotation = {
            "id": len(self.values["annotations"]) + 1,
            "image_id": image,
            "category_id": self._category[phrase],
            "bbox": [left, top, right - left, bottom - top],
            "area": area,
            "iscrowd": 0,
            "score": score,
            "segmentation": segmentation,
        }
        if region_id:
            annotation["region_id"] = region_id
        self.values["annotations"].append(annotation)

"""Hits as other tools take them: pandas, COCO, CVAT, supervision, FiftyOne, YOLO; all imported when needed.

Every COCO annotation has a segmentation that pycocotools decodes, and iscrowd is 0: COCO's own files keep run
lengths for crowds, but evaluators leave crowds out, and so would they these. Importers join images by
file_name and categories by name, so both are unique in a document.
"""

from __future__ import annotations

import importlib
import json
import mimetypes
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError, invalid

if TYPE_CHECKING:
    from regionsearch.schemas.responses.searches import Hit


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
            score: Score of the hit, or the predicted IoU.
            region_id: Id of a stored region.
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


_COLUMNS = ("rank", "score", "confident", "label", "image_id", "region_id", "level", "area")


def to_dataframe(hits: Iterable[Hit]) -> Any:
    """A `pandas.DataFrame` with a row for each hit: scores, ids, names, and edges of boxes; no masks."""
    rows = [
        {name: getattr(hit, name) for name in _COLUMNS}
        | {"name": hit.image.name, "width": hit.image.width, "height": hit.image.height}
        | hit.box.model_dump()
        for hit in hits
    ]
    edges = ("x_min", "y_min", "x_max", "y_max")
    return _library("pandas").DataFrame(rows, columns=[*_COLUMNS, "name", "width", "height", *edges])


def to_coco(hits: Sequence[Hit]) -> dict[str, Any]:
    """A COCO document; masks where the hits have them (`include=["mask"]`), else boxes."""
    labels = list(dict.fromkeys(hit.label for hit in hits if hit.label is not None))
    document = CocoWriter(labels)
    for hit in hits:
        image = document.image(hit.image_id, hit.image.width, hit.image.height, hit.image.name)
        document.add(
            image,
            (hit.box.x_min, hit.box.y_min, hit.box.x_max, hit.box.y_max),
            hit.area,
            (*hit.mask.size, hit.mask.counts) if hit.mask is not None else None,
            phrase=labels.index(hit.label) if hit.label is not None else 0,
            score=hit.score,
            region_id=hit.region_id or "",
        )
    return document.values


def write_coco(hits: Sequence[Hit], path: Path | str) -> None:
    """Writes `to_coco` as a file."""
    Path(path).write_text(json.dumps(to_coco(hits)), encoding="utf-8")


def write_cvat(hits: Sequence[Hit], path: Path | str) -> None:
    """Writes annotations as an XML file that CVAT imports ("CVAT for images 1.1").

    CVAT joins images by name, so upload them to the task under the names that they have here. Hits with a
    mask (`include=["mask"]`) become masks, others boxes.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    images: dict[str, ElementTree.Element] = {}
    names: set[str] = set()
    for hit in hits:
        if hit.image_id not in images:
            about = {
                "id": str(len(images)),
                "name": unique_file_name(hit.image.name or hit.image_id, hit.image_id, names),
                "width": str(hit.image.width),
                "height": str(hit.image.height),
            }
            images[hit.image_id] = ElementTree.SubElement(root, "image", about)
        shape = {"label": hit.label or UNNAMED, "source": "auto", "occluded": "0", "z_order": "0"}
        if hit.mask is None:
            edges = zip(("xtl", "ytl", "xbr", "ybr"), hit.box, strict=True)
            shape |= {name: f"{edge:g}" for name, edge in edges}
        else:
            shape |= _cvat_mask(hit.mask.to_array())
        ElementTree.SubElement(images[hit.image_id], "box" if hit.mask is None else "mask", shape)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _cvat_mask(mask: NDArray[np.bool_]) -> dict[str, str]:
    """A mask cropped to its pixels, as run lengths by rows, which begin with those of the background."""
    (left, top, width, height), cropped = _cropped(mask)
    flat = np.concatenate([[False], cropped.ravel()])
    edges = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], edges, [cropped.size]]))
    return {
        "rle": ", ".join(map(str, runs)),
        "left": str(left),
        "top": str(top),
        "width": str(width),
        "height": str(height),
    }


def _cropped(mask: NDArray[np.bool_]) -> tuple[tuple[int, int, int, int], NDArray[np.bool_]]:
    """Left, top, width and height of a mask's pixels, and what is there; of an empty one its first pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom = (int(rows[0]), int(rows[-1]) + 1) if rows.size else (0, 1)
    left, right = (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 1)
    return (left, top, right - left, bottom - top), mask[top:bottom, left:right]


def to_fiftyone(hits: Sequence[Hit], folder: Path | str, field: str = "regions") -> Any:
    """A `fiftyone.Dataset` with a sample for each image and the hits as its detections.

    Args:
        hits: What is detected; with masks where they have them (`include=["mask"]`).
        folder: Where the images are, under the names that they have here.
        field: Of the samples, for the detections.

    Raises:
        RegionSearchError: FAILED_PRECONDITION without the library.
    """
    fiftyone = _library("fiftyone")
    found: dict[str, list[Any]] = {}
    names: dict[str, str] = {}
    for hit in hits:
        names[hit.image_id] = hit.image.name
        width, height = hit.image.width, hit.image.height
        mask: NDArray[np.bool_] | None = None
        left, top, wide, high = (
            *tuple(hit.box)[:2],
            hit.box.x_max - hit.box.x_min,
            hit.box.y_max - hit.box.y_min,
        )
        if hit.mask is not None:
            (left, top, wide, high), mask = _cropped(hit.mask.to_array())
        found.setdefault(hit.image_id, []).append(
            fiftyone.Detection(
                label=hit.label or UNNAMED,
                bounding_box=[left / width, top / height, wide / width, high / height],
                confidence=hit.score,
                mask=mask,
                region_id=hit.region_id,
            )
        )
    dataset = fiftyone.Dataset()
    dataset.add_samples(
        [
            fiftyone.Sample(
                filepath=str(Path(folder) / names[image_id]),
                image_id=image_id,
                **{field: fiftyone.Detections(detections=detections)},
            )
            for image_id, detections in found.items()
        ]
    )
    return dataset


def to_supervision(hits: Sequence[Hit]) -> Any:
    """The `supervision.Detections` of one image.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for hits of several images, FAILED_PRECONDITION without the
            library.
    """
    if len({hit.image_id for hit in hits}) > 1:
        raise invalid("hits", "the hits are of several images, and Detections of one: choose by image_id")
    detections = _library("supervision").Detections
    if not hits:
        return detections.empty()
    labels = list(dict.fromkeys(hit.label for hit in hits))
    masks = [hit.mask for hit in hits]
    return detections(
        xyxy=np.array([tuple(hit.box) for hit in hits], np.float32),
        mask=np.stack([mask.to_array() for mask in masks if mask is not None]) if all(masks) else None,
        confidence=np.array([hit.score for hit in hits], np.float32),
        class_id=np.array([labels.index(hit.label) for hit in hits]),
        data={"class_name": np.array([hit.label or UNNAMED for hit in hits])},
    )


def write_yolo(hits: Sequence[Hit], folder: Path | str) -> list[Path]:
    """Writes a YOLO label file for each image, `labels/NAME.txt`, and `classes.txt`.

    Args:
        hits: What is labelled: class, middle, width and height as parts of the image.
        folder: Where to; made if it is not there.

    Returns:
        The label files.
    """
    labels = list(dict.fromkeys(hit.label or UNNAMED for hit in hits))
    taken: set[str] = set()
    stems: dict[str, str] = {}
    lines: dict[str, list[str]] = {}
    for hit in hits:
        if hit.image_id not in stems:
            name = PurePosixPath(hit.image.name or hit.image_id).stem
            stems[hit.image_id] = unique_file_name(name, hit.image_id, taken)
        stem = stems[hit.image_id]
        width, height, box = hit.image.width, hit.image.height, hit.box
        numbers = (
            (box.x_min + box.x_max) / 2 / width,
            (box.y_min + box.y_max) / 2 / height,
            (box.x_max - box.x_min) / width,
            (box.y_max - box.y_min) / height,
        )
        line = " ".join([str(labels.index(hit.label or UNNAMED)), *(f"{number:.6f}" for number in numbers)])
        lines.setdefault(stem, []).append(line)
    target = Path(folder)
    (target / "labels").mkdir(parents=True, exist_ok=True)
    (target / "classes.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    written = []
    for stem, content in lines.items():
        written.append(target / "labels" / f"{stem}.txt")
        written[-1].write_text("".join(f"{line}\n" for line in content))
    return written


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION, f"{name} is not installed; get it with: pip install {name}"
        ) from error

"""Reads data sets: COCO-style JSON (also LVIS's and the fixture's) and PASCAL VOC, object masks or boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from evaluation import rle
from evaluation.dataset import Dataset, Instance, Sample, Split, alternate_splits
from regionsearch.errors import RegionSearchError, invalid
from regionsearch.masks import rle_runs

FIXTURE = Path(__file__).parent / "fixture"

VOC_CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train",
    "tv monitor",
)  # fmt: skip
_VOC_VOID = 255  # border pixels that belong to nothing


def load(path: Path, images: Path | None = None) -> Dataset:
    """Reads the data set at a path and tells its kind by what lies there.

    Args:
        path: A COCO-style JSON file; a folder with one (`scenes.json` or the only *.json); or the root of
            a PASCAL VOC year (with SegmentationObject/), or of boxes in its format (Annotations/*.xml).
        images: Folder of the images of a JSON file, if they are not next to it.

    Raises:
        RegionSearchError: INVALID_ARGUMENT, naming what is missing or malformed.
    """
    if (path / "SegmentationObject").is_dir():
        return load_voc(path)
    if (path / "Annotations").is_dir():
        return load_voc_boxes(path)
    return load_coco(_annotation_file(path), images)


def _annotation_file(path: Path) -> Path:
    if path.is_file():
        return path
    if (path / "scenes.json").is_file():
        return path / "scenes.json"
    found = sorted(path.glob("*.json"))
    if len(found) != 1:
        raise invalid(
            "data",
            f"{path} is not a data set: give a COCO-style JSON file, a folder with exactly one, "
            "or a PASCAL VOC folder with SegmentationObject/ or Annotations/",
        )
    return found[0]


def load_coco(path: Path, images: Path | None = None) -> Dataset:
    """Reads COCO-style JSON: polygons, compressed and uncompressed run lengths, else boxes.

    Crowds are left out; what is a crowd in an image does not count as absent from it either.

    An image's `split` ("tune" or "test") and `caption` are honoured; where an image has no split, every
    other one is for tuning. Of LVIS, names are read without underscores, and only an image's
    `neg_category_ids` count as absent from it.

    Raises:
        RegionSearchError: INVALID_ARGUMENT, naming what is missing or malformed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check_references(content)
        entries = sorted(content["categories"], key=lambda entry: entry["id"])
        number = {entry["id"]: index for index, entry in enumerate(entries)}
        truth: dict[Any, list[Instance]] = {image["id"]: [] for image in content["images"]}
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        crowds: dict[Any, set[int]] = {}
        for item in content["annotations"]:
            if item.get("iscrowd"):
                crowds.setdefault(item["image_id"], set()).add(number[item["category_id"]])
                continue
            mask = _mask(item, *sizes[item["image_id"]])
            if rle.area(mask):
                truth[item["image_id"]].append(Instance(number[item["category_id"]], mask))
        splits = alternate_splits(len(content["images"]))
        samples = tuple(
            Sample(
                path=_image(images or path.parent, image),
                height=image["height"],
                width=image["width"],
                split=cast(Split, image.get("split", splits[index])),
                instances=tuple(truth[image["id"]]),
                caption=image.get("caption", ""),
                absent=_absent(image, number, crowds.get(image["id"], set())),
            )
            for index, image in enumerate(content["images"])
        )
    except RegionSearchError as error:
        error.message = f"{path}: {error.message}"
        raise
    except KeyError as error:
        raise invalid("data", f"{path} is not a COCO-style annotation file: no {error} in it") from error
    except Exception as error:  # pycocotools raises bare ones
        raise invalid("data", f"{path} is not a COCO-style annotation file: {error}") from error
    return _checked(
        Dataset(path.parent.name, tuple(entry["name"].replace("_", " ") for entry in entries), samples), path
    )


def _check_references(content: Any) -> None:
    """Refuses annotations of images or categories that the file does not list."""
    for key, listed in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in content[listed]}
        for item in content["annotations"]:
            if item[key] not in known:
                raise invalid(
                    "data", f"annotation {item.get('id')} has {key} {item[key]}, which is not among {listed}"
                )


def _mask(item: Any, height: int, width: int) -> rle.Rle:
    """The mask of an annotation; of one with a box alone, its filled box."""
    if item.get("segmentation"):
        return _segmentation(item["segmentation"], height, width)
    x, y, box_width, box_height = item["bbox"]
    return rle.rectangle(height, width, (x, y, x + box_width, y + box_height))


def _segmentation(value: Any, height: int, width: int) -> rle.Rle:
    """A mask from any of COCO's three forms."""
    if isinstance(value, list):  # polygons
        return rle.union(coco.frPyObjects(value, height, width))
    if isinstance(value["counts"], list):
        packed = coco.frPyObjects(value, height, width)
        return {"size": [height, width], "counts": packed["counts"]}
    if list(value["size"]) != [height, width]:
        raise ValueError(f"a mask of size {value['size']} in an image of {[height, width]}")
    rle_runs(value["counts"], height, width)  # pycocotools trusts what it is given
    return {"size": [height, width], "counts": value["counts"].encode()}


def _image(folder: Path, image: Any) -> Path:
    """An image's file; LVIS says only where COCO's servers have it."""
    if "file_name" in image:
        return folder / str(image["file_name"])
    split, name = str(image["coco_url"]).split("/")[-2:]
    return folder / split / name if (folder / split).is_dir() else folder / name


def _absent(image: Any, number: dict[Any, int], crowds: set[int]) -> tuple[int, ...] | None:
    """Categories that are known not to be in an image. A crowd is not an instance, but not absent."""
    names = image.get("neg_category_ids")
    if names is None and not crowds:
        return None
    known = set(number.values()) if names is None else {number[name] for name in names}
    return tuple(sorted(known - crowds))


def load_voc(root: Path) -> Dataset:
    """Reads PASCAL VOC object masks: ImageSets/Segmentation/val.txt, every other image for tuning.

    Pixels of borders (255) belong to nothing.

    Raises:
        RegionSearchError: INVALID_ARGUMENT, naming what is missing.
    """
    try:
        names = (root / "ImageSets/Segmentation/val.txt").read_text().split()
        samples = [
            _voc_sample(root, name, split)
            for name, split in zip(names, alternate_splits(len(names)), strict=True)
        ]
    except OSError as error:
        raise invalid("data", f"{root} is not a complete PASCAL VOC folder: {error}") from error
    return _checked(Dataset(root.name, VOC_CATEGORIES, tuple(samples)), root)


def _voc_sample(root: Path, name: str, split: Split) -> Sample:
    with Image.open(root / "SegmentationObject" / f"{name}.png") as image:
        objects = np.asarray(image)
    with Image.open(root / "SegmentationClass" / f"{name}.png") as image:
        classes = np.asarray(image)
    instances = []
    for number in np.unique(objects[(objects > 0) & (objects != _VOC_VOID)]):
        mask = objects == number
        inside = classes[mask]
        category = int(np.bincount(inside[inside != _VOC_VOID], minlength=1).argmax())
        if not category:
            raise invalid("data", f"object {number} of {name}.png has no class in SegmentationClass")
        instances.append(Instance(category - 1, rle.encode(mask)))
    height, width = objects.shape
    return Sample(root / "JPEGImages" / f"{name}.jpg", height, width, split, tuple(instances))


def load_voc_boxes(root: Path) -> Dataset:
    """Reads boxes in PASCAL VOC's XML, as labelling tools write it: of ImageSets/Main/val.txt, else all.

    A box is its filled rectangle. Objects marked as difficult count neither as present nor as absent.

    Raises:
        RegionSearchError: INVALID_ARGUMENT, naming what is missing or malformed.
    """
    listed = root / "ImageSets/Main/val.txt"
    try:
        if listed.is_file():
            names = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
        else:
            names = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
        files = [root / "Annotations" / f"{name}.xml" for name in names]
        trees = [ElementTree.parse(file).getroot() for file in files]  # noqa: S314  # the user's own files
    except (OSError, ElementTree.ParseError) as error:
        raise invalid("data", f"{root} is not a complete PASCAL VOC folder: {error}") from error
    spoken = dict(zip((name.replace(" ", "") for name in VOC_CATEGORIES), VOC_CATEGORIES, strict=True))
    found = {_text(one, "name") for tree in trees for one in tree.iter("object")}
    categories = sorted(spoken.get(name, name.replace("_", " ")) for name in found)
    number = {name: categories.index(spoken.get(name, name.replace("_", " "))) for name in found}
    samples = []
    for name, tree, split in zip(names, trees, alternate_splits(len(names)), strict=True):
        try:
            samples.append(_box_sample(root, name, tree, split, number))
        except ValueError as error:
            raise invalid("data", f"Annotations/{name}.xml is malformed: {error}") from error
    return _checked(Dataset(root.name, tuple(categories), tuple(samples)), root)


def _box_sample(
    root: Path, name: str, tree: ElementTree.Element, split: Split, number: dict[str, int]
) -> Sample:
    height, width = int(_text(tree, "size/height")), int(_text(tree, "size/width"))
    instances, difficult = [], set[int]()
    for one in tree.iter("object"):
        category = number[_text(one, "name")]
        if one.findtext("difficult", "0").strip() == "1":
            difficult.add(category)
            continue
        sides = ("xmin", "ymin", "xmax", "ymax")
        left, top, right, bottom = (float(_text(one, f"bndbox/{side}")) for side in sides)
        box = (left - 1, top - 1, right, bottom)  # VOC counts pixels from 1, and the last one is inside
        instances.append(Instance(category, rle.rectangle(height, width, box)))
    absent = tuple(sorted(set(number.values()) - difficult)) if difficult else None
    file = tree.findtext("filename") or f"{name}.jpg"
    places = (root / "JPEGImages" / file, root / file)
    path = next((place for place in places if place.is_file()), places[0])
    return Sample(path, height, width, split, tuple(instances), absent=absent)


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if not text:
        raise ValueError(f"{element.tag} has no {path}")
    return text.strip()


def _checked(dataset: Dataset, path: Path) -> Dataset:
    """Refuses what would only fail in the middle of a run."""
    problem: RegionSearchError | None = None
    missing = [sample.path.name for sample in dataset.samples if not sample.path.is_file()]
    splits = {sample.split for sample in dataset.samples}
    if missing:
        problem = invalid("data", f"{len(missing)} images of {path} are missing, such as {missing[0]}")
    elif not dataset.samples or not any(sample.instances for sample in dataset.samples):
        problem = invalid("data", f"{path} has no annotated image")
    elif not splits <= {"tune", "test"}:
        problem = invalid("data", f"splits of {path} must be tune or test, not {sorted(splits)}")
    if problem is not None:
        raise problem
    return dataset

"""Photographed things with names on photographed backgrounds: how far models reach outside of drawn scenes.

Debian's ``tuxpaint-stamps-default`` (GPL-2) holds cut-outs of photographs with English names, and
``mate-backgrounds`` the wallpapers that they are laid on. Both are read where they are installed; nothing of
them is copied but into the data set that is drawn. They are for measuring only and must never be trained,
tuned or selected on.

Names are split by a digest: only those of the public half are used here, the others are kept for a later
exam.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco

from regionsearch.errors import Kind, RegionSearchError

STAMPS = Path("/usr/share/tuxpaint/stamps")
WALLPAPERS = Path("/usr/share/backgrounds/mate/nature")
SCENES = 200

_DRAWN = frozenset(
    {"cartoon", "symbols", "flags", "roadsigns", "chess", "planets"}
)  # folders without photographs
_MIN_COLOURS = 600  # of 32 levels a channel; drawings have fewer
_MIN_SIDE = 60  # pixels
_CANVASES = ((480, 360), (600, 400), (400, 600), (640, 480))
_LONGEST = (0.2, 0.6)  # of a thing, in parts of the canvas's shorter side
_HIDDEN = 0.15  # at most so much of a thing may be covered
_ATTEMPTS = 20


@dataclass(frozen=True)
class CutOut:
    """A photographed thing.

    Attributes:
        name: Lower case, without its article.
        path: A PNG with transparency.
    """

    name: str
    path: Path


def is_public(name: str) -> bool:
    """Whether a name belongs to the half that may be looked at."""
    return hashlib.sha256(name.lower().encode()).digest()[0] % 2 == 0


def find_cut_outs(folder: Path = STAMPS) -> list[CutOut]:
    """The photographed cut-outs of the public half, in the order of their paths.

    Raises:
        RegionSearchError: NOT_FOUND, naming the package to install.
    """
    _require(folder, "tuxpaint-stamps-default")
    return list(_photographed(folder))


def write_cut_outs(
    folder: Path, count: int = SCENES, seed: int = 0, stamps: Path = STAMPS, wallpapers: Path = WALLPAPERS
) -> Path:
    """Draws the data set in the style of COCO, the same for the same seed.

    Every other image belongs to the split "tune", the rest to "test".

    Args:
        folder: Where images and ``scenes.json`` go.
        count: Number of images, each with one to four things.
        seed: Random seed.
        stamps: Where the cut-outs are.
        wallpapers: Where the backgrounds are.

    Returns:
        The JSON file.

    Raises:
        RegionSearchError: NOT_FOUND, naming the package to install.
    """
    cut_outs = find_cut_outs(stamps)
    _require(wallpapers, "mate-backgrounds")
    backgrounds = sorted(path for path in wallpapers.iterdir() if path.suffix in (".jpg", ".png"))
    names = sorted({one.name for one in cut_outs})
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        pixels, labels, shown = _compose(rng, cut_outs, backgrounds)
        file = f"cut-outs-{number:04d}.webp"
        Image.fromarray(pixels).save(folder / file, quality=90)
        height, width = labels.shape
        split = ("tune", "test")[number % 2]
        images.append({"id": number, "file_name": file, "width": width, "height": height, "split": split})
        for label, name in enumerate(shown, 1):
            packed = coco.encode(np.asfortranarray((labels == label).astype(np.uint8)))
            rle = {"size": [height, width], "counts": packed["counts"].decode()}
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": names.index(name),
                    "bbox": coco.toBbox(packed).tolist(),
                    "area": int(coco.area(packed)),
                    "segmentation": rle,
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    path = folder / "scenes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def _require(folder: Path, package: str) -> None:
    if not folder.is_dir():
        raise RegionSearchError(
            Kind.NOT_FOUND, f"{folder} does not exist; install Debian's {package}", field="cutouts"
        )


def _photographed(folder: Path) -> Iterator[CutOut]:
    for path in sorted(folder.rglob("*.png")):
        text = path.with_suffix(".txt")
        if _DRAWN & set(path.relative_to(folder).parts) or not text.is_file():
            continue
        first = text.read_text(encoding="utf-8", errors="replace").splitlines()[0]
        name = re.sub(r"^(an?|the|some) ", "", first.strip().rstrip(".!").lower())
        if name and is_public(name) and _is_photograph(path):
            yield CutOut(name, path)


@lru_cache(maxsize=4096)
def _is_photograph(path: Path) -> bool:
    """By its many colours; opaque in part, so that it has an outline."""
    with Image.open(path) as image:
        if min(image.size) < _MIN_SIDE:
            return False
        rgba = np.asarray(image.convert("RGBA"))
    solid = rgba[..., 3] > 127
    if not 0.1 < solid.mean() < 0.97:
        return False
    levels = rgba[..., :3][solid].astype(np.int32) // 8
    return np.unique(levels @ np.array([1024, 32, 1])).size >= _MIN_COLOURS


def _compose(
    rng: np.random.Generator, cut_outs: list[CutOut], backgrounds: list[Path]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], list[str]]:
    """An image, its labels (0 background, 1… the things) and the things' names."""
    width, height = _CANVASES[int(rng.integers(len(_CANVASES)))]
    canvas = _background(rng, backgrounds[int(rng.integers(len(backgrounds)))], width, height)
    labels = np.zeros((height, width), np.uint8)
    areas: list[int] = []
    shown: list[str] = []
    for _ in range(int(rng.integers(1, 5))):
        one = cut_outs[int(rng.integers(len(cut_outs)))]
        sprite = _sprite(rng, one.path, min(width, height))
        solid = np.asarray(sprite)[..., 3] > 127
        if one.name in shown or solid.shape[0] >= height or solid.shape[1] >= width:
            continue
        for _ in range(_ATTEMPTS):
            x = int(rng.integers(width - solid.shape[1]))
            y = int(rng.integers(height - solid.shape[0]))
            after = labels.copy()
            after[y : y + solid.shape[0], x : x + solid.shape[1]][solid] = len(shown) + 1
            left = np.bincount(after.ravel(), minlength=len(areas) + 1)[1 : len(areas) + 1]
            if (left >= (1 - _HIDDEN) * np.array(areas)).all():
                labels = after
                canvas.paste(sprite, (x, y), sprite)
                shown.append(one.name)
                areas.append(int(solid.sum()))
                break
    return np.asarray(canvas), labels, shown


def _background(rng: np.random.Generator, path: Path, width: int, height: int) -> Image.Image:
    with Image.open(path) as image:
        photo = image.convert("RGB")
    scale = max(width / photo.width, height / photo.height) * rng.uniform(1.0, 1.6)
    crop_width, crop_height = width / scale, height / scale
    x, y = rng.uniform(0, photo.width - crop_width), rng.uniform(0, photo.height - crop_height)
    box = (x, y, x + crop_width, y + crop_height)
    return photo.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _sprite(rng: np.random.Generator, path: Path, side: int) -> Image.Image:
    with Image.open(path) as image:
        sprite = image.convert("RGBA")
    sprite = sprite.crop(sprite.getchannel("A").getbbox())
    factor = side * rng.uniform(*_LONGEST) / max(sprite.size)
    size = (max(8, round(sprite.width * factor)), max(8, round(sprite.height * factor)))
    return sprite.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)

"""Held-out scenes with the truth about what is in them, from the evaluation fixture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regionsearch.masks import decode_rle

FIXTURE = Path(__file__).resolve().parents[2] / "evaluation" / "fixture"


@dataclass(frozen=True)
class Thing:
    """A named thing and its visible mask, bool (height, width)."""

    name: str
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """An image file and the things in it."""

    path: Path
    things: tuple[Thing, ...]

    @property
    def data(self) -> bytes:
        return self.path.read_bytes()


def held_out_scenes(count: int) -> list[Scene]:
    """The first scenes of the test split."""
    truth = json.loads((FIXTURE / "scenes.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    things: dict[int, list[Thing]] = {}
    for annotation in truth["annotations"]:
        height, width = annotation["segmentation"]["size"]
        mask = decode_rle(annotation["segmentation"]["counts"], height, width)
        things.setdefault(annotation["image_id"], []).append(Thing(names[annotation["category_id"]], mask))
    images = [image for image in truth["images"] if image["split"] == "test"][:count]
    return [Scene(FIXTURE / image["file_name"], tuple(things.get(image["id"], ()))) for image in images]


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks of one size."""
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 0.0

"""A small world whose truth is known by construction."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from evaluation.dataset import Dataset
from evaluation.loaders import load_coco

NAMES = ("square", "disc", "bar", "cross", "ring", "star")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def paint(height, width, rows, columns):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[rows, columns] = 1
    return mask


@pytest.fixture
def world(tmp_path) -> Dataset:
    """Six images of 60 x 80 with two things each; the names repeat across images."""
    images, annotations = [], []
    for number in range(6):
        pixels = np.full((60, 80, 3), 200, dtype=np.uint8)
        for slot, category in enumerate((number % 4, (number + 1) % 4)):
            mask = paint(60, 80, slice(10, 40), slice(5 + 40 * slot, 30 + 40 * slot))
            pixels[mask > 0] = (40 * category, 255 - 40 * category, 90)
            packed = coco.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": category + 10,
                    "segmentation": {"size": [60, 80], "counts": packed["counts"].decode()},
                }
            )
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        images.append(
            {
                "id": number,
                "file_name": f"{number}.png",
                "width": 80,
                "height": 60,
                "caption": f"a {NAMES[number % 4]} and a {NAMES[(number + 1) % 4]}",
                "split": "tune" if number < 3 else "test",
            }
        )
    categories = [{"id": index + 10, "name": name} for index, name in enumerate(NAMES)]
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return load_coco(path)

"""Where an outline is on the screen."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator

MARK = (255, 210, 31)


def screenshot(element: Locator) -> NDArray[np.int64]:
    """The element as it is painted, (height, width, 3)."""
    image = Image.open(io.BytesIO(element.screenshot(animations="disabled")))
    return np.asarray(image.convert("RGB")).astype(np.int64)


def marked_box(element: Locator) -> tuple[float, float, float, float]:
    """The box around all highlighter-yellow pixels of an element, in its own CSS pixels."""
    rows, columns = np.nonzero(np.abs(screenshot(element) - MARK).max(axis=2) < 40)
    assert rows.size, "nothing is outlined"
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def expected_box(
    element: Locator, size: tuple[int, int], box: tuple[int, int, int, int]
) -> tuple[float, float, float, float]:
    """Where a box of a letterboxed picture of this (width, height) lies in an element."""
    bounds = element.bounding_box()
    assert bounds is not None
    scale = min(bounds["width"] / size[0], bounds["height"] / size[1])
    left = (bounds["width"] - size[0] * scale) / 2
    top = (bounds["height"] - size[1] * scale) / 2
    return left + box[0] * scale, top + box[1] * scale, left + box[2] * scale, top + box[3] * scale

"""The one rule for points and boxes: finite pixels, on the image that they are about."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regionsearch.errors import invalid
from regionsearch.v1 import types_pb2

Size = tuple[int, int]  # (height, width)
Edges = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max

POINT_TOLERANCE = 1.0  # pixels that a point may lie outside: rounding, and the last row of a scaled view


def check_point(point: Sequence[float], size: Size, field: str) -> None:
    """Refuses a point (x, y) that is not on the image; NaN is nowhere.

    Raises:
        RegionSearchError: INVALID_ARGUMENT that names the image's size.
    """
    height, width = size
    x, y = point
    most = POINT_TOLERANCE
    if not (-most <= x <= width + most and -most <= y <= height + most):
        raise invalid(
            field,
            f"{field} is ({x:g}, {y:g}), which lies outside of the image of {width} x {height} "
            "pixels (after EXIF orientation)",
        )


def read_box(box: types_pb2.Box, field: str) -> Edges:
    """The edges of a box.

    Raises:
        RegionSearchError: INVALID_ARGUMENT where one is not finite, or there is nothing between them.
    """
    edges = (box.x_min, box.y_min, box.x_max, box.y_max)
    if not all(math.isfinite(edge) for edge in edges):
        raise invalid(field, f"{field} has an edge that is not a finite number")
    if box.x_min >= box.x_max or box.y_min >= box.y_max:
        raise invalid(field, f"{field} is empty: x_min < x_max and y_min < y_max are needed, in pixels")
    return edges


def check_box(edges: Edges, size: Size, field: str) -> None:
    """Refuses a box of which no part is on the image; one that is partly outside is clipped by its reader.

    Raises:
        RegionSearchError: INVALID_ARGUMENT that names the image's size.
    """
    height, width = size
    x_min, y_min, x_max, y_max = edges
    if x_min >= width or y_min >= height or x_max <= 0 or y_max <= 0:
        raise invalid(
            field,
            f"{field} lies outside of the image of {width} x {height} pixels (after EXIF orientation)",
        )

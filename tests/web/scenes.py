"""Drawn pictures with known things in them, for the page's tests."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

COLOURS = {"red": (210, 52, 44), "green": (40, 150, 80), "blue": (46, 92, 200), "orange": (240, 140, 30)}
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Thing:
    """Something in a picture: its name and its mask, bool (height, width) of the upright picture."""

    name: str
    mask: NDArray[np.bool_]

    @property
    def box(self) -> tuple[int, int, int, int]:
        rows, columns = np.nonzero(self.mask)
        return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1

    @property
    def centre(self) -> tuple[float, float]:
        rows, columns = np.nonzero(self.mask)
        return float(columns.mean()), float(rows.mean())


@dataclass(frozen=True)
class Scene:
    """A picture file and the things in it."""

    name: str
    data: bytes
    width: int
    height: int
    things: tuple[Thing, ...]


def scene(
    name: str,
    width: int,
    height: int,
    things: list[tuple[str, str, tuple[int, int, int, int]]],
    *,
    turned: bool = False,
) -> Scene:
    """Draws a picture.

    Args:
        name: File name.
        width: Width of the upright picture.
        height: Height of the upright picture.
        things: (colour, "circle" or "square", box).
        turned: The file stores the picture on its side and says so in EXIF, as phones do.
    """
    image = Image.new("RGB", (width, height), (226, 221, 210))
    draw = ImageDraw.Draw(image)
    for line in range(0, height, 24):
        draw.line((0, line, width, line), fill=(216, 210, 198))
    found = []
    for colour, shape, box in things:
        mask = Image.new("1", (width, height))
        for canvas, fill in ((draw, COLOURS[colour]), (ImageDraw.Draw(mask), 1)):
            (canvas.ellipse if shape == "circle" else canvas.rectangle)(box, fill=fill)
        found.append(Thing(f"{colour} {shape}", np.asarray(mask)))
    out = io.BytesIO()
    if turned:
        exif = Image.Exif()
        exif[_ORIENTATION] = 6  # to be shown, turn it a quarter clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(out, "JPEG", quality=95, exif=exif)
    else:
        image.save(out, "PNG")
    return Scene(name, out.getvalue(), width, height, tuple(found))


def library() -> list[Scene]:
    """The pictures that are there from the start."""
    return [
        scene(
            "table.png",
            480,
            320,
            [("red", "circle", (60, 80, 200, 220)), ("blue", "square", (290, 120, 420, 250))],
        ),
        scene(
            "tall.png",
            300,
            620,
            [("green", "circle", (70, 360, 230, 520)), ("red", "square", (40, 60, 150, 170))],
        ),
        scene(
            "phone.jpg",
            360,
            540,
            [("orange", "circle", (40, 40, 170, 170)), ("blue", "circle", (180, 330, 330, 480))],
            turned=True,
        ),
        scene(
            "wide.png",
            900,
            300,
            [("green", "square", (90, 70, 250, 230)), ("orange", "square", (600, 90, 780, 240))],
        ),
    ]

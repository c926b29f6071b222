"""Procedural coloured shapes ("red circle", "teal ring"): things whose name is a colour and a form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 160, 70),
    "blue": (45, 95, 215),
    "purple": (130, 65, 185),
    "pink": (245, 135, 180),
    "brown": (125, 80, 45),
    "black": (30, 30, 32),
    "white": (245, 245, 245),
    "gray": (135, 138, 142),
    "turquoise": (55, 195, 190),
}

_UNIT = np.linspace(0, 2 * np.pi, 65)[:-1]


def _polygon(corners: int, turn: float = -np.pi / 2) -> npt.NDArray[np.float64]:
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _cross(arm: float = 0.34) -> npt.NDArray[np.float64]:
    a = arm
    outline = [
        (-a, -1),
        (a, -1),
        (a, -a),
        (1, -a),
        (1, a),
        (a, a),
        (a, 1),
        (-a, 1),
        (-a, a),
        (-1, a),
        (-1, -a),
        (-a, -a),
    ]
    return np.array(outline, np.float64)


_CIRCLE = np.stack([np.cos(_UNIT), np.sin(_UNIT)], 1)
_HEART = np.stack(
    [
        np.sin(_UNIT) ** 3,
        -(13 * np.cos(_UNIT) - 5 * np.cos(2 * _UNIT) - 2 * np.cos(3 * _UNIT) - np.cos(4 * _UNIT)) / 16,
    ],
    1,
)

FORMS: dict[str, npt.NDArray[np.float64]] = {
    "circle": _CIRCLE,
    "ring": _CIRCLE,
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64) * 0.85,
    "triangle": _polygon(3),
    "hexagon": _polygon(6),
    "star": np.concatenate(
        [_polygon(5)[:, None], 0.42 * _polygon(5, -np.pi / 2 + np.pi / 5)[:, None]], 1
    ).reshape(-1, 2),
    "cross": _cross(),
    "heart": _HEART,
}

NAMES: tuple[str, ...] = tuple(f"{colour} {form}" for form in FORMS for colour in COLOURS)


def draw_shape(name: str, rng: np.random.Generator, side: int = 128) -> npt.NDArray[np.uint8]:
    """Draws one shape of :data:`NAMES` with a slight change of hue and a soft shading.

    Args:
        name: colour and form.
        rng: source of the variation.
        side: width and height of the image in pixels.

    Returns:
        uint8 RGBA, side × side × 4.
    """
    colour, form = name.split(" ")
    stretch = rng.uniform(0.88, 1.0, 2)
    outline = (FORMS[form] * stretch * 0.98 + 1) * side
    alpha = Image.new("L", (2 * side, 2 * side))
    pen = ImageDraw.Draw(alpha)
    pen.polygon([tuple(point) for point in outline.tolist()], fill=255)
    if form == "ring":
        hole = (FORMS[form] * stretch * rng.uniform(0.5, 0.65) + 1) * side
        pen.polygon([tuple(point) for point in hole.tolist()], fill=0)
    rgb = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 9, 3), 0, 255)
    slope = rng.uniform(-0.18, 0.18, 2)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    shade = 1 + slope[0] * x + slope[1] * y
    pixels = np.empty((side, side, 4), np.uint8)
    pixels[..., :3] = np.clip(shade[..., None] * rgb, 0, 255)
    pixels[..., 3] = np.asarray(alpha.resize((side, side), Image.Resampling.BOX))
    return pixels

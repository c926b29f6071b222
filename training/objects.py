"""Drawings as if they had been photographed: their own colours under the texture and light of photographs.

What a photographed object shows inside is no guide to where it ends: labels, seams, patterns and parts of
other materials. A piece of a photograph in the outline of a drawing has a random inside; here the inside is
that of an object, in many colours, and still one object.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from training.backgrounds import draw_photograph

SIDE = 256  # pixels of the longer side of an object, so that its texture is finer than the drawing

_PARTS = 4  # of different material in one object, at most
_PATCHED = 0.35  # of the objects have a patch of another material, as a label or a stain
_MATERIAL = 0.25  # of the parts show a photograph instead of the drawing

Pixels = npt.NDArray[np.float32]


def photograph(
    rng: np.random.Generator, drawing: npt.NDArray[np.uint8], photographs: tuple[str, ...]
) -> Image.Image:
    """Gives a drawing the look of a photographed object.

    Args:
        rng: source of the variation.
        drawing: uint8 RGBA (height, width, 4).
        photographs: files that textures are taken from, see :mod:`training.backgrounds`.

    Returns:
        RGBA, `SIDE` pixels on its longer side.
    """
    image = Image.fromarray(drawing)
    factor = SIDE / max(image.size)
    image = image.resize(
        (max(4, round(image.width * factor)), max(4, round(image.height * factor))), Image.Resampling.BICUBIC
    )
    rgba = np.asarray(image, np.float32)
    parts = _parts(rng, image)
    rgb = _muted(rng, rgba[..., :3])
    out = np.empty_like(rgb)
    for part in np.unique(parts).tolist():
        inside = parts == part
        out[inside] = _material(rng, rgb, photographs)[inside]
    return lit(rng, out, np.asarray(image)[..., 3])


def lit(rng: np.random.Generator, rgb: npt.NDArray[np.floating], alpha: npt.NDArray[np.uint8]) -> Image.Image:
    """Shades pixels as if what they show were round, and softens the outline.

    Args:
        rng: source of the variation.
        rgb: 0 … 255 (height, width, 3).
        alpha: uint8 (height, width).
    """
    outline, side = Image.fromarray(alpha), max(alpha.shape)
    rounded = np.asarray(outline.filter(ImageFilter.GaussianBlur(0.12 * side)), np.float32)
    down, right = rng.normal(0, 1, 2)
    slope = down * np.gradient(rounded, axis=0) + right * np.gradient(rounded, axis=1)
    light = slope[..., None] / (np.abs(slope).max() + 1e-6)
    rgb = rgb * rng.uniform(0.75, 1.2) + rng.uniform(0, 70) * light
    soft = np.asarray(outline.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8))))
    return Image.fromarray(np.dstack([np.clip(rgb, 0, 255).astype(np.uint8), soft]))


def _parts(rng: np.random.Generator, image: Image.Image) -> npt.NDArray[np.uint8]:
    """Numbers of the parts that differ in material: by the drawing's colours, and a patch across them."""
    colours = image.convert("RGB").quantize(int(rng.integers(1, _PARTS + 1)))
    parts = np.asarray(colours).copy()
    if rng.random() < _PATCHED:
        patch = Image.new("L", image.size)
        middle = rng.uniform(0.2, 0.8, 2) * image.size
        reach = rng.uniform(0.12, 0.4, 2) * max(image.size)
        box = (*(middle - reach).tolist(), *(middle + reach).tolist())
        pen = ImageDraw.Draw(patch)
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=255)
        turned = patch.rotate(rng.uniform(-40, 40), center=tuple(middle.tolist()))
        parts[np.asarray(turned) > 127] = _PARTS
    return parts


def _muted(rng: np.random.Generator, rgb: Pixels) -> Pixels:
    """Colours less vivid than drawings have them."""
    grey = rgb.mean(-1, keepdims=True)
    muted: Pixels = (grey + rng.uniform(0.45, 1.0) * (rgb - grey)).astype(np.float32)
    return muted * rng.uniform(0.9, 1.1, 3).astype(np.float32)


def _material(rng: np.random.Generator, rgb: Pixels, photographs: tuple[str, ...]) -> Pixels:
    """The pixels under the texture of a photograph, or the photograph under their light and dark."""
    height, width = rgb.shape[:2]
    photo = draw_photograph(rng, height, width, photographs)
    light = photo.mean(-1, keepdims=True)
    texture = light / (light.mean() + 1e-3) - 1
    if rng.random() < _MATERIAL:
        own = rgb.mean(-1, keepdims=True) / 255
        shaded: Pixels = photo * (1 + rng.uniform(0.2, 0.8) * (own - own.mean()))
        return shaded
    strength, tint = rng.uniform(0.15, 0.9), rng.uniform(0, 0.6)
    textured: Pixels = rgb * (1 + strength * texture).clip(0.1, 2.2) + tint * (photo - light)
    return textured

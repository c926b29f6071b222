"""From the modes and depths that files have to one: 8 bits of sRGB."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from regionsearch.images.colour import ToSrgb, to_srgb
from regionsearch.images.container import DamagedError

STRIP_PIXELS = 1 << 18  # that are converted at once: a large image is in memory twice, not five times
_WHITES = tuple((1 << bits) - 1 for bits in (8, 10, 12, 14, 16))  # of what 16-bit files are used for
_LOWER = {  # of each way in which Pillow reads the upper halves of 16 bits, the one that reads the lower ones
    ";16B": ";16L",
    ";16L": ";16B",
    ";16N": ";16B" if sys.byteorder == "little" else ";16L",
}


def is_deep_colour(image: Image.Image) -> bool:
    """Whether Pillow is going to read only the upper halves of an image's colours."""
    return image.mode in ("RGB", "RGBA") and any(_depth_of(tile) in _LOWER for tile in _tiles(image))


def is_dark(image: Image.Image) -> bool:
    """Whether the upper halves of 16-bit colours leave room for a smaller depth."""
    return max(most for _, most in cast("list[tuple[int, int]]", image.getextrema())[:3]) << 8 < _WHITES[-2]


def read_lower_halves(image: Image.Image) -> None:
    """Has an image that is not read yet give the lower halves of its 16-bit colours."""
    tiles = [tile._replace(args=_lower(tile.args)) for tile in _tiles(image)]
    cast(ImageFile.ImageFile, image).tile = tiles


def scale_to_white(upper: Image.Image, lower: Image.Image) -> None:
    """Scales 16-bit colours, given as two halves, to 8 bits; the result takes the place of the upper halves.

    An alpha channel of the same depth is scaled with them.
    """

    def strips() -> Iterator[tuple[int, NDArray[np.uint32]]]:
        rows = max(1, STRIP_PIXELS // upper.width)
        for top in range(0, upper.height, rows):
            box = (0, top, upper.width, min(top + rows, upper.height))
            high, low = (np.asarray(half.crop(box), np.uint32) for half in (upper, lower))
            yield top, np.asarray(high << 8 | low, np.uint32)

    used = np.max([values.max((0, 1)) for _, values in strips()], axis=0)
    white = _white_of(int(used[:3].max()))
    whites = np.array([white] * 3 + [white if used[-1] == white else _WHITES[-1]], np.uint32)[: len(used)]
    for top, values in strips():
        upper.paste(Image.fromarray(((values * 255 + whites // 2) // whites).astype(np.uint8)), (0, top))


def _tiles(image: Image.Image) -> list[ImageFile._Tile]:
    return cast(ImageFile.ImageFile, image).tile


def _depth_of(tile: ImageFile._Tile) -> str:
    name = tile.args[0] if isinstance(tile.args, tuple) else tile.args
    _, separator, depth = str(name).partition(";")
    return separator + depth


def _lower(args: tuple[Any, ...] | str | None) -> tuple[Any, ...] | str:
    if isinstance(args, tuple):
        return (_lower(args[0]), *args[1:])
    mode, depth = str(args).split(";")
    return mode + _LOWER[f";{depth}"]


def _white_of(used: int) -> int:
    """The largest value of the depth that an image of 16 bits uses: many hold 12."""
    return next(white for white in _WHITES if used <= white)


class SrgbConverter:
    """From the pixels of a decoded image, strip by strip, to RGB or RGBA in sRGB.

    Args:
        image: Decoded.
        profile: ICC profile of its colours, empty for sRGB.
        inverted: Zero is white.

    Raises:
        DamagedError: More bits than an image has.
    """

    def __init__(self, image: Image.Image, profile: bytes, inverted: bool) -> None:
        if image.mode in ("F", "I"):  # nobody says which value is white
            raise DamagedError("32 bits a channel; convert it to 8 or 16")
        self._deep = image.mode.startswith("I;16")
        self._inverted = inverted
        self._largest = self._white(image) if self._deep else 255
        grey = self._deep or image.mode in ("1", "L", "LA", "La")
        self._base = "L" if grey else image.mode if image.mode in ("CMYK", "LAB") else "RGB"
        self._to_srgb: ToSrgb | None = to_srgb(profile, self._base)

    def __call__(self, strip: Image.Image) -> Image.Image:
        """RGB, or RGBA where something is transparent."""
        if self._deep:
            return self._deepened(strip)
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            if self._to_srgb is None:
                return strip
            colours = self._to_srgb(strip.convert(self._base))
            colours.putalpha(strip.getchannel("A"))
            return colours
        return self._coloured(strip)

    def _coloured(self, strip: Image.Image) -> Image.Image:
        if self._to_srgb is None:
            return strip.convert("RGB")
        return self._to_srgb(strip.convert(self._base))

    def _deepened(self, strip: Image.Image) -> Image.Image:
        deep = np.asarray(strip).astype(np.uint32)
        grey = ((deep * 255 + self._largest // 2) // self._largest).astype(np.uint8)
        shown = self._coloured(Image.fromarray(255 - grey if self._inverted else grey))
        if "transparency" in strip.info:  # one grey that stands for nothing
            nothing = deep == strip.info["transparency"]
            shown.putalpha(Image.fromarray(np.where(nothing, 0, 255).astype(np.uint8)))
        return shown

    @staticmethod
    def _white(image: Image.Image) -> int:
        rows = max(1, STRIP_PIXELS // image.width)
        used = max(
            int(np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))).max())
            for top in range(0, image.height, rows)
        )
        return _white_of(used)


def on_white(strip: Image.Image) -> Image.Image:
    """RGB of an RGB or RGBA image."""
    if strip.mode == "RGB":
        return strip
    white = Image.new("RGBA", strip.size, "white")
    return Image.alpha_composite(white, strip).convert("RGB")

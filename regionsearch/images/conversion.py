"""From the modes and depths that files have to one: 8 bits of sRGB."""

from __future__ import annotations

import numpy as np
from PIL import Image

from regionsearch.images.colour import ToSrgb, to_srgb
from regionsearch.images.limits import DamagedError

STRIP_PIXELS = 1 << 18  # that are converted at once: a large image is in memory twice, not five times
_WHITES = tuple((1 << bits) - 1 for bits in (8, 10, 12, 14, 16))  # of what 16-bit files are used for


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
        """The largest value that the depth allows which the image uses: many 16-bit files hold 12 bits."""
        rows = max(1, STRIP_PIXELS // image.width)
        used = max(
            int(np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))).max())
            for top in range(0, image.height, rows)
        )
        return next(white for white in _WHITES if used <= white)


def on_white(strip: Image.Image) -> Image.Image:
    """RGB of an RGB or RGBA image."""
    if strip.mode == "RGB":
        return strip
    white = Image.new("RGBA", strip.size, "white")
    return Image.alpha_composite(white, strip).convert("RGB")

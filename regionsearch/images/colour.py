"""Colours as a viewer shows them: through the file's ICC profile to sRGB."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageCms

from regionsearch.images.profiles import MAX_BYTES

ToSrgb: TypeAlias = "Callable[[Image.Image], Image.Image]"
"""Turns an image of the mode that it was made for into RGB."""

_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}
_SAME = 2  # levels of 256; profiles of sRGB differ by rounding
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def to_srgb(profile: bytes, mode: str) -> ToSrgb | None:
    """How the colours of a profile become sRGB.

    None when they are sRGB already, and when the profile is broken, too large or of another kind of colours:
    then the numbers are taken as they are.

    Args:
        profile: ICC profile.
        mode: Of the pixels: RGB, L, CMYK or LAB.
    """
    if (
        not profile
        or len(profile) > MAX_BYTES
        or mode not in _SPACES
        or profile[16:20] != _SPACES[mode].encode()
    ):
        return None
    return _to_srgb(profile, mode)


@functools.lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ToSrgb | None:
    if b"mpet" in profile:  # chains of any length that are gone through for each colour
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB")
        convert = functools.partial(_apply, transform)
        return None if mode in ("RGB", "L") and _changes_nothing(convert, mode) else convert
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # as it is not in place
    return converted


def _changes_nothing(convert: ToSrgb, mode: str) -> bool:
    """Whether a profile is sRGB, whatever it calls itself."""
    if mode == "L":
        sample = np.arange(256, dtype=np.uint8)[None]
        plain = np.repeat(sample[..., None], 3, axis=2)
    else:
        levels = np.linspace(0, 255, 9).astype(np.uint8)
        sample = plain = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    shown = np.asarray(convert(Image.fromarray(sample)))
    return int(np.abs(shown.astype(int) - plain).max()) <= _SAME

"""Colours as a viewer shows them: through the file's ICC profile, or one made for a named colour space."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

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
        mode: Mode of the pixels: RGB, L, CMYK or LAB.
    """
    if (
        not profile
        or len(profile) > MAX_PROFILE_BYTES
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


MAX_PROFILE_BYTES = 2 << 20
"""Of a profile; larger ones are ignored, as broken ones are. Those of printing presses take some 2 MB."""

XY: TypeAlias = "tuple[float, float]"
Matrix = NDArray[np.float64]

_D65: XY = (0.3127, 0.329)
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_CURVE_POINTS = 4096
_WHITE_NITS = 203.0  # what diffuse white is in HDR (ITU-R BT.2408); brighter than white is cut off


@dataclass(frozen=True)
class Primaries:
    """Chromaticities of white and of the primary colours."""

    white: XY
    red: XY
    green: XY
    blue: XY

    def near(self, other: Primaries) -> bool:
        """Whether they look the same."""
        mine, theirs = ((p.white, p.red, p.green, p.blue) for p in (self, other))
        return bool(np.allclose(mine, theirs, atol=0.003))

    def to_d50(self) -> Matrix:
        """The matrix from linear RGB to XYZ under D50, as profiles have it.

        Raises:
            ValueError: These are no colours.
        """
        if any(y <= 0 for _, y in (self.white, self.red, self.green, self.blue)):
            raise ValueError("a chromaticity has no y")
        white = _xyz(self.white)
        colours = np.stack([_xyz(self.red), _xyz(self.green), _xyz(self.blue)], axis=1)
        try:
            matrix = colours * np.linalg.solve(colours, white)
            cones = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
        except np.linalg.LinAlgError as error:
            raise ValueError("the primaries lie on a line") from error
        adapted: Matrix = np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ matrix
        return adapted


SRGB_PRIMARIES = Primaries(_D65, (0.64, 0.33), (0.3, 0.6), (0.15, 0.06))
_PRIMARIES = {  # code points of ITU-T H.273
    1: SRGB_PRIMARIES,
    5: Primaries(_D65, (0.64, 0.33), (0.29, 0.6), (0.15, 0.06)),
    6: Primaries(_D65, (0.63, 0.34), (0.31, 0.595), (0.155, 0.07)),
    7: Primaries(_D65, (0.63, 0.34), (0.31, 0.595), (0.155, 0.07)),
    9: Primaries(_D65, (0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),
    11: Primaries((0.314, 0.351), (0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    12: Primaries(_D65, (0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
}
_VIDEO = frozenset({1, 6, 14, 15})  # shown with sRGB's curve, as browsers do
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_SRGB_CURVE, _PQ, _HLG = 13, 16, 18


@functools.lru_cache(maxsize=64)
def of_code_points(primaries: int, transfer: int, grey: bool) -> bytes:
    """The profile of a cICP chunk or a box ``colr``; empty for sRGB and for what is unknown.

    Args:
        primaries: Number of ITU-T H.273.
        transfer: Number of the transfer function.
        grey: Whether the image has no colours.
    """
    space = _PRIMARIES.get(primaries)
    like_srgb = transfer == _SRGB_CURVE or transfer in _VIDEO
    if space is None or (space is SRGB_PRIMARIES and like_srgb):
        return b""
    x = np.linspace(0, 1, _CURVE_POINTS)
    if like_srgb:
        light = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    elif transfer in _GAMMAS:
        light = x ** _GAMMAS[transfer]
    elif transfer == _PQ:
        power = x ** (1 / 78.84375)
        light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        light = light * 10_000 / _WHITE_NITS
    elif transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(x <= 0.5, x * x / 3, (np.exp((x - c) / a) + b) / 12) * 1000 / _WHITE_NITS
    else:
        return b""
    return _profile(space, _table(light), grey)


@functools.lru_cache(maxsize=64)
def of_gamma(gamma: float, primaries: Primaries, grey: bool) -> bytes:
    """The profile of PNG's chunks gAMA and cHRM; empty for numbers that mean no colours."""
    if not 0.1 <= gamma <= 10:
        return b""
    return _profile(primaries, _table(np.linspace(0, 1, _CURVE_POINTS) ** gamma), grey)


def _xyz(xy: XY) -> Matrix:
    x, y = xy
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _table(light: Matrix) -> bytes:
    values = np.rint(np.clip(light, 0, 1) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", values.size) + values.tobytes()


def _profile(primaries: Primaries, curve: bytes, grey: bool) -> bytes:
    """A profile of version 2 with a matrix, or for grey with nothing but the curve."""
    try:
        red, green, blue = (_fixed(column) for column in primaries.to_d50().T)
    except (ValueError, OverflowError, struct.error):
        return b""
    white = _fixed(_D50)
    tags = {b"wtpt": white, b"kTRC": curve}
    if not grey:
        tags = {b"wtpt": white, b"rXYZ": red, b"gXYZ": green, b"bXYZ": blue} | dict.fromkeys(
            (b"rTRC", b"gTRC", b"bTRC"), curve
        )
    bodies = dict.fromkeys(tags.values(), 0)  # each once
    place = 128 + 4 + 12 * len(tags)
    for body in bodies:
        bodies[body] = place
        place += len(body)
    index = b"".join(struct.pack(">4sII", name, bodies[body], len(body)) for name, body in tags.items())
    header = struct.pack(
        ">I4sI4s4s4s", place, b"\0" * 4, 0x02400000, b"mntr", b"GRAY" if grey else b"RGB ", b"XYZ "
    )
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + white[8:] + b"\0" * 48
    return header + struct.pack(">I", len(tags)) + index + b"".join(bodies)


def _fixed(xyz: Matrix) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(value) * 65536) for value in xyz))

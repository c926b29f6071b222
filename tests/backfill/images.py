"""Images that are quick to segment, made on the spot: each one different."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw


def drawn(number: int, side: int = 64) -> bytes:
    """A PNG of a few shapes on a plain background."""
    random = np.random.default_rng(number)
    image = Image.new("RGB", (side, side), tuple(int(c) for c in random.integers(0, 255, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y = (int(c) for c in random.integers(0, side // 2, 2))
        size = int(random.integers(side // 4, side // 2))
        draw.ellipse((x, y, x + size, y + size), fill=tuple(int(c) for c in random.integers(0, 255, 3)))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()

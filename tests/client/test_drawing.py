"""Hits outlined in an image by the client."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from regionsearch.client import Box, Hit, HitImage, Mask
from regionsearch.client.drawing import COLOUR, outline
from regionsearch.images import ImageLimits, Pixels
from regionsearch.masks import encode_rle
from tests.hostile.image_files import save


def test_an_outline_has_no_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may let larger images in than this client's default."""
    seen: list[ImageLimits] = []

    def decode(data: bytes, limits: ImageLimits) -> Pixels:
        seen.append(limits)
        return np.zeros((9, 9, 3), np.uint8)

    monkeypatch.setattr("regionsearch.client.drawing.decode_image", decode)
    hit = Hit(
        rank=1, score=1, image_id="a", region_id=None, label=None, level="image", area=81,
        box=Box(x_min=0, y_min=0, x_max=9, y_max=9),
        image=HitImage(width=9, height=9, name="a", tags=()),
    )  # fmt: skip
    assert outline(b"an image", hit)
    assert min(seen[0].max_bytes, seen[0].max_pixels) > 10**12


def test_an_outline_surrounds_the_mask_and_leaves_it_alone() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:20, 15:30] = True
    hit = Hit(
        rank=1,
        score=1,
        image_id="a",
        region_id="a-r000",
        label=None,
        area=150,
        level="region",
        box=Box(x_min=15, y_min=10, x_max=30, y_max=20),
        mask=Mask(size=(40, 60), counts=encode_rle(mask)),
        image=HitImage(width=60, height=40, name="a", tags=()),
    )
    for one in (hit, hit.model_copy(update={"mask": None})):
        with Image.open(io.BytesIO(outline(save(Image.new("RGB", (60, 40)), "PNG"), one))) as image:
            drawn = np.asarray(image)
        assert not drawn[mask].any()
        assert (drawn[10:20, 14] == COLOUR).all()
        assert (drawn[9, 15:30] == COLOUR).all()
        assert (drawn[10:20, 30] == COLOUR).all()
        assert not drawn[:5].any()

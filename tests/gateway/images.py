"""Adding images and opening answers, for tests."""

from __future__ import annotations

import io
from typing import Any

import httpx
from PIL import Image

from tests.gateway.conftest import Running, add


def stored(gateway: Running, collection: str, data: bytes, name: str = "a.png") -> str:
    """The URL of an image that was just added."""
    (result,) = add(gateway, collection, (name, data))
    assert result["outcome"] == "created", result
    return f"/v1/collections/{collection}/images/{result['image_id']}"


def opened(response: httpx.Response) -> Image.Image:
    assert response.status_code == 200, response.text
    image = Image.open(io.BytesIO(response.content))
    image.load()
    return image


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()

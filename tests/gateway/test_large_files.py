"""A file over the limit stays on disk."""

from __future__ import annotations

import pytest
from starlette.datastructures import UploadFile

from tests.gateway.conftest import RED, World, add, scene


def test_a_file_that_is_too_large_is_not_read_into_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = world.gateway(limits={"max_image_bytes": 5_000})
    read: list[str | None] = []
    original = UploadFile.read

    async def noted(file: UploadFile, size: int = -1) -> bytes:
        read.append(file.filename)
        return await original(file, size)

    monkeypatch.setattr(UploadFile, "read", noted)
    large, small = add(gateway, "default", ("large.png", bytes(6_000)), ("small.png", scene(RED)))
    assert large["error"]["code"] == "TOO_LARGE"
    assert "6000 bytes" in large["error"]["detail"]
    assert small["outcome"] in ("created", "duplicate")
    assert read == ["small.png"]

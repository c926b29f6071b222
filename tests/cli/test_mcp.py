"""The tools of `regionsearch mcp`, called over stdio as an assistant does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.client.fakes import FakeGateway

mcp = pytest.importorskip("mcp")


async def test_an_assistant_can_use_a_collection(gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"an image")
    gateway.confident = [True]
    server = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "regionsearch.cli", "mcp", "--url", gateway.http],
        env={"PYTHONPATH": os.environ.get("PYTHONPATH", os.getcwd()), "PATH": os.environ["PATH"]},
    )
    async with mcp.Client(server) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert tools == {
            "search", "search_within", "segment", "ingest", "list_collections", "list_images", "show_image",
        }  # fmt: skip

        async def call(name: str, **arguments: object) -> object:
            answer = await client.call_tool(name, arguments)
            assert not answer.is_error, answer.content
            return (answer.structured_content or {}).get("result")

        (hit,) = await call("search", phrases=["red mug"])
        assert (hit["region_id"], hit["confident"], hit["box"]["x_max"]) == ("r1", True, 2.0)
        (found,) = await call("search_within", phrases=["mug"], image_id="a" * 64)
        assert found["label"] == "mug"
        (result,) = await call("ingest", paths=[str(tmp_path)])
        assert (result["name"], result["outcome"]) == ("a.png", "created")
        assert await call("list_collections") == [{"name": "default", "images": 3}]
        assert (await client.call_tool("list_images", {})).structured_content["total"] == 3
        wrong = await client.call_tool("segment", {"image_id": "a" * 64, "x": 3})
        assert wrong.is_error
        assert "x and y" in wrong.content[0].text

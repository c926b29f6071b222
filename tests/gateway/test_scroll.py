"""Walks by filter, counts, facets and filtered lists: over HTTP and gRPC, from client and command line."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from regionsearch.cli import app
from regionsearch.client import AsyncClient, Client, StoredRecord
from regionsearch.errors import RegionSearchError
from tests.gateway.conftest import BLUE, RED, Running, add, scene


@pytest.fixture(scope="module")
def tagged(shared_gateway: Running) -> str:
    """A collection of four images, every other one tagged `even`, all of them with a `shelf`."""
    name = "scroll-tests"
    shared_gateway.http.post("/v1/collections", json={"name": name})
    for number in range(4):
        image = scene((f"#{number}00000", (0, 0, 20, 20)), RED, BLUE)
        (one,) = add(shared_gateway, name, (f"{number}.png", image))
        change = {"tags": ["even"] if number % 2 == 0 else [], "attributes": {"shelf": str(number // 3)}}
        shared_gateway.http.patch(f"/v1/collections/{name}/images/{one['image_id']}", json=change)
    return name


def test_both_transports_walk_and_count_alike(gateway: Running, tagged: str) -> None:
    wanted = {"tags": ["even"]}
    with Client(gateway.url) as http, Client(f"grpc://127.0.0.1:{gateway.server.port}") as grpc:
        walks = [
            list(client.records(tagged, filter=wanted, page_size=2, include=["mask"]))
            for client in (http, grpc)
        ]
        assert walks[0] == walks[1]
        facets: list[dict[str, Any]] = [{"tags": True}, {"attribute": "shelf", "limit": 1}]
        counts = [client.count(tagged, level="image", facets=facets) for client in (http, grpc)]
        assert counts[0] == counts[1]
        lists = [list(client.images(tagged, filter=wanted)) for client in (http, grpc)]
        assert lists[0] == lists[1]
        assert http.list_images(tagged, filter=wanted).total_count == 2
        ordered = [
            [one.name for one in client.images(tagged, order_by="attributes.shelf", ascending=ascending)]
            for client in (http, grpc)
            for ascending in (False, True)
        ]
        assert ordered[0] == ordered[2]
        assert ordered[1] == ordered[3] == ordered[0][::-1]
        assert ordered[0][0] == "3.png", "the only one on shelf 1"
        for client in (http, grpc):
            with pytest.raises(RegionSearchError, match="order_by"):
                client.list_images(tagged, order_by="size")
            with pytest.raises(RegionSearchError, match="reserved"):
                client.list_images(tagged, order_by="attributes._idempotency_key")
    assert [one.name for one in lists[0]] == ["2.png", "0.png"]
    assert (counts[0].record_count, counts[0].image_count) == (4, 4)
    assert [[(one.value, one.image_count) for one in facet.values] for facet in counts[0].facets] == [
        [("even", 2)],
        [("0", 3)],
    ]
    assert counts[0].facets[1].value_count == 2
    regions = [one.region_id for one in walks[0] if one.region_id]
    assert len(regions) == len(set(regions)) == len(walks[0]) - 2
    assert {one.image.name for one in walks[0]} == {"0.png", "2.png"}
    assert all((one.mask is None) == (one.level == "image") for one in walks[0])


def test_the_asynchronous_client_walks_too(gateway: Running, tagged: str) -> None:
    async def walked() -> list[StoredRecord]:
        async with AsyncClient(gateway.url) as client:
            return [one async for one in client.records(tagged, level="image", page_size=3)]

    assert [one.image.name for one in asyncio.run(walked())] == ["3.png", "2.png", "1.png", "0.png"]


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("scroll", {"page_token": "made up"}, "/page_token"),
        ("scroll", {"filter": {"attributes": {"_idempotency_key": "x"}}}, "/filter/attributes"),
        ("count", {"facets": [{}]}, "/facets/0"),
        ("count", {"facets": [{"attribute": "_idempotency_key"}]}, "/facets"),
        ("count", {"facets": [{"tags": True, "limit": 1001}]}, "/facets/0/limit"),
    ],
)
def test_mistakes_are_named(
    gateway: Running, tagged: str, path: str, body: dict[str, Any], pointer: str
) -> None:
    answer = gateway.http.post(f"/v1/collections/{tagged}/{path}", json=body)
    assert answer.status_code in (400, 413, 422), answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer
    unknown = gateway.http.post(f"/v1/collections/nowhere/{path}", json={})
    assert unknown.status_code == 404


def test_a_filter_in_the_address_must_be_json(gateway: Running, tagged: str) -> None:
    path = f"/v1/collections/{tagged}/images"
    found = gateway.http.get(path, params={"filter": json.dumps({"tags": ["even"]})}).json()
    assert (len(found["images"]), found["total_count"]) == (2, 2)
    for wrong in ("tags", '{"tag": ["even"]}'):
        refused = gateway.http.get(path, params={"filter": wrong})
        assert refused.status_code in (400, 422), refused.text
        assert refused.json()["errors"][0]["pointer"].startswith("/filter")


def test_the_command_line_scrolls_and_counts(gateway: Running, tagged: str) -> None:
    def run(*arguments: str) -> list[str]:
        result = CliRunner().invoke(app, [*arguments, "-c", tagged, "--url", gateway.url])
        assert result.exit_code == 0, result.output
        # The gateway logs from this process, too.
        return [line for line in result.stdout.splitlines() if "\t" in line or line.startswith("{")]

    assert len(run("scroll", "--level", "image")) == 5  # and the head
    lines = run("scroll", "--tag", "even", "--masks", "--json", "-n", "3")
    assert [json.loads(line)["image"]["tags"] for line in lines] == [["even"]] * 3
    assert "mask" in json.loads(lines[1])
    where = '{"attribute": "shelf", "values": ["1"]}'
    assert run("count", "--level", "image", "--where", where, "--by", "shelf", "--by-tag") == [
        "\tvalue\timages\trecords",
        "\tall\t1\t1",
        "shelf\t1\t1\t1",
    ]
    assert len(run("images", "list", "--where", where)) == 2

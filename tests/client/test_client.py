"""Both clients, over HTTP and gRPC, against a gateway of a few lines: one behaviour, four times."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regionsearch
from regionsearch import AsyncClient, Client
from regionsearch.client import Collection, Hit, Image, IngestResult, NegativeExample
from regionsearch.client.operations import queries
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import search_pb2
from tests.client.fakes import MODEL, PAGES, FakeGateway, HttpHandler

CONDITION = {"any_of": [{"attribute": "taken", "time": {"gte": "2025-11-29T00:00:00Z"}, "negate": True}]}


def test_a_search_sends_its_options_and_returns_hits(use: Callable[..., Any], gateway: FakeGateway) -> None:
    result = use(
        "search",
        ["mug", "cup"],
        "things",
        negatives=["plate"],
        points=[(1, 2), (3, 4, 0)],
        box=(0, 0, 5, 6),
        image=b"image",
        group_by="image",
        filter={"tags": ["t"], "region_ids": ["r1"], "min_area": 3, "conditions": [CONDITION]},
        min_score=0.25,
        page_size=7,
        include=["mask"],
    )
    (hit,) = result
    assert (len(result), result.seq, result.next_page_token) == (1, 7, "")
    assert result[0] is hit
    assert (hit.label, hit.region_id, hit.level, hit.image.name, hit.image.tags) == (
        "mug", "r1", "region", "a", ("t",),
    )  # fmt: skip
    assert (hit.box.x_max, hit.score) == (2.0, 0.5)
    assert hit.mask.to_array().tolist() == [[False, True, False], [True, True, False]]
    asked = gateway.requests[-1]
    if isinstance(asked, tuple):
        method, path, body = asked
        assert (method, path) == ("POST", "/v1/collections/things/search")
        assert body["query"]["texts"] == ["mug", "cup"]
        assert body["query"]["image"] == "aW1hZ2U="
        assert body["query"]["points"] == [{"x": 1, "y": 2}, {"x": 3, "y": 4, "label": 0}]
        assert body["query"]["box"] == {"x_min": 0, "y_min": 0, "x_max": 5, "y_max": 6}
        assert body["filter"] == {
            "tags": ["t"], "region_ids": ["r1"], "min_area": 3, "conditions": [CONDITION]
        }  # fmt: skip
        assert body["group_by"] == "image"
        assert body["include"] == ["mask"]
    else:
        assert asked.collection == "things"
        assert list(asked.query.texts) == ["mug", "cup"]
        assert asked.query.image.encoded == b"image"
        assert [point.label for point in asked.query.points] == [1, 0]
        assert asked.query.box.y_max == 6
        assert list(asked.filter.region_ids) == ["r1"]
        assert asked.filter.min_area == 3
        test = asked.filter.conditions[0].any_of[0]
        assert (test.attribute, test.time.gte.seconds, test.negate) == ("taken", 1_764_374_400, True)
        assert asked.group_by == search_pb2.GROUP_BY_IMAGE
        assert asked.level == search_pb2.LEVEL_UNSPECIFIED  # what fits the query
        assert asked.include_masks
        assert asked.min_score == 0.25
        assert not asked.HasField("relative_cutoff")


def test_a_search_within_an_image_returns_its_regions(use: Callable[..., Any]) -> None:
    found = use("within", "mug", image=b"image")
    (region,) = found.hits
    assert (found.width, found.height, region.label, region.area) == (3, 2, "mug", 3)
    assert found.union_mask.to_array().shape == (2, 3)


def test_within_needs_one_image(use: Callable[..., Any], gateway: FakeGateway) -> None:
    for images in ({}, {"image": b"x", "image_id": "y"}):
        with pytest.raises(RegionSearchError) as caught:
            use("within", "mug", **images)
        assert caught.value.kind is Kind.INVALID_ARGUMENT
    assert gateway.requests == []


def test_ingest_keeps_order_and_failures_alone(use: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"one")
    sources = [tmp_path / "one.png", ("two", b"two"), b"bad image", tmp_path / "none.png", b"two"]
    seen: list[IngestResult] = []
    results = use("ingest", iter(sources), tags=["t"], at_once=1, on_result=seen.append)
    assert [(result.name, result.outcome) for result in results] == [
        ("one.png", "created"),
        ("two", "created"),
        ("image", "failed"),
        ("none.png", "failed"),
        ("image", "duplicate"),
    ]
    assert results[2].error.code == "UNSUPPORTED_IMAGE"
    assert "none.png" in results[3].error.detail
    assert seen == results


def test_ingest_in_parallel_keeps_order(use: Callable[..., Any]) -> None:
    sources = [(f"{number}", b"%d" % number) for number in range(20)]
    results = use("ingest", sources, at_once=5)
    assert [result.name for result in results] == [name for name, _ in sources]
    assert {result.outcome for result in results} == {"created"}


def test_ingest_takes_sources_as_there_is_room(url: str) -> None:
    taken, done = [], []

    def sources() -> Iterator[bytes]:
        for number in range(12):
            taken.append(number)
            assert len(taken) - len(done) <= 3
            yield b"%d" % number

    with Client(url) as client:
        client.ingest(sources(), at_once=2, on_result=done.append)
    assert len(taken) == len(done) == 12


def test_ingest_stops_at_an_error_common_to_all_images(use: Callable[..., Any], gateway: FakeGateway) -> None:
    gateway.failures = [RegionSearchError(Kind.PERMISSION_DENIED, "the key may only read")] * 3
    with pytest.raises(RegionSearchError, match="may only read") as caught:
        use("ingest", [b"%d" % number for number in range(10)], at_once=1)
    assert caught.value.kind is Kind.PERMISSION_DENIED
    assert gateway.known == set()


def test_all_images_page_by_page(use: Callable[..., Any], gateway: FakeGateway) -> None:
    images = use("images", "things")
    assert [image.name for image in images] == ["a", "b", "c"]
    assert images[0].created_at == "2026-01-01T00:00:00Z"
    assert images[0].tags == ("t",)
    assert len(gateway.requests) == 2


def test_an_image_is_deleted(use: Callable[..., Any], gateway: FakeGateway) -> None:
    assert use("delete_image", "a" * 64, "things") is None
    asked = gateway.requests[-1]
    if isinstance(asked, tuple):
        assert asked[:2] == ("DELETE", f"/v1/collections/things/images/{'a' * 64}")
    else:
        assert (asked.collection, asked.image_id) == ("things", "a" * 64)


def test_numbers_of_numpy_are_numbers(use: Callable[..., Any], gateway: FakeGateway) -> None:
    use("search", "mug", image=b"x", points=[(np.int64(1), np.float32(2))], min_score=np.float32(0.25))
    asked = gateway.requests[-1]
    if isinstance(asked, tuple):
        assert (asked[2]["query"]["points"], asked[2]["min_score"]) == ([{"x": 1, "y": 2.0}], 0.25)
    else:
        assert (asked.query.points[0].y, asked.min_score) == (2.0, 0.25)


def test_the_key_is_sent(use: Callable[..., Any], gateway: FakeGateway) -> None:
    use("search", "mug", api_key="secret")
    headers = gateway.headers[-1]
    assert headers.get("authorization") == "Bearer secret" or headers.get("x-api-key") == "secret"


def test_waiting_for_a_gateway(use: Callable[..., Any]) -> None:
    assert use("wait_ready", 60) is None


def test_what_only_http_offers(gateway: FakeGateway) -> None:
    with Client(gateway.http) as client:
        assert client.render("mug", image=b"image").startswith(b"\x89PNG")
    with Client(gateway.grpc) as client, pytest.raises(RegionSearchError, match="HTTP only") as caught:
        client.render("mug", image=b"image")
    assert caught.value.kind is Kind.UNIMPLEMENTED


@pytest.mark.parametrize("asynchronous", [False, True])
def test_all_collections_page_by_page(
    asynchronous: bool, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def route(handler: HttpHandler, body: bytes) -> tuple[int, Any]:
        names, token = PAGES["next" if "page_token=next" in handler.path else ""]
        facts = {"image_count": 1, "record_count": 2, "created_at": "2026-01-01T00:00:00Z", "model": MODEL}
        return 200, {"collections": [{"name": name, **facts} for name in names], "next_page_token": token}

    async def run() -> tuple[Collection, ...]:
        async with AsyncClient(gateway.http) as client:
            return await client.collections()

    monkeypatch.setattr(HttpHandler, "_route", route)
    if asynchronous:
        found = asyncio.run(run())
    else:
        with Client(gateway.http) as client:
            found = client.collections()
    assert [one.name for one in found] == ["a", "b", "c"]


def test_near_duplicates_are_grouped_behind_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    alike = {"a": "ac", "b": "b", "c": "cad", "d": "dc"}  # d is like c only, which a has taken
    with Client("http://127.0.0.1:9") as client:
        images = [Image.model_construct(image_id=one) for one in "abcd"]
        monkeypatch.setattr(client, "images", lambda *_, **options: iter(images))
        monkeypatch.setattr(
            client,
            "search",
            lambda **asked: [Hit.model_construct(image_id=one) for one in alike[asked["image_id"]]],
        )
        groups = list(client.near_duplicates(similarity=0.9))
    assert [[one.image_id for one in group] for group in groups] == [["a", "c"]]


def test_methods_show_the_operations_arguments() -> None:
    assert (
        inspect.signature(Client.search).parameters.keys()
        == inspect.signature(queries.search).parameters.keys()
    )
    assert (Client.search.__doc__ or "").startswith("Finds regions")
    with Client() as client:
        assert client.search.__doc__ == Client.search.__doc__


def test_the_package_offers_the_clients() -> None:
    assert {"Client", "AsyncClient", "RegionSearchError"} == set(regionsearch.__all__)
    assert regionsearch.RegionSearchError is RegionSearchError
    with pytest.raises(AttributeError):
        _ = regionsearch.Nothing


def test_vectors_are_arrays(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"vectors": [[0.6, 0.8]]}
    monkeypatch.setattr("tests.client.fakes.HttpHandler._route", lambda self, body: (200, answer))
    with Client(gateway.http) as client:
        vectors = client.embed(["mug"])
    assert (vectors.shape, vectors.dtype) == ((1, 2), np.float32)


def test_negatives_are_sent_as_they_are_given(use: Callable[..., Any], gateway: FakeGateway) -> None:
    examples = [
        NegativeExample(region_id="r1"),
        NegativeExample(image=b"image"),
        NegativeExample(image_id="i1"),
    ]
    use("search", "mug", negatives=["plate", *examples])
    use("within", "mug", image_id="i1", negatives=["plate", *examples], min_relevancy=0.25)
    for asked in gateway.requests:
        if isinstance(asked, tuple):
            assert asked[2]["negatives"] == [
                {"text": "plate"}, {"region_id": "r1"}, {"image": "aW1hZ2U="}, {"image_id": "i1"},
            ]  # fmt: skip
        else:
            kinds = [one.WhichOneof("kind") for one in asked.negatives]
            assert kinds == ["text", "region_id", "image", "image_id"]
            assert asked.negatives[0].text == "plate"
            assert asked.negatives[2].image.encoded == b"image"

"""How often services are asked and files are sent, and that what the gateway remembers does not go stale."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from gateway import catalog, reindex
from regionsearch.images import image_from_proto
from regionsearch.v1 import embed_pb2, search_pb2, segment_pb2, types_pb2
from tests.gateway import fakes
from tests.gateway.conftest import BLUE, GREEN, RED, Running, World, add, scene
from tests.gateway.fakes import EMBEDDER, Script
from tests.gateway.fronts import SearcherFront, start_front


class Counting(SearcherFront):
    """Counts what the searcher is asked."""

    def __init__(self, target: str) -> None:
        self.calls: Counter[str] = Counter()
        super().__init__(target)

    def _passing(self, method: Any) -> Any:  # type: ignore[override]
        passing = super()._passing(method)

        async def counted(request: Any, context: Any) -> Any:
            self.calls[type(request).__name__.removesuffix("Request")] += 1
            return await passing(request, context)

        return counted


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, nothing expires within the test, and no collection is looked for."""
    monkeypatch.setattr(catalog, "_REMEMBERED_S", 600.0)
    monkeypatch.setattr(reindex, "_LOOK_S", 600.0)


def other_model() -> types_pb2.ModelInfo:
    model = types_pb2.ModelInfo()
    model.CopyFrom(EMBEDDER)
    model.weights_digest = "f" * 64
    return model


def search(gateway: Running, collection: str, text: str = "red") -> Any:
    body = {"query": {"text": text}, "level": "region", "page_size": 1}
    return gateway.http.post(f"/v1/collections/{collection}/search", json=body)


def test_an_image_is_sent_twice_and_decoded_twice_and_takes_four_calls(
    world: World, script: Script, collection: str, remembering: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decodes = []

    def counted(*arguments: Any, **options: Any) -> Any:
        decodes.append(arguments)
        return image_from_proto(*arguments, **options)

    monkeypatch.setattr(fakes, "image_from_proto", counted)
    server, front = start_front(world, Counting)
    assert isinstance(front, Counting)
    gateway = world.gateway(searcher=f"127.0.0.1:{server.port}")
    for shapes, read_at_first in (([RED, BLUE], 1), ([RED, GREEN], 0), ([], 0)):
        front.calls.clear()
        script.calls.clear()
        script.requests.clear()
        decodes.clear()
        script.model_reads = 0
        data = scene(*shapes)
        (result,) = add(gateway, collection, ("a.png", data))
        assert (result["outcome"], result["regions"]) == ("created", len(shapes))
        expected = {"GetRecords": 1, "Upsert": 1} | ({"GetCollection": 1} if read_at_first else {})
        assert front.calls == expected
        assert script.calls == {"Segment": 1, "EmbedRegions": 1}
        assert script.model_reads == read_at_first
        sent = [
            request
            for request in script.requests
            if isinstance(request, segment_pb2.SegmentRequest | embed_pb2.EmbedRegionsRequest)
            and request.image.encoded == data
        ]
        assert len(sent) == len(decodes) == 2


def test_a_query_takes_two_calls_and_three_when_its_collection_is_new(
    world: World, script: Script, collection: str, remembering: None
) -> None:
    server, front = start_front(world, Counting)
    assert isinstance(front, Counting)
    gateway = world.gateway(searcher=f"127.0.0.1:{server.port}")
    for expected in ({"GetCollection": 1, "Search": 1}, {"Search": 1}):
        front.calls.clear()
        script.calls.clear()
        assert search(gateway, collection).status_code == 200
        assert front.calls == expected
        assert script.calls == {"EmbedTexts": 1}


def test_texts_are_embedded_while_the_collection_is_read(
    world: World, script: Script, collection: str
) -> None:
    class Waiting(SearcherFront):
        """Reads a collection only once texts are being embedded."""

        async def GetCollection(self, request: Any, context: Any) -> search_pb2.GetCollectionResponse:
            while request.name == collection and not script.calls["EmbedTexts"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return await self.real.GetCollection(request)

    server, _ = start_front(world, Waiting)
    gateway = world.gateway(searcher=f"127.0.0.1:{server.port}", timeouts={"query_s": 60})
    assert search(gateway, collection).status_code == 200


@pytest.mark.parametrize("model", ["same", "other"])
def test_a_collection_recreated_by_another_gateway_is_noticed_at_once(
    world: World, gateway: Running, script: Script, collection: str, remembering: None, model: str
) -> None:
    other = world.gateway(image_store=str(gateway.store))
    add(gateway, collection, ("a.png", scene(RED)))
    assert search(gateway, collection).json()["hits"]

    other.http.delete(f"/v1/collections/{collection}").raise_for_status()
    assert search(gateway, collection).status_code == 404
    (result,) = add(gateway, collection, ("a.png", scene(BLUE)))
    assert result["error"]["code"] == "NOT_FOUND"

    other.http.post("/v1/collections", json={"name": collection}).raise_for_status()
    add(gateway, collection, ("c.png", scene(GREEN)))
    assert search(gateway, collection).json()["hits"]
    other.http.delete(f"/v1/collections/{collection}").raise_for_status()
    policy = "blur"
    if model == "other":
        script.model = other_model()
        policy = "bbox"
    body = {"name": collection, "crop_policy": policy}
    other.http.post("/v1/collections", json=body).raise_for_status()
    assert search(gateway, collection).json()["hits"] == []
    assert search(gateway, collection).json()["model"]["weights_digest"] == script.model.weights_digest
    (result,) = add(gateway, collection, ("b.png", scene(RED, GREEN)))
    assert (result["outcome"], result["regions"]) == ("created", 2)
    (hit,) = search(gateway, collection, "lime").json()["hits"]
    assert hit["image_id"] == result["image_id"]


def test_an_image_is_refused_if_the_embedder_changes_its_model_during_ingest(
    world: World, gateway: Running, script: Script, collection: str, remembering: None
) -> None:
    add(gateway, collection, ("a.png", scene(RED)))
    script.model = other_model()
    for segmented in (2, 2):  # the second time the new model is known before the work begins
        (result,) = add(gateway, collection, ("b.png", scene(BLUE)))
        assert result["error"]["code"] == "MODEL_MISMATCH"
        assert script.calls["Segment"] == segmented
    assert gateway.http.get(f"/v1/collections/{collection}").json()["image_count"] == 1

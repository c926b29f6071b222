"""A collection is moved to another model: nothing is segmented again, nothing is lost, searches go on."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from typer.testing import CliRunner, Result

from gateway import reindex
from gateway.settings import GatewaySettings
from regionsearch.cli import app
from regionsearch.client import Client
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import embed_pb2, region_search_pb2, types_pb2
from regionsearch.v1.embed_pb2_grpc import add_EmbedServiceServicer_to_server
from services.searcher.embedded.index import code_training
from tests.gateway.conftest import (
    BLUE,
    GREEN,
    RED,
    GatewayProcess,
    Running,
    World,
    add,
    scene,
    service,
    wait_for,
)
from tests.gateway.fakes import EMBEDDER, FakeEmbedder, FakeSettings, Script, lifespan

NAME = "moving"
SCENES = [(f"{i}.png", scene(RED, BLUE, GREEN, size=(160, 121 + i))) for i in range(9)]


class Other:
    """An embedder of another model, and a gateway that knows both."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.script = Script(model=types_pb2.ModelInfo())
        self.script.model.CopyFrom(EMBEDDER)
        self.script.model.variant, self.script.model.weights_digest = "shades", "f" * 64
        self.server = world.run(
            world.start(
                FakeSettings(),
                service(embed_pb2, "EmbedService"),
                lifespan(add_EmbedServiceServicer_to_server, FakeEmbedder(self.script)),
            )
        )

    def settings(self) -> GatewaySettings:
        return self.world.settings(other_embedder=f"127.0.0.1:{self.server.port}")


@pytest.fixture(scope="module")
def other(world: World) -> Other:
    return Other(world)


@pytest.fixture(scope="module")
def both(world: World, other: Other) -> Running:
    return world.run(world.start_gateway(other.settings()))


@pytest.fixture
def filled(both: Running, script: Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A collection of the first model; the ids of its images."""
    monkeypatch.setattr(reindex, "_LOOK_S", 0.2)
    monkeypatch.setattr(reindex, "_RETRY_S", 0.1)
    both.http.post("/v1/collections", json={"name": NAME, "recall_target": 0.9})
    yield [one["image_id"] for one in add(both, NAME, *SCENES[:6], tags="old")]
    for name in (NAME, NAME + reindex.NEXT, NAME + reindex.PREVIOUS):
        both.http.delete(f"/v1/collections/{name}")


def state(gateway: Any) -> dict[str, Any]:
    return gateway.http.get(f"/v1/collections/{NAME}/reindex").json()


def search(http: httpx.Client, text: str = "red") -> list[dict[str, Any]]:
    asked = {"query": {"text": text}, "level": "region", "page_size": 100}
    response = http.post(f"/v1/collections/{NAME}/search", json=asked)
    assert response.status_code == 200, response.text
    return response.json()["hits"]


def images_found(http: httpx.Client) -> set[str]:
    return {hit["image_id"] for hit in search(http)}


def listing(http: httpx.Client) -> list[dict[str, Any]]:
    """All images; those of one millisecond have no order of their own."""
    images = http.get(f"/v1/collections/{NAME}/images").json()["images"]
    return sorted(images, key=lambda image: (image["created_at"], image["image_id"]))


def test_a_collection_gets_another_model_and_keeps_all_else(
    both: Running, filled: list[str], script: Script, other: Other
) -> None:
    before, hits = listing(both.http), search(both.http)
    segmented = script.calls["Segment"]
    begun = both.http.post(f"/v1/collections/{NAME}/reindex", json={})
    assert begun.status_code == 202
    models = begun.json()["source_model"], begun.json()["target_model"]
    assert [model["variant"] for model in models] == ["colours", "shades"]
    wait_for(lambda: state(both)["state"] == "done")
    assert state(both) | {"source_model": 0, "target_model": 0} == {
        "collection": NAME,
        "state": "done",
        "source_model": 0,
        "target_model": 0,
        "done_image_count": 6,
        "image_count": 6,
        "kept_as": NAME + reindex.PREVIOUS,
        "problem": "",
    }
    assert listing(both.http) == before
    assert script.calls["Segment"] == segmented
    assert both.http.get(f"/v1/collections/{NAME}").json()["model"]["variant"] == "shades"
    embedded = other.script.calls["EmbedTexts"]
    assert search(both.http) == hits
    assert other.script.calls["EmbedTexts"] == embedded + 1, "the new model is asked"
    assert add(both, NAME, SCENES[6])[0]["outcome"] == "created"
    assert both.http.get(f"/v1/collections/{NAME}/images/{filled[0]}/content").status_code == 200
    again = both.http.post(f"/v1/collections/{NAME}/reindex", json={"embedder": "colours"})
    assert again.status_code == 409
    assert "delete 'moving--previous' first" in again.json()["detail"]
    assert both.http.delete(f"/v1/collections/{NAME}--previous").status_code == 204
    assert both.http.get(f"/v1/collections/{NAME}/reindex").status_code == 404
    assert len(images_found(both.http)) == 7


def test_trained_codes_are_trained_again(
    both: Running, filled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_training, "_STEPS", 20)
    add(both, NAME, *((f"{i}.png", scene(RED, BLUE, GREEN, size=(161, 121 + i))) for i in range(12)))
    url = f"/v1/collections/{NAME}"
    trained = both.http.post(f"{url}/codes", json={"method": "learned", "bits": 8})
    assert trained.status_code == 200, trained.text
    assert both.http.post(f"{url}/reindex", json={}).status_code == 202
    wait_for(lambda: state(both)["state"] == "done")
    found = both.http.post(f"{url}/search", json={"query": {"text": "red"}, "codes_only": True})
    assert found.status_code == 200, found.text
    assert found.json()["hits"]


def test_features_go_along(both: Running, script: Script, other: Other, filled: list[str]) -> None:
    name = "moving-shapes"
    both.http.post("/v1/collections", json={"name": name, "segment_features": {"weight": 0.5}})
    add(both, name, SCENES[0])
    before = both.http.get(f"/v1/collections/{name}").json()["model"]
    assert both.http.post(f"/v1/collections/{name}/reindex", json={}).status_code == 202
    wait_for(lambda: both.http.get(f"/v1/collections/{name}/reindex").json()["state"] == "done")
    after = both.http.get(f"/v1/collections/{name}").json()["model"]
    assert after["variant"] == "shades"
    assert (after["features"], after["dimension"]) == (before["features"], before["dimension"])
    asked = {"query": {"image": base64.b64encode(SCENES[0][1]).decode()}, "level": "image"}
    (hit,) = both.http.post(f"/v1/collections/{name}/search", json=asked).json()["hits"]
    assert hit["score"] == pytest.approx(1, abs=1e-3)
    for one in (name, name + reindex.PREVIOUS):
        both.http.delete(f"/v1/collections/{one}")


def test_what_happens_meanwhile_is_not_lost(
    both: Running, filled: list[str], script: Script, other: Other
) -> None:
    """Searches, new images, changed tags and deletions while the images are embedded again."""
    other.script.hold["EmbedRegions"] = both.world.run(_event())
    failures, stop = [], threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=both.url, timeout=60) as http:
            while not stop.is_set():
                try:
                    assert len(images_found(http)) >= 5
                except BaseException as error:
                    failures.append(error)
                    return

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    both.http.post(f"/v1/collections/{NAME}/reindex", json={"embedder": "shades"})
    added = add(both, NAME, *SCENES[6:8])
    patch = both.http.patch(f"/v1/collections/{NAME}/images/{filled[1]}", json={"tags": ["new"]})
    assert patch.status_code == 200
    assert both.http.delete(f"/v1/collections/{NAME}/images/{filled[0]}").status_code == 204
    assert state(both)["state"] == "running"
    both.world.call(other.script.hold.pop("EmbedRegions").set)
    wait_for(lambda: state(both)["state"] == "done")
    stop.set()
    for thread in asking:
        thread.join()
    assert not failures
    there = {image["image_id"]: image["tags"] for image in listing(both.http)}
    expected = {image_id: ["old"] for image_id in filled[2:]} | {filled[1]: ["new"]}
    assert there == expected | {one["image_id"]: [] for one in added}
    assert images_found(both.http) == set(there)


def test_another_gateway_goes_on_where_one_was_killed(
    world: World, both: Running, filled: list[str], script: Script, other: Other
) -> None:
    settings = other.settings().model_copy(update={"image_store": str(both.store)})
    gate = world.run(_event())
    with (
        GatewayProcess(settings, REGIONSEARCH_GATEWAY_OTHER_EMBEDDER=settings.other_embedder) as process,
        httpx.Client(timeout=60) as http,
    ):
        embedded = other.script.calls["EmbedRegions"]
        other.script.hold["EmbedRegions"] = gate
        http.post(f"{process.url}/v1/collections/{NAME}/reindex", json={})
        wait_for(lambda: other.script.calls["EmbedRegions"] > embedded)
        process.kill()
        assert state(both)["state"] == "running"
        assert len(images_found(both.http)) == 6
    world.call(other.script.hold.pop("EmbedRegions").set)
    # The other gateway sees that nobody goes on, and does.
    wait_for(lambda: state(both)["state"] == "done")
    assert len(images_found(both.http)) == 6
    assert len(listing(both.http)) == 6


def test_a_move_can_be_given_up(both: Running, filled: list[str], other: Other) -> None:
    other.script.hold["EmbedRegions"] = both.world.run(_event())
    url = f"/v1/collections/{NAME}/reindex"
    assert both.http.delete(url).status_code == 404
    assert both.http.post(url, json={}).status_code == 202
    assert both.http.post(url, json={}).json()["state"] == "running"
    following = both.http.get(f"/v1/collections/{NAME}--next").json()
    assert (following["replaces"], following["recall_target"]) == (NAME, 0.9)
    assert both.http.delete(url).status_code == 204
    both.world.call(other.script.hold.pop("EmbedRegions").set)
    assert both.http.get(url).status_code == 404
    assert both.http.get(f"/v1/collections/{NAME}--next").status_code == 404
    assert len(images_found(both.http)) == 6


def test_an_image_whose_file_is_gone_is_told_and_the_move_goes_on_when_it_is_back(
    both: Running, filled: list[str]
) -> None:
    lost = [path for path in both.store.rglob("*") if path.is_file() and filled[0] in str(path)]
    for path in lost:
        path.unlink()
    both.http.post(f"/v1/collections/{NAME}/reindex", json={})
    wait_for(lambda: state(both)["state"] == "blocked")
    assert "1 images cannot be embedded again" in state(both)["problem"]
    assert state(both)["done_image_count"] == 5
    add(both, NAME, SCENES[0])
    wait_for(lambda: state(both)["state"] == "done")


@pytest.mark.parametrize("embedder", ["colours", "unknown"])
def test_a_model_that_nobody_serves_is_named(both: Running, filled: list[str], embedder: str) -> None:
    refused = both.http.post(f"/v1/collections/{NAME}/reindex", json={"embedder": embedder})
    assert refused.status_code == 409
    assert "there are colours, shades" in refused.json()["detail"]


def test_with_one_embedder_the_setting_is_named(gateway: Running, collection: str) -> None:
    refused = gateway.http.post(f"/v1/collections/{collection}/reindex", json={})
    assert refused.status_code == 409
    assert "other_embedder" in refused.json()["detail"]


def test_a_collection_is_reindexed_over_grpc(both: Running, filled: list[str]) -> None:
    def status() -> region_search_pb2.Reindex:
        return both.grpc.GetReindex(region_search_pb2.GetReindexRequest(collection=NAME)).reindex

    both.grpc.StartReindex(region_search_pb2.StartReindexRequest(collection=NAME, embedder="shades"))
    wait_for(lambda: status().state == region_search_pb2.REINDEX_STATE_DONE)
    assert (status().kept_as, status().done_image_count) == (NAME + reindex.PREVIOUS, 6)
    with pytest.raises(grpc.RpcError) as refused:
        both.grpc.CancelReindex(region_search_pb2.CancelReindexRequest(collection=NAME))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_command_waits_until_it_is_done(both: Running, filled: list[str], other: Other) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["reindex", NAME, *arguments], env={"REGIONSEARCH_URL": both.url})

    with Client(f"grpc://127.0.0.1:{both.server.port}") as client:
        other.script.hold["EmbedRegions"] = both.world.run(_event())
        begun = run("--no-wait", "--embedder", "shades")
        assert begun.exit_code == 0, begun.output
        assert client.get_reindex(NAME).state == "running"
        assert run("--cancel").exit_code == 0
        both.world.call(other.script.hold.pop("EmbedRegions").set)
        with pytest.raises(RegionSearchError) as none:
            client.get_reindex(NAME)
        assert none.value.kind is Kind.NOT_FOUND
        done = run()
        assert done.exit_code == 0, done.output
        assert "collections delete moving--previous" in "".join(done.output.splitlines())
        assert client.get_reindex(NAME).target_model.variant == "shades"


async def _event() -> Any:
    return asyncio.Event()

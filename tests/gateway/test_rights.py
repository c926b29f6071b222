"""Keys with scopes, and keys for some collections: the same over HTTP, gRPC and the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from typer.testing import CliRunner

from gateway.reindex import NEXT
from regionsearch.cli import app
from regionsearch.client import Client
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import region_search_pb2 as pb
from tests.gateway.conftest import BLUE, RED, Running, World, add, scene

MINE, THEIRS, NOT_YET = "rights-mine", "rights-theirs", "rights-not-yet"
KEYS = [
    {"key": "look", "scopes": ["search"], "collections": [MINE, NOT_YET]},
    {"key": "camera", "scopes": ["write"], "collections": [MINE, NOT_YET]},
    {"key": "broom", "scopes": ["search", "delete"]},
    {"key": "owner", "scopes": ["admin"], "collections": [MINE, NOT_YET, "rights-new"]},
]


@pytest.fixture(scope="module")
def images(shared_gateway: Running) -> dict[str, str]:
    """One image in each of the two collections; their ids by collection."""
    found = {}
    for name, colour in ((MINE, RED), (THEIRS, BLUE)):
        shared_gateway.http.post("/v1/collections", json={"name": name})
        (one,) = add(shared_gateway, name, (f"{name}.png", scene(colour)))
        found[name] = one["image_id"]
    return found


@pytest.fixture(scope="module")
def locked(world: World) -> Running:
    return world.gateway(keys=KEYS)


@pytest.fixture
def ask(locked: Running, images: dict[str, str]) -> Callable[..., httpx.Response]:
    def request(key: str, method: str, path: str, **options: Any) -> httpx.Response:
        return locked.http.request(method, f"/v1/{path}", headers={"x-api-key": key}, **options)

    return request


def test_a_scope_that_is_missing_is_named(ask: Callable[..., httpx.Response], images: dict[str, str]) -> None:
    image = f"collections/{MINE}/images/{images[MINE]}"
    refused = [
        ("camera", "GET", f"collections/{MINE}/images", {}, "search"),
        ("camera", "POST", f"collections/{MINE}/search", {"json": {"query": {"text": "red"}}}, "search"),
        ("camera", "DELETE", image, {}, "delete"),
        ("look", "PATCH", image, {"json": {"add_tags": ["x"]}}, "write"),
        ("look", "DELETE", image, {}, "delete"),
        ("broom", "PATCH", image, {"json": {"add_tags": ["x"]}}, "write"),
        ("broom", "DELETE", f"collections/{MINE}", {}, "admin"),
    ]
    for key, method, path, options, scope in refused:
        answer = ask(key, method, path, **options)
        assert (answer.status_code, answer.json()["code"]) == (403, "PERMISSION_DENIED"), (key, path)
        assert f"with the scope {scope}" in answer.json()["detail"]
    assert ask("camera", "PATCH", image, json={"add_tags": ["seen"]}).status_code == 200
    assert ask("look", "GET", image).json()["tags"] == ["seen"]
    assert ask("owner", "GET", image).status_code == 200


def test_other_collections_are_not_listed_and_answer_as_if_they_did_not_exist(
    ask: Callable[..., httpx.Response], images: dict[str, str]
) -> None:
    listed = ask("look", "GET", "collections").json()
    assert ([one["name"] for one in listed["collections"]], listed["next_page_token"]) == ([MINE], "")
    everything = {one["name"] for one in ask("broom", "GET", "collections").json()["collections"]}
    assert {MINE, THEIRS, "default"} <= everything
    region = f"{images[THEIRS]}-r000"
    within = {"collection": THEIRS, "image_id": images[THEIRS], "texts": ["blue"]}
    asked: list[tuple[str, str, str, dict[str, Any]]] = [
        ("look", "GET", "", {}),
        ("look", "GET", "/images", {}),
        ("look", "POST", "/search", {"json": {"query": {"text": "blue"}}}),
        ("look", "POST", "/scroll", {"json": {}}),
        ("look", "POST", "/count", {"json": {}}),
        ("look", "GET", f"/images/{images[THEIRS]}", {}),
        ("look", "GET", f"/images/{images[THEIRS]}/content", {}),
        ("look", "GET", f"/images/{images[THEIRS]}/thumbnail", {}),
        ("look", "GET", f"/images/{images[THEIRS]}/regions/{region}/crop.png", {}),
        ("look", "GET", "/reindex", {}),
        ("look", "POST", "/images:check", {"json": {"image_ids": [images[THEIRS]]}}),
        ("camera", "PATCH", f"/images/{images[THEIRS]}", {"json": {"add_tags": ["x"]}}),
        ("owner", "DELETE", "", {}),
        ("owner", "DELETE", f"/images/{images[THEIRS]}", {}),
    ]
    for key, method, path, options in asked:
        answers = [ask(key, method, f"collections/{name}{path}", **options) for name in (THEIRS, NOT_YET)]
        assert [answer.status_code for answer in answers] == [404, 404], (method, path)
        theirs, nothing = (answer.json() for answer in answers)
        assert theirs["detail"].replace(THEIRS, "…") == nothing["detail"].replace(NOT_YET, "…")
    assert ask("look", "POST", "search-within", json=within).status_code == 404
    prompt = {"collection": THEIRS, "image_id": images[THEIRS], "points": [{"x": 5, "y": 5}]}
    assert ask("look", "POST", "segment", json=prompt).status_code == 404
    files = {"files": ("a.png", scene(RED))}
    hidden = ask("camera", "POST", f"collections/{THEIRS}/images", files=files)
    assert hidden.status_code == 404 or hidden.json()["results"][0]["error"]["code"] == "NOT_FOUND"
    assert ask("broom", "GET", f"collections/{THEIRS}/images/{images[THEIRS]}").status_code == 200


def test_what_a_limited_key_creates_must_be_one_of_its_collections(
    ask: Callable[..., httpx.Response],
) -> None:
    refused = ask("owner", "POST", "collections", json={"name": "rights-elsewhere"})
    assert refused.status_code == 403
    assert "limited" in refused.json()["detail"]
    assert ask("owner", "POST", "collections", json={"name": "rights-new"}).status_code == 201
    assert ask("owner", "DELETE", "collections/rights-new").status_code == 204
    assert ask("owner", "DELETE", f"collections/{MINE}{NEXT}").status_code == 404


def test_grpc_has_the_same_rights(locked: Running, images: dict[str, str]) -> None:
    def code(key: str, method: str, request: Any) -> grpc.StatusCode | None:
        try:
            getattr(locked.grpc, method)(request, metadata=(("x-api-key", key),))
        except grpc.RpcError as error:
            status: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
            return status
        return None

    ids = {name: {"collection": name, "image_id": images[name]} for name in (MINE, THEIRS)}
    denied, unknown = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND
    query = {"query": pb.Query(texts=["red"])}
    for key, method, request, expected in (
        ("look", "DeleteImage", pb.DeleteImageRequest(**ids[MINE]), denied),
        ("camera", "DeleteImage", pb.DeleteImageRequest(**ids[MINE]), denied),
        ("camera", "Search", pb.RegionSearchServiceSearchRequest(collection=MINE, **query), denied),
        ("look", "Search", pb.RegionSearchServiceSearchRequest(collection=MINE, **query), None),
        ("look", "Search", pb.RegionSearchServiceSearchRequest(collection=THEIRS, **query), unknown),
        ("look", "Search", pb.RegionSearchServiceSearchRequest(**query), unknown),  # default
        ("look", "Scroll", pb.RegionSearchServiceScrollRequest(collection=THEIRS), unknown),
        ("owner", "StartReindex", pb.StartReindexRequest(collection=THEIRS), unknown),
        ("owner", "DeleteImage", pb.DeleteImageRequest(**ids[THEIRS]), unknown),
        ("broom", "DeleteImage", pb.DeleteImageRequest(collection=THEIRS, image_id="0" * 64), unknown),
    ):
        assert code(key, method, request) == expected, (key, method)


def test_client_and_command_line_say_which_scope_is_needed(locked: Running, images: dict[str, str]) -> None:
    with Client(locked.url, api_key="look") as client:
        assert [one.name for one in client.collections()] == [MINE]
        with pytest.raises(
            RegionSearchError, match="the scope delete; the one that was sent has search"
        ) as caught:
            client.delete_image(images[MINE], MINE)
        assert caught.value.kind is Kind.PERMISSION_DENIED
    arguments = ["images", "delete", images[MINE], "-c", MINE, "--url", locked.url, "--api-key", "look"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert "the scope delete" in f"{result.output}{result.stderr}{result.exception}"


def test_a_key_is_told_what_it_allows(locked: Running) -> None:
    expected = {
        "camera": (("write",), (MINE, NOT_YET)),
        "broom": (("delete", "search"), None),
    }
    for key, (scopes, collections) in expected.items():
        for url in (locked.url, f"grpc://127.0.0.1:{locked.server.port}"):
            with Client(url, api_key=key) as client:
                told = client.access()
            assert (tuple(sorted(told.scopes)), told.collections) == (
                scopes,
                collections and tuple(sorted(collections)),
            )
    with Client(locked.url) as client, pytest.raises(RegionSearchError) as refused:
        client.access()
    assert refused.value.kind is Kind.UNAUTHENTICATED

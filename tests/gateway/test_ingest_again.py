"""Images sent again: what is new about them is added, damage is healed, a key belongs to one request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway import image_store
from gateway.image_store import ImageStore
from regionsearch.errors import from_rpc_error
from regionsearch.v1 import region_search_pb2 as pb
from tests.gateway.conftest import BLUE, GREEN, RED, Running, add, scene
from tests.gateway.fakes import Script


def facts(gateway: Running, collection: str, image_id: str) -> dict[str, Any]:
    found: dict[str, Any] = gateway.http.get(f"/v1/collections/{collection}/images/{image_id}").json()
    return found


def test_tags_and_attributes_of_a_duplicate_are_added(
    gateway: Running, collection: str, script: Script
) -> None:
    data = scene(RED)
    first = pb.IngestImageRequest(collection=collection, image={"encoded": data}, tags=["a"])
    first.attributes.update({"k": "v", "old": "1"})
    made = gateway.grpc.IngestImage(first)
    assert made.tags == ["a"]
    (again,) = add(
        gateway, collection, ("red.png", data), tags=["holiday", "a"], attributes='{"k": "w", "new": "2"}'
    )
    assert (again["outcome"], again["tags"]) == ("duplicate", ["a", "holiday"])
    assert again["seq"] > made.seq
    image = facts(gateway, collection, made.image_id)
    assert (image["name"], image["tags"]) == ("red.png", ["a", "holiday"])
    assert image["attributes"] == {"k": "w", "old": "1", "new": "2"}
    assert script.calls["Segment"] == 1
    (nothing_new,) = add(gateway, collection, ("other.png", data), tags=["a"])
    assert nothing_new["seq"] == again["seq"]  # nothing was written
    assert (nothing_new["name"], nothing_new["known_as"]) == ("other.png", "red.png")
    assert "known_as" not in again
    assert facts(gateway, collection, made.image_id)["name"] == "red.png"
    request = pb.IngestImageRequest(collection=collection, image={"encoded": data}, tags=["grpc"])
    answer = gateway.grpc.IngestImage(request)
    assert (answer.outcome, list(answer.tags)) == (pb.INGEST_OUTCOME_DUPLICATE, ["a", "holiday", "grpc"])


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1]),
     lambda path: path.write_bytes(bytes(len(path.read_bytes())))],
    ids=["missing", "cut", "zeros"],
)  # fmt: skip
def test_a_damaged_file_is_healed_by_sending_the_image_again(
    gateway: Running, collection: str, damage: Callable[[Path], None]
) -> None:
    data = scene(RED, GREEN)
    (made,) = add(gateway, collection, ("a.png", data))
    (stored,) = gateway.store.glob(f"{collection}/*/{made['image_id']}")
    damage(stored)
    url = f"/v1/collections/{collection}/images/{made['image_id']}/content"
    assert gateway.http.get(url).status_code in (404, 500)
    assert add(gateway, collection, ("a.png", data))[0]["outcome"] == "duplicate"
    assert gateway.http.get(url).content == data


def test_a_damaged_leftover_is_not_taken_for_the_image(gateway: Running, collection: str) -> None:
    """The file of an ingest that died, on a disk that lost its end: the image is new, its file is there."""
    data = scene(BLUE, GREEN)
    image_id = image_store.content_id(data)
    leftover = gateway.store / collection / image_id[:2] / image_id
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(data[:-5])
    assert add(gateway, collection, ("a.png", data))[0]["outcome"] == "created"
    assert leftover.read_bytes() == data


def send(gateway: Running, collection: str, key: str, *files: bytes) -> Any:
    return gateway.http.post(
        f"/v1/collections/{collection}/images",
        files=[("files", (f"{number}.png", data)) for number, data in enumerate(files)],
        headers={"Idempotency-Key": key},
    )


def test_an_idempotency_key_belongs_to_one_request(gateway: Running, collection: str) -> None:
    def outcomes(answer: Any) -> list[str]:
        return [result["outcome"] for result in answer.json()["results"]]

    red, blue, green = scene(RED), scene(BLUE), scene(GREEN)
    assert outcomes(send(gateway, collection, "one", red)) == ["created"]
    other = send(gateway, collection, "one", blue)
    assert (other.status_code, other.json()["code"]) == (409, "ALREADY_EXISTS")
    assert other.json()["errors"][0]["pointer"] == "/idempotency-key"
    assert outcomes(send(gateway, collection, "one", red)) == ["created"]
    assert outcomes(send(gateway, collection, "two", blue, green)) == ["created", "created"]
    assert outcomes(send(gateway, collection, "two", blue, green)) == ["created", "created"]
    assert send(gateway, collection, "two", blue).status_code == 409
    assert send(gateway, collection, "two", scene(RED, BLUE), scene(RED, GREEN)).status_code == 409
    request = pb.IngestImageRequest(collection=collection, image={"encoded": scene(RED, GREEN)})
    with pytest.raises(grpc.RpcError) as caught:
        gateway.grpc.IngestImage(request, metadata=[("idempotency-key", "one")])
    assert from_rpc_error(caught.value).kind.value == "ALREADY_EXISTS"
    listed = gateway.http.get(f"/v1/collections/{collection}/images").json()
    assert listed["total_count"] == 3
    assert all(image["attributes"] == {} for image in listed["images"])


@pytest.mark.parametrize("name", ["_idempotency_key", "_idempotency_request"])
def test_hidden_attributes_cannot_be_asked_for(gateway: Running, collection: str, name: str) -> None:
    send(gateway, collection, "secret", scene(RED))
    body = {"query": {"text": "red"}, "filter": {"attributes": {name: "secret"}}}
    answer = gateway.http.post(f"/v1/collections/{collection}/search", json=body)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["pointer"] == "/filter/attributes"
    request = pb.RegionSearchServiceSearchRequest(collection=collection, query={"texts": ["red"]})
    request.filter.attributes[name] = "secret"
    with pytest.raises(grpc.RpcError) as caught:
        gateway.grpc.Search(request)
    assert from_rpc_error(caught.value).field == "filter.attributes"
    for condition in ({"attribute": name}, {"any_of": [{"tag": "a"}, {"attribute": name, "prefix": "s"}]}):
        asked = {**body, "filter": {"conditions": [condition]}}
        answer = gateway.http.post(f"/v1/collections/{collection}/search", json=asked)
        assert answer.json()["errors"][0]["pointer"] == "/filter/conditions"


def counted(gateway: Running, outcome: str, code: str) -> float:
    text = gateway.http.get("/metrics").text
    line = f'regionsearch_ingest_images_total{{code="{code}",outcome="{outcome}"}} '
    return sum(float(found.removeprefix(line)) for found in text.splitlines() if found.startswith(line))


def test_a_full_image_store_answers_507_and_every_outcome_is_counted(
    gateway: Running, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {code: counted(gateway, "failed", code) for code in ("STORAGE_FULL", "UNSUPPORTED_IMAGE")}
    known = add(gateway, collection, ("known.png", scene(RED)))[0]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/secret/path")

    monkeypatch.setattr(image_store, "_write_durably", full)
    url = f"/v1/collections/{collection}/images"
    good, bad = ("files", ("b.png", scene(BLUE))), ("files", ("x.png", b"no image"))
    answer = gateway.http.post(url, files=[good])
    assert (answer.status_code, answer.json()["code"]) == (507, "STORAGE_FULL")
    assert gateway.http.post(url, files=[good, ("files", ("g.png", scene(GREEN)))]).status_code == 507
    mixed = gateway.http.post(url, files=[good, bad, ("files", ("a.png", scene(RED)))])
    assert mixed.status_code == 200
    assert [r["outcome"] for r in mixed.json()["results"]] == ["failed", "failed", "duplicate"]
    assert counted(gateway, "failed", "STORAGE_FULL") == before["STORAGE_FULL"] + 4
    assert counted(gateway, "failed", "UNSUPPORTED_IMAGE") == before["UNSUPPORTED_IMAGE"] + 1
    assert counted(gateway, "duplicate", "OK") >= 1
    # What the message advises is possible.
    assert "delete images" in answer.json()["detail"]
    assert gateway.http.delete(f"{url}/{known['image_id']}").status_code == 204


def test_errors_of_the_image_store_tell_no_paths(
    gateway: Running, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(30, "Read-only file system", "/secret/path")

    monkeypatch.setattr(image_store, "_write_durably", broken)
    answer = gateway.http.post(
        f"/v1/collections/{collection}/images", files=[("files", ("b.png", scene(BLUE)))]
    )
    assert answer.status_code == 503
    assert "Read-only" in answer.json()["detail"]
    assert "secret" not in answer.text


def test_nothing_is_deleted_where_the_image_store_is_read_only(
    gateway: Running, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made,) = add(gateway, collection, ("a.png", scene(RED)))
    url = f"/v1/collections/{collection}/images/{made['image_id']}"
    monkeypatch.setattr(image_store.os, "access", lambda path, mode: False)
    assert gateway.http.delete(url).status_code == 503
    assert gateway.http.delete(f"/v1/collections/{collection}").status_code == 503
    monkeypatch.undo()
    assert gateway.http.get(f"{url}/content").status_code == 200

    def fails_now(*_: object) -> None:
        raise image_store._unusable("Input/output error")

    monkeypatch.setattr(ImageStore, "_set_aside", fails_now)
    assert gateway.http.delete(url).status_code == 204  # it is gone for everybody; the sweep does the rest
    assert gateway.http.get(url).status_code == 404
    assert "regionsearch_image_files_left_total 0.0" not in gateway.http.get("/metrics").text

"""Requests that race through two gateways with one searcher and one image store."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import BLUE, GREEN, RED, Running, World, add, count, scene
from tests.gateway.fakes import Script
from tests.waiting import wait_for

ROUNDS = 12


@pytest.fixture(scope="module")
def twin(world: World, shared_gateway: Running) -> Running:
    """A second gateway in front of the same services and images."""
    return world.gateway(image_store=str(shared_gateway.store))


@pytest.fixture
def gateways(gateway: Running, twin: Running) -> list[Running]:
    return [gateway, twin]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def at_once(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    return [future.result(120) for future in [pool.submit(call) for call in calls]]


def post(gateway: Running, collection: str, data: bytes, key: str | None = None) -> httpx.Response:
    return gateway.http.post(
        f"/v1/collections/{collection}/images",
        files=[("files", ("image.png", data))],
        headers={"Idempotency-Key": key} if key else {},
    )


def files_of(gateway: Running, collection: str) -> list[str]:
    return sorted(path.name for path in (gateway.store / collection).rglob("*") if path.is_file())


def images_of(gateway: Running, collection: str) -> list[str]:
    images = gateway.http.get(f"/v1/collections/{collection}/images").json()["images"]
    return sorted(image["image_id"] for image in images)


def both_embed(
    world: World, script: Script, pool: ThreadPoolExecutor, calls: Sequence[Callable[[], httpx.Response]]
) -> list[httpx.Response]:
    """The answers of two requests, both of which have looked for the image before either writes it."""
    script.hold["EmbedRegions"] = world.run(_event())
    answers = [pool.submit(call) for call in calls]
    wait_for(lambda: script.calls["EmbedRegions"] == 2)
    world.call(script.hold["EmbedRegions"].set)
    return [answer.result(120) for answer in answers]


async def _event() -> asyncio.Event:
    return asyncio.Event()


@pytest.mark.parametrize(
    ("key", "outcomes"), [(None, ["created", "duplicate"]), ("one-key", ["created", "created"])]
)
def test_an_image_sent_to_both_at_once_is_stored_once(
    world: World,
    script: Script,
    gateways: list[Running],
    pool: ThreadPoolExecutor,
    collection: str,
    key: str | None,
    outcomes: list[str],
) -> None:
    data = scene(RED, BLUE)
    calls = [lambda one=one: post(one, collection, data, key) for one in gateways]
    results = [answer.json()["results"][0] for answer in both_embed(world, script, pool, calls)]
    assert sorted(result["outcome"] for result in results) == outcomes
    image_id = hashlib.sha256(data).hexdigest()
    assert {(result["image_id"], result["regions"]) for result in results} == {(image_id, 2)}
    assert images_of(gateways[0], collection) == files_of(gateways[0], collection) == [image_id]
    found = gateways[1].http.get(f"/v1/collections/{collection}").json()
    assert found["record_count"] == 3  # of the image and of its two regions


def test_one_key_at_both_at_once_with_other_images_makes_one_of_them(
    world: World,
    script: Script,
    gateways: list[Running],
    pool: ThreadPoolExecutor,
    collection: str,
) -> None:
    sent = [scene(RED, GREEN), scene(GREEN, BLUE)]
    calls = [partial(post, one, collection, data, "a-key") for one, data in zip(gateways, sent, strict=True)]
    made, refused = sorted(both_embed(world, script, pool, calls), key=lambda answer: answer.status_code)
    assert (made.status_code, refused.status_code) == (200, 409)
    assert refused.json()["errors"][0]["pointer"] == "/idempotency-key"
    (result,) = made.json()["results"]
    assert result["outcome"] == "created"
    assert images_of(gateways[0], collection) == files_of(gateways[0], collection) == [result["image_id"]]


def test_a_collection_made_or_deleted_through_both_at_once_is_made_or_deleted_once(
    gateways: list[Running], pool: ThreadPoolExecutor
) -> None:
    name = "made-twice"
    for _ in range(ROUNDS):
        made = at_once(
            pool, [lambda g=g: g.http.post("/v1/collections", json={"name": name}) for g in gateways]
        )
        assert sorted(answer.status_code for answer in made) == [201, 409]
        add(gateways[0], name, ("a.png", scene(RED)))
        gone = at_once(pool, [lambda g=g: g.http.delete(f"/v1/collections/{name}") for g in gateways])
        assert sorted(answer.status_code for answer in gone) == [204, 404]
        assert not files_of(gateways[0], name)


def test_images_and_the_deletion_of_their_collection_at_once_leave_each_image_with_its_file(
    gateways: list[Running], pool: ThreadPoolExecutor
) -> None:
    name, images = "made-and-deleted", [scene(RED), scene(BLUE), scene(GREEN)]
    seen = Counter[int]()
    for number in range(ROUNDS):
        one, other = gateways[:: 1 if number % 2 else -1]
        one.http.post("/v1/collections", json={"name": name})
        add(one, name, ("first.png", images[0]))

        def replace(gateway: Running = other) -> None:
            assert gateway.http.delete(f"/v1/collections/{name}").status_code == 204
            gateway.http.post("/v1/collections", json={"name": name})

        _, *answers = at_once(
            pool, [replace, *(lambda data=data, g=one: post(g, name, data) for data in images)]
        )
        seen.update(answer.status_code for answer in answers)
        known = images_of(one, name)
        for image_id in known:
            content = other.http.get(f"/v1/collections/{name}/images/{image_id}/content").content
            assert hashlib.sha256(content).hexdigest() == image_id
        assert count(other, name) == len(known)
        assert one.http.delete(f"/v1/collections/{name}").status_code == 204
    assert set(seen) <= {200, 404}

"""What others do at the same time, in the moments in between."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from typing import Any

import grpc
import httpx
import pytest

from gateway.catalog import Catalog, PendingCollection, Recent
from gateway.image_store import ImageStore
from regionsearch.errors import RegionSearchError, invalid
from regionsearch.rpc.calls import gather_or_cancel
from regionsearch.v1 import search_pb2
from tests.gateway.conftest import GREEN, RED, Running, World, add, scene
from tests.gateway.fakes import Script
from tests.gateway.fronts import SearcherFront, start_front
from tests.waiting import wait_for


class AddedAndDeleted(SearcherFront):
    """Skips the first write, as for an image that is there; and then it is not there any more."""

    skipped = False

    async def Upsert(self, request: Any, context: Any) -> Any:
        if not self.skipped:
            self.skipped = True
            return search_pb2.UpsertResponse(seq=1, skipped_image_ids=[request.images[0].image_id])
        return await self.real.Upsert(request)


def test_an_image_that_others_added_first_and_then_deleted(
    world: World, script: Script, collection: str
) -> None:
    server, front = start_front(world, AddedAndDeleted)
    gateway = world.gateway(searcher=f"127.0.0.1:{server.port}")
    (result,) = add(gateway, collection, ("a.png", scene(RED)))
    assert front.skipped
    assert result["outcome"] == "created"
    url = f"/v1/collections/{collection}/images/{result['image_id']}/content"
    assert gateway.http.get(url).content == scene(RED)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_image_that_comes_while_its_collection_is_deleted_stays(
    gateway: Running, collection: str, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It comes to a new collection of the same name, just before or after its old file is moved aside."""
    kept, gone = scene(RED, GREEN), scene(RED)
    url = f"/v1/collections/{collection}"
    for name, data in (("kept.png", kept), ("gone.png", gone)):
        add(gateway, collection, (name, data))
    quarantine, made = ImageStore.quarantine, asyncio.Lock()
    identity = hashlib.sha256(kept).hexdigest()

    async def meanwhile(self: ImageStore, name: str, image_id: str, seconds: float) -> bool:
        moved = when == "after" and await quarantine(self, name, image_id, seconds)
        if image_id == identity:
            async with made, httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
                assert (await http.post("/v1/collections", json={"name": name})).status_code == 201
                answer = await http.post(f"{url}/images", files=[("files", ("new.png", kept))])
                assert answer.json()["results"][0]["outcome"] == "created"
        return moved or await quarantine(self, name, image_id, seconds)

    monkeypatch.setattr(ImageStore, "quarantine", meanwhile)
    assert gateway.http.delete(url).status_code == 204
    monkeypatch.undo()
    images = gateway.http.get(f"{url}/images").json()["images"]
    assert [image["name"] for image in images] == ["new.png"]
    assert gateway.http.get(f"{url}/images/{identity}/content").content == kept
    files = [path.name for path in (gateway.store / collection).rglob("*") if path.is_file()]
    assert files == [identity]


class Forgetful(SearcherFront):
    """Does not answer about records once it has deleted something."""

    deleted = False

    async def DeleteCollection(self, request: Any, context: Any) -> Any:
        self.deleted = True
        return await self.real.DeleteCollection(request)

    async def GetRecords(self, request: Any, context: Any) -> Any:
        if self.deleted:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        return await self.real.GetRecords(request)


def test_a_deletion_that_fails_half_way_leaves_no_image_quarantined(
    world: World, script: Script, collection: str
) -> None:
    """One of them may have got a record meanwhile."""
    server, _ = start_front(world, Forgetful)
    gateway = world.gateway(searcher=f"127.0.0.1:{server.port}")
    add(gateway, collection, ("a.png", scene(RED)))
    assert gateway.http.delete(f"/v1/collections/{collection}").status_code == 503
    files = [path.name for path in gateway.store.rglob("*") if path.is_file()]
    assert files == [hashlib.sha256(scene(RED)).hexdigest()]


class Silent(SearcherFront):
    """Never answers about records."""

    asked = left = 0

    async def GetRecords(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        self.asked += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.left += 1


def test_who_reads_and_leaves_ends_the_work(world: World, script: Script, collection: str) -> None:
    server, front = start_front(world, Silent)
    gateway = world.gateway(searcher=f"127.0.0.1:{server.port}")
    url = httpx.URL(gateway.url)
    with socket.create_connection((url.host, url.port)) as client:
        client.sendall(f"GET /v1/collections/{collection}/images/x HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_for(lambda: front.asked == 1)
    wait_for(lambda: front.left == 1)


async def test_work_that_fails_while_its_collection_is_read_says_why() -> None:
    """A part of the work that fails cancels one that waits for the reading, which must go on."""

    class Slow(Catalog):
        def __init__(self) -> None:
            self._collections = Recent()

        async def get(self, name: str) -> search_pb2.Collection:
            await asyncio.sleep(0.05)
            return search_pb2.Collection(name=name)

    async def waits(pending: PendingCollection) -> None:
        await pending

    async def fails() -> None:
        raise invalid("query.text", "blank")

    async def work(pending: PendingCollection) -> None:
        await gather_or_cancel(waits(pending), fails())

    with pytest.raises(RegionSearchError, match="blank"):
        await Slow().with_collection("any", work)

"""What others do at the same time, in the moments in between."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from typing import Any

import grpc
import httpx
import pytest

from gateway.image_store import ImageStore
from regionsearch.v1 import search_pb2
from tests.gateway.conftest import GREEN, RED, Running, World, add, scene, wait_for
from tests.gateway.fakes import Script
from tests.gateway.fronts import SearcherFront, start_front


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


def test_a_collection_is_deleted_while_pictures_come(
    gateway: Running, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture comes to a new collection of the same name before the old one's pictures have gone."""
    early, late = scene(RED, GREEN), scene(RED)
    url = f"/v1/collections/{collection}"
    delete_collection = ImageStore.delete_collection

    async def meanwhile(self: ImageStore, name: str) -> None:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as http:
            assert (await http.post("/v1/collections", json={"name": name})).status_code == 201
            await http.post(f"{url}/images", files=[("files", ("early.png", early))])
            await delete_collection(self, name)
            answer = await http.post(f"{url}/images", files=[("files", ("late.png", late))])
        assert answer.json()["results"][0]["outcome"] == "created"

    monkeypatch.setattr(ImageStore, "delete_collection", meanwhile)
    assert gateway.http.delete(url).status_code == 204
    monkeypatch.undo()
    images = gateway.http.get(f"{url}/images").json()["images"]
    assert [image["name"] for image in images] == ["late.png"]  # none without its picture
    content = f"{url}/images/{hashlib.sha256(late).hexdigest()}/content"
    assert gateway.http.get(content).content == late


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
    wait_for(lambda: front.left == 1, 20)

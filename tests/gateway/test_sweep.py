"""Images that nothing knows are found and deleted; those that a record refers to never are."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.catalog import Catalog
from gateway.image_store import ImageStore
from gateway.service_clients import Services
from gateway.settings import GatewaySettings
from gateway.sweep import Sweeper, Swept, sweep_again_and_again
from tests.gateway.conftest import (
    BLUE,
    GREEN,
    RED,
    ROOT,
    GatewayProcess,
    Running,
    World,
    add,
    scene,
    wait_for,
)
from tests.gateway.fakes import Script
from tests.gateway.fronts import SearcherFront, start_front

DAY_S = 86_400


def age(path: Path, seconds: float = 2 * DAY_S) -> None:
    """Makes a file look as if it had been put that long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def sweep(gateway: Running, settings: GatewaySettings, **options: Any) -> Swept:
    async def run() -> Swept:
        services, store = Services(settings), ImageStore(settings.image_store)
        try:
            return await Sweeper(Catalog(services, store, settings), store, DAY_S).sweep(**options)
        finally:
            await services.close()

    return gateway.world.run(run())


def stored(gateway: Running, collection: str, data: bytes) -> Path:
    image_id = hashlib.sha256(data).hexdigest()
    return gateway.store / collection / image_id[:2] / image_id


def leave(gateway: Running, collection: str, data: bytes) -> Path:
    """What an ingest leaves that died: the bytes, and no record."""
    path = stored(gateway, collection, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def settings(world: World) -> GatewaySettings:
    return world.settings()


@pytest.fixture
def own(world: World, settings: GatewaySettings, script: Script) -> Running:
    """A gateway with an image store of its own."""
    return world.run(world.start_gateway(settings))


def test_only_old_orphans_go(own: Running, collection: str, settings: GatewaySettings) -> None:
    known, orphan, young = scene(RED), scene(BLUE), scene(GREEN)
    add(own, collection, ("known.png", known))
    for data in (orphan, young):
        leave(own, collection, data)
    gone = own.store / "gone" / "ab" / ("ab" * 32)  # of a collection whose deletion died half way
    gone.parent.mkdir(parents=True)
    gone.write_bytes(b"x")
    part = stored(own, collection, known).parent / ".x.part"
    part.write_bytes(b"half a pict")
    for path in (stored(own, collection, known), stored(own, collection, orphan), gone, part):
        age(path)
    assert sweep(own, settings, dry_run=True) == Swept(images=4, orphans=2)
    assert stored(own, collection, orphan).exists()
    assert sweep(own, settings) == Swept(images=4, orphans=2)
    left = {path.name for path in own.store.rglob("*") if path.is_file()}
    assert left == {hashlib.sha256(data).hexdigest() for data in (known, young)}
    assert add(own, collection, ("again.png", orphan))[0]["outcome"] == "created"
    assert sweep(own, settings) == Swept(images=3)


def test_an_orphan_that_is_sent_again_is_young_again(
    own: Running, collection: str, settings: GatewaySettings, world: World
) -> None:
    add(own, collection, ("known.png", scene(RED)))
    data = scene(BLUE)
    path = leave(own, collection, data)
    age(path)
    world.run(ImageStore(settings.image_store).put(collection, path.name, data))
    assert sweep(own, settings).orphans == 0
    assert path.exists()


def test_what_a_sweep_left_that_died_is_decided_by_the_next(
    own: Running, collection: str, settings: GatewaySettings
) -> None:
    """One image has got a record since it was set aside; the other one has not."""
    known, orphan = scene(RED), scene(BLUE)
    add(own, collection, ("known.png", known))
    for data in (known, orphan):
        path = leave(own, collection, data)
        path.rename(path.with_name(f".{path.name}.orphan"))
    assert sweep(own, settings) == Swept(images=0, orphans=1, kept=1)
    assert stored(own, collection, known).read_bytes() == known
    assert not stored(own, collection, orphan).exists()


def test_an_ingest_during_the_sweep_keeps_its_image(
    own: Running, collection: str, settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is sent just after the sweep has moved it aside, having asked about it before."""
    add(own, collection, ("known.png", scene(RED)))
    data = scene(BLUE)
    path = leave(own, collection, data)
    age(path)
    quarantine = ImageStore.quarantine

    async def meanwhile(self: ImageStore, name: str, image_id: str, seconds: float) -> bool:
        moved = await quarantine(self, name, image_id, seconds)
        async with httpx.AsyncClient(base_url=own.url, timeout=60) as http:
            files = [("files", ("again.png", data))]
            answer = await http.post(f"/v1/collections/{collection}/images", files=files)
        assert answer.json()["results"][0]["outcome"] == "created"
        return moved

    monkeypatch.setattr(ImageStore, "quarantine", meanwhile)
    assert sweep(own, settings) == Swept(images=2, kept=1)
    assert path.read_bytes() == data
    assert not list(own.store.rglob("*.orphan"))


async def test_an_object_store(tmp_path: Path) -> None:
    """The same steps where there are no files, only objects."""
    store = ImageStore(f"memory://{tmp_path.name}")
    data = scene(RED)
    image_id = hashlib.sha256(data).hexdigest()
    await store.put("default", image_id, data)
    assert await store.collections() == ["default"]
    assert not await store.older("default", image_id, 3600)
    assert await store.older("default", image_id, 0)
    assert await store.quarantine("default", image_id, 0)
    assert not await store.exists("default", image_id)
    (partition,) = [partition async for partition in store.partitions("default")]
    assert (partition.images, partition.aside) == ([], [image_id])
    await store.restore("default", image_id)
    assert await store.get("default", image_id) == data
    assert await store.quarantine("default", image_id, 0)
    await store.purge("default", image_id)
    assert not [
        partition
        for partition in [s async for s in store.partitions("default")]
        if partition.images or partition.aside
    ]


class HeldSearcher(SearcherFront):
    """Lets no Upsert through."""

    arrived = 0

    async def Upsert(self, request: Any, context: Any) -> Any:
        self.arrived += 1
        await asyncio.Event().wait()


def test_a_gateway_killed_between_the_bytes_and_the_record(
    world: World, script: Script, collection: str, own: Running
) -> None:
    """kill -9 for real: the bytes stay, nothing is known; a sweep deletes them, and sending again works."""
    before, searcher = start_front(world, HeldSearcher)
    settings = world.settings(searcher=f"127.0.0.1:{before.port}", image_store=str(own.store))
    data, url = scene(RED, BLUE), f"/v1/collections/{collection}/images"
    with GatewayProcess(settings) as process, concurrent.futures.ThreadPoolExecutor() as pool:
        sent = pool.submit(httpx.post, process.url + url, files=[("files", ("a.png", data))], timeout=120)
        wait_for(lambda: searcher.arrived == 1)
        process.kill()
        with pytest.raises(httpx.TransportError):
            sent.result(60)
    path = stored(own, collection, data)
    assert path.read_bytes() == data
    assert own.http.get(url).json()["total_count"] == 0
    assert own.http.get(f"{url}/{path.name}/content").status_code == 404
    add(own, collection, ("another.png", scene(GREEN)))

    age(path)
    command = [sys.executable, "-m", "gateway.sweep", "--image-store", str(own.store)]
    command += ["--searcher", f"127.0.0.1:{world.searcher.port}"]
    dry = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(dry.stdout) == {"images": 2, "orphans": 1, "kept": 0}
    assert path.exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"images": 2, "orphans": 1, "kept": 0}
    assert not path.exists()
    assert add(own, collection, ("a.png", data))[0]["outcome"] == "created"
    assert own.http.get(f"{url}/{path.name}/content").content == data


def test_the_gateway_sweeps_by_itself_when_it_is_told_to(
    world: World, script: Script, collection: str, own: Running
) -> None:
    add(own, collection, ("known.png", scene(RED)))
    data = scene(BLUE)
    path = leave(own, collection, data)
    age(path)
    gateway = world.gateway(image_store=str(own.store), sweep={"every_s": 0.2})
    wait_for(lambda: not path.exists())
    world.call(gateway.server.stop)
    assert stored(own, collection, scene(RED)).exists()


async def test_no_failure_ends_the_sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Object stores raise errors of their own libraries, too."""
    enough, sweeps = asyncio.Event(), 0

    async def failing(self: Sweeper, **options: Any) -> Swept:
        nonlocal sweeps
        sweeps += 1
        if sweeps == 3:
            enough.set()
        raise ValueError("no credentials")

    monkeypatch.setattr(Sweeper, "sweep", failing)
    sweeping = asyncio.create_task(sweep_again_and_again(Sweeper(None, None, 0), 0.0))  # type: ignore[arg-type]
    waiting = asyncio.create_task(enough.wait())
    done, _ = await asyncio.wait({sweeping, waiting}, return_when=asyncio.FIRST_COMPLETED)
    sweeping.cancel()
    assert done == {waiting}

"""A gateway with everything around it in one thread: fake models, the real searcher, real HTTP and gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import httpx
import pytest
from PIL import Image, ImageDraw

from gateway.server import lifespan as gateway_lifespan
from gateway.settings import GatewaySettings
from regionsearch.v1 import embed_pb2, region_search_pb2, region_search_pb2_grpc, search_pb2, segment_pb2
from regionsearch.v1.embed_pb2_grpc import add_EmbedServiceServicer_to_server
from regionsearch.v1.segment_pb2_grpc import add_SegmentServiceServicer_to_server
from services.runtime.server import Server, serving
from services.runtime.settings import ServiceSettings
from services.searcher.__main__ import searcher
from services.searcher.settings import EmbeddedSettings, SearcherSettings
from tests.gateway.fakes import FakeEmbedder, FakeSegmenter, FakeSettings, Script, lifespan
from tests.stack import ROOT, free_port
from tests.waiting import wait_for

T = TypeVar("T")


def service(module: Any, name: str) -> list[Any]:
    return [module.DESCRIPTOR.services_by_name[name]]


class Running:
    """A gateway that runs, and how to reach it."""

    def __init__(self, world: World, folder: Path, server: Server) -> None:
        self.world = world
        self.folder = folder
        self.server = server
        self.url = f"http://127.0.0.1:{(folder / 'http_port').read_text().strip()}"
        self.http = httpx.Client(base_url=self.url, timeout=120)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        self.grpc = region_search_pb2_grpc.RegionSearchServiceStub(self.channel)

    @property
    def store(self) -> Path:
        """Where its images are."""
        return self.folder / "images"


class World:
    """An event loop in a thread, with fakes and a searcher on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = Script()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stacks: list[contextlib.AsyncExitStack] = []
        self._count = 0
        self.segmenter, self.embedder, self.searcher = self.run(self._services())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop."""
        return self.submit(coroutine).result(120)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, function: Callable[[], T]) -> T:
        """Calls a function on the loop."""

        async def body() -> T:
            return function()

        return self.run(body())

    async def start(self, settings: ServiceSettings, services: list[Any], life: Any) -> Server:
        stack = contextlib.AsyncExitStack()
        server = await stack.enter_async_context(serving(settings, services, life))
        self._stacks.append(stack)
        return server

    async def _services(self) -> tuple[Server, Server, Server]:
        segmenter = await self.start_segmenter()
        embedder = await self.start(
            FakeSettings(),
            service(embed_pb2, "EmbedService"),
            lifespan(add_EmbedServiceServicer_to_server, FakeEmbedder(self.script)),
        )
        settings = SearcherSettings(
            port=0, embedded=EmbeddedSettings(folder=self.folder / "records"), drain_delay_s=0, grace_s=1
        )
        found = await self.start(settings, service(search_pb2, "SearchService"), searcher(settings))
        return segmenter, embedder, found

    def settings(self, **options: Any) -> GatewaySettings:
        """Of another gateway on the same services, in a folder of its own."""
        self._count += 1
        folder = self.folder / f"gateway{self._count}"
        folder.mkdir()
        values: dict[str, Any] = {
            "port": 0,
            "http_port": 0,
            "http_port_file": folder / "http_port",
            "segmenter": f"127.0.0.1:{self.segmenter.port}",
            "embedder": f"127.0.0.1:{self.embedder.port}",
            "searcher": f"127.0.0.1:{self.searcher.port}",
            "image_store": str(folder / "images"),
            "drain_delay_s": 0,
            "grace_s": 1,
            # What is away is said at once; what answers slowly, on a busy machine, is not away.
            "timeouts": {"restart_s": 0, "probe_s": 60} | options.pop("timeouts", {}),
        }
        return GatewaySettings(**(values | options))

    async def start_gateway(self, settings: GatewaySettings) -> Running:
        services = service(region_search_pb2, "RegionSearchService")
        server = await self.start(settings, services, gateway_lifespan(settings))
        assert settings.http_port_file is not None
        return Running(self, settings.http_port_file.parent, server)

    def gateway(self, **options: Any) -> Running:
        """Starts another gateway on the same services."""
        return self.run(self.start_gateway(self.settings(**options)))

    async def start_segmenter(self, port: int = 0) -> Server:
        return await self.start(
            FakeSettings(port=port),
            service(segment_pb2, "SegmentService"),
            lifespan(add_SegmentServiceServicer_to_server, FakeSegmenter(self.script)),
        )

    def stop(self) -> None:
        async def close() -> None:
            for stack in reversed(self._stacks):
                await stack.aclose()

        self.submit(close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)


class Process:
    """A process of its own, which a test may kill. A context manager."""

    def __init__(self, command: list[str], log: Path | None = None, **environment: str) -> None:
        """Writes what it prints to `log`, else to where the tests print."""
        self._command = command
        self._log = log
        self._environment = environment

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", *self._command]
        with self._log.open("wb") if self._log else contextlib.nullcontext() as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | self._environment, stdout=log, stderr=log
            )
        try:
            self.wait()
        except BaseException:
            self.kill()
            raise
        return self

    def wait(self) -> None:
        """Until it serves."""

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends it without any warning."""
        self.process.kill()
        self.process.wait()


class EmbedderProcess(Process):
    """A fake embedder."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self._port_file = folder / "port"
        self._port_file.unlink(missing_ok=True)
        arguments = ["--port", str(self.port), "--port-file", str(self._port_file)]
        super().__init__(["tests.gateway.fakes", *arguments])

    def wait(self) -> None:
        wait_for(self._port_file.exists)


class GatewayProcess(Process):
    """A real gateway, started as an operator would."""

    def __init__(self, settings: GatewaySettings, log: Path | None = None, **environment: str) -> None:
        assert settings.http_port_file is not None
        self._port_file = settings.http_port_file
        self._port_file.unlink(missing_ok=True)
        names = ("port", "http_port", "http_port_file", "segmenter", "embedder", "searcher", "image_store")
        given = {f"REGIONSEARCH_GATEWAY_{name.upper()}": str(getattr(settings, name)) for name in names}
        given["REGIONSEARCH_GATEWAY_TIMEOUTS__PROBE_S"] = str(settings.timeouts.probe_s)
        super().__init__(["gateway"], log, **given, **environment)

    def wait(self) -> None:
        wait_for(self._port_file.exists)
        self.url = f"http://127.0.0.1:{self._port_file.read_text().strip()}"
        wait_for(lambda: httpx.get(f"{self.url}/readyz", timeout=60).status_code == 200)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("world"))
    try:
        yield world
    finally:
        world.stop()


@pytest.fixture(scope="session")
def shared_gateway(world: World) -> Running:
    return world.gateway()


@pytest.fixture
def script(world: World) -> Iterator[Script]:
    """The fakes' script, clean."""
    script = world.script
    script.__init__()  # type: ignore[misc]
    yield script
    for event in script.hold.values():
        world.call(event.set)
    script.__init__()  # type: ignore[misc]


@pytest.fixture
def gateway(shared_gateway: Running, script: Script) -> Running:
    return shared_gateway


@pytest.fixture
def collection(gateway: Running, request: pytest.FixtureRequest) -> Iterator[str]:
    """A collection of the test's own."""
    name = "t" + format(abs(hash(request.node.nodeid)) % 10**12)
    assert gateway.http.post("/v1/collections", json={"name": name}).status_code == 201
    yield name
    gateway.http.delete(f"/v1/collections/{name}")


@pytest.fixture(scope="session")
def filled(shared_gateway: Running) -> dict[str, str]:
    """The collection of `tests.gateway.searching` with its images; their ids by name."""
    from tests.gateway.searching import COLLECTION, IMAGES  # which draws them with what is below

    shared_gateway.http.post("/v1/collections", json={"name": COLLECTION})
    return {one["name"]: one["image_id"] for one in add(shared_gateway, COLLECTION, *IMAGES.items())}


Shape = tuple[str, tuple[int, int, int, int]]


def scene(
    *shapes: Shape, size: tuple[int, int] = (160, 120), file_format: str = "PNG", **options: Any
) -> bytes:
    """An image of flat rectangles on white."""
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for colour, (left, top, right, bottom) in shapes:
        pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


RED: Shape = ("red", (10, 20, 50, 60))
BLUE: Shape = ("blue", (80, 30, 140, 110))
GREEN: Shape = ("lime", (20, 80, 40, 100))


def add(gateway: Running, collection: str, *images: tuple[str, bytes], **data: Any) -> list[dict[str, Any]]:
    """Ingests images; one result each."""
    response = gateway.http.post(
        f"/v1/collections/{collection}/images", files=[("files", image) for image in images], data=data
    )
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    return results


def count(gateway: Running, collection: str) -> int:
    """How many images a collection has."""
    return int(gateway.http.get(f"/v1/collections/{collection}").json()["image_count"])

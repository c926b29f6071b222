"""A searcher and its read replica, both killed without warning: searches go on, no answered write is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from gateway.service_clients import Services, reading_from_writer
from gateway.settings import GatewaySettings
from regionsearch.rpc.calls import SEEN_HEADER, deadline
from regionsearch.v1 import search_pb2, search_pb2_grpc
from tests.searcher.conftest import MODEL_INFO, search_request, unit_vectors, upsert_request
from tests.stack import ROOT, free_port

WAIT_S = 60


class SearcherProcess:
    def __init__(self, folder: Path, follow: str = "") -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._folder = folder
        self._port_file = folder / "port"
        self._options = ["--follow", follow] if follow else []
        folder.mkdir()

    def start(self) -> None:
        self._port_file.unlink(missing_ok=True)
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.searcher", "--port", str(self.port), "--port-file",
                 str(self._port_file), "--embedded.folder", str(self._folder), *self._options],
                cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=log, stderr=log,
            )  # fmt: skip

    async def up(self) -> None:
        async with asyncio.timeout(WAIT_S):
            while not self._port_file.exists():  # noqa: ASYNC110  # another process writes it
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Traffic:
    """Writes images and searches, all the time; what fails ends the test."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.written: list[str] = []
        self.seq = 0
        self.searches = 0

    async def write(self) -> None:
        services = self._services
        while True:
            image_id = f"image{len(self.written):05d}"
            with deadline(WAIT_S):
                request = upsert_request(image_id, unit_vectors(4, len(self.written)), skip_existing=True)
                answer = await services.searcher.call(services.search.Upsert, request)
            self.written.append(image_id)
            self.seq = answer.seq
            await asyncio.sleep(0.005)

    async def search(self) -> None:
        while True:
            with deadline(WAIT_S):
                reader = self._services.reader
                found = await reader.call(reader.stub.Search, search_request(unit_vectors(1), page_size=5))
            assert len(found.results) == 1
            self.searches += 1
            await asyncio.sleep(0.005)

    async def goes_on(self, *, writes: int = 0, searches: int = 0) -> None:
        writes, searches = writes + len(self.written), searches + self.searches
        async with asyncio.timeout(WAIT_S):
            while len(self.written) < writes or self.searches < searches:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[SearcherProcess, SearcherProcess, Services]]:
    writer = SearcherProcess(tmp_path / "writer")
    replica = SearcherProcess(tmp_path / "replica", writer.address)
    for process in (writer, replica):
        process.start()
    settings = GatewaySettings(
        searcher=writer.address,
        searcher_reads=f"{writer.address},{replica.address}",
        image_store=str(tmp_path),
    )
    services = Services(settings)
    try:
        for process in (writer, replica):
            await process.up()
        yield writer, replica, services
    finally:
        await services.close()
        for process in (writer, replica):
            process.kill()


async def killed_again_and_again(tmp_path: Path, rounds: int) -> None:
    async with running(tmp_path) as (writer, replica, services):
        create = search_pb2.CreateCollectionRequest(name="default", model=MODEL_INFO)
        await services.searcher.call(services.search.CreateCollection, create)
        traffic = Traffic(services)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(traffic.write()), group.create_task(traffic.search())]
            for _ in range(rounds):
                await traffic.goes_on(writes=20, searches=20)
                writer.kill()
                before = time.monotonic()
                await traffic.goes_on(searches=50)
                assert time.monotonic() - before < 20, "searches waited for the writer"
                writer.start()
                await traffic.goes_on(writes=20)
                replica.kill()
                await traffic.goes_on(writes=20, searches=20)
                replica.start()
                await replica.up()
                await traffic.goes_on(writes=20)
            for task in tasks:
                task.cancel()
        async with grpc.aio.insecure_channel(replica.address) as channel:
            stub = search_pb2_grpc.SearchServiceStub(channel)
            listed: set[str] = set()
            token = ""
            while True:
                request = search_pb2.ListImagesRequest(collection="default", page_size=1000, page_token=token)
                page = await stub.ListImages(request, metadata=((SEEN_HEADER, str(traffic.seq)),))
                listed |= {image.image_id for image in page.images}
                token = page.next_page_token
                if not token:
                    break
        missing = set(traffic.written) - listed
        assert not missing, (
            f"of {len(traffic.written)} answered writes the replica lacks {sorted(missing)[:5]}"
        )
        assert len(listed - set(traffic.written)) <= 1, "the write that was cancelled"


async def test_searches_go_on_and_no_acknowledged_write_is_lost(tmp_path: Path) -> None:
    await killed_again_and_again(tmp_path, rounds=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_searches_go_on_and_no_acknowledged_write_is_lost_in_many_rounds(tmp_path: Path) -> None:
    await killed_again_and_again(tmp_path, rounds=50)


async def test_reads_that_decide_about_writes_are_asked_of_the_writer(tmp_path: Path) -> None:
    apart = Services(GatewaySettings(searcher_reads="127.0.0.1:50053,127.0.0.1:50054"))
    alone = Services(GatewaySettings())
    try:
        assert apart.reader is not apart.searcher and alone.reader is alone.searcher
        with reading_from_writer():
            assert apart.reader is apart.searcher
    finally:
        await apart.close()
        await alone.close()

"""A backfill whose driver, actors and searcher are killed equals an ordinary import, each image once."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

pq = pytest.importorskip("pyarrow.parquet")

from loadtests.launch import wait_for  # noqa: E402
from regionsearch import Client  # noqa: E402
from regionsearch.tensors import tensor_from_proto  # noqa: E402
from regionsearch.v1 import search_pb2, search_pb2_grpc  # noqa: E402
from tests.backfill.commands import WITH_RAY, command  # noqa: E402
from tests.backfill.images import drawn  # noqa: E402
from tests.searcher import milvus_server  # noqa: E402
from tests.stack import Stack, new_stack  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), WITH_RAY]

IMAGES = int(os.environ.get("BACKFILL_IMAGES", "500"))
BACKFILLED, IMPORTED = "backfilled", "imported"
# The same arithmetic on both ways: as many threads, and no image in another one's batch.
SAME = {
    "OMP_NUM_THREADS": "1",
    **{
        f"REGIONSEARCH_{service}_{name}": value
        for service in ("SEGMENTER", "EMBEDDER")
        for name, value in (("THREADS", "1"), ("BATCHING__REPRODUCIBLE", "true"))
    },
}
STAGES = ("Check", "Segment", "Embed", "Write")


@pytest.fixture(params=["embedded", "milvus"])
def own_stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All four processes, one of which the test kills."""
    with contextlib.ExitStack() as running:
        environment = dict(SAME)
        if request.param == "milvus":
            uri = running.enter_context(milvus_server.running(tmp_path_factory.mktemp("milvus")))
            environment |= {
                "REGIONSEARCH_SEARCHER_ENGINE": "milvus",
                "REGIONSEARCH_SEARCHER_MILVUS__URI": uri,
                "REGIONSEARCH_SEARCHER_MILVUS__PREFIX": milvus_server.PREFIX,
            }
        yield running.enter_context(new_stack(tmp_path_factory.mktemp("stack"), **environment))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, each one different."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number:06d}.png").write_bytes(drawn(number))
    return folder


class Run:
    """The command, started again whenever it has been killed, and what kills it.

    Args:
        stack: Where the images go.
        source: Where they come from.
        folder: For the log and the outcomes.
    """

    def __init__(self, stack: Stack, source: Path, folder: Path) -> None:
        self._stack = stack
        self.outcomes = folder / "outcomes"
        self._log = folder / "backfill.log"
        self._command = command(stack, source, BACKFILLED, self.outcomes)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log, env=os.environ | SAME)

    def _descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill_driver(self) -> None:
        """Kills the command, waits until no process of it is left, and starts it again."""
        left = self._descendants()
        self.process.kill()
        self.process.wait()
        wait_for(lambda: not any(map(_runs, left)), "the end of Ray's processes", 150)
        self.process = self._start()

    def kill_actor(self, stage: str) -> None:
        """Kills the actors of a stage."""
        for process in self._descendants():
            with contextlib.suppress(psutil.Error):  # it has just ended
                if f"({stage})" in " ".join(process.cmdline()):
                    process.kill()

    def kill_searcher(self) -> None:
        """Kills the searcher, which its supervisor starts again."""
        self._stack.kill("searcher")

    def check(self) -> None:
        """Fails when the command has ended by itself, with an error."""
        assert not self.process.poll(), self.text()

    def text(self) -> str:
        """All that it has written."""
        return self._log.read_text()


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_backfill_survives_kills_and_equals_an_ordinary_import(
    own_stack: Stack, images: Path, tmp_path: Path
) -> None:
    with Client(own_stack.http) as client:
        client.create_collection(IMPORTED)
        assert len(client.ingest(images, IMPORTED)) == IMAGES
    run = Run(own_stack, images, tmp_path)
    chance = random.Random(0)
    kills: list[Callable[[], None]] = [run.kill_driver, run.kill_searcher] * 2
    kills += [lambda stage=stage: run.kill_actor(stage) for stage in STAGES]
    chance.shuffle(kills)
    try:
        for number, kill in enumerate(kills, 1):
            target = 1 + int(IMAGES * (number - chance.random()) / (len(kills) + 1))

            def reached(target: int = target) -> bool:
                run.check()
                return count(own_stack, BACKFILLED) >= target

            wait_for(reached, f"{target} images", 900)
            kill()
        assert run.process.wait(3600) == 0, run.text()
    finally:
        run.process.send_signal(signal.SIGINT)
        run.process.wait(60)

    assert count(own_stack, BACKFILLED) == IMAGES
    for ours, theirs in itertools.zip_longest(stored(own_stack, BACKFILLED), stored(own_stack, IMPORTED)):
        assert list(ours.records) == list(theirs.records)
        vectors = [tensor_from_proto(found.vectors, "vectors") for found in (ours, theirs)]
        np.testing.assert_array_equal(*vectors)
        for image in (*ours.images, *theirs.images):
            image.ClearField("create_time")
        assert list(ours.images) == list(theirs.images)
    files = [
        path.name for path in (own_stack.folder / "data/images" / BACKFILLED).rglob("*") if path.is_file()
    ]
    assert len(files) == len(set(files)) == IMAGES

    rows = pq.read_table(run.outcomes).to_pylist()
    assert {row["source"] for row in rows} == {str(path) for path in images.iterdir()}
    created = Counter(row["image_id"] for row in rows if row["outcome"] == "created")
    assert set(created.values()) == {1}
    assert not [row for row in rows if row["outcome"] == "failed"]


def searcher(stack: Stack) -> grpc.Channel:
    return grpc.insecure_channel(stack.services["searcher"])


def count(stack: Stack, collection: str) -> int:
    """Images of a collection; 0 while the searcher does not answer."""
    request = search_pb2.GetCollectionRequest(name=collection)
    with searcher(stack) as channel:
        try:
            answer = search_pb2_grpc.SearchServiceStub(channel).GetCollection(request, timeout=10)
        except grpc.RpcError:
            return 0
        return int(answer.collection.image_count)


def stored(stack: Stack, collection: str) -> Iterator[search_pb2.GetRecordsResponse]:
    """Images with their records and vectors, by id."""
    with searcher(stack) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        ids: list[str] = []
        token = ""
        while True:
            page = stub.ListImages(
                search_pb2.ListImagesRequest(collection=collection, page_size=100, page_token=token)
            )
            ids += [image.image_id for image in page.images]
            token = page.next_page_token
            if not token:
                break
        for image_id in sorted(ids):
            yield stub.GetRecords(
                search_pb2.GetRecordsRequest(
                    collection=collection, image_ids=[image_id], include_masks=True, include_vectors=True
                )
            )

"""Small collections with known vectors, and a searcher on a real port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2, search_pb2_grpc, types_pb2
from services.runtime.server import serving
from services.searcher.__main__ import SERVICES, searcher
from services.searcher.embedded import maintenance
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.settings import EmbeddedSettings, SearcherSettings
from services.searcher.types import Collection, ModelIdentity
from tests.searcher import milvus_server

DIMENSION = 16
MODEL = ModelIdentity("open_clip", "test", "digest", DIMENSION, "BLUR")
MODEL_INFO = types_pb2.ModelInfo(
    family="open_clip",
    variant="test",
    weights_digest="digest",
    dimension=DIMENSION,
    crop_policy=types_pb2.CROP_POLICY_BLUR,
)


def unit_vectors(count: int, seed: int = 0, dimension: int = DIMENSION) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Milvus (see `milvus_server`)."""
    with milvus_server.running(tmp_path_factory.mktemp("milvus")) as address:
        yield address


@pytest.fixture(autouse=True)
def maintenance_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `run_maintenance` does it: a thread that came at any moment would change the steps of tests."""
    monkeypatch.setattr(maintenance, "_PERIOD_S", 1e6)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each pass over an index has answered."""
    made: list[int] = []
    fetch = VectorIndex.fetch

    def counted(index, requests):
        made.append(len(requests))
        return fetch(index, requests)

    monkeypatch.setattr(VectorIndex, "fetch", counted)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> EmbeddedSettings:
    return EmbeddedSettings(folder=tmp_path / "searcher", chunk_rows=32, passes=1)


@pytest.fixture
def engine(settings: EmbeddedSettings) -> Iterator[EmbeddedEngine]:
    made = EmbeddedEngine(settings)
    made.create_collection(Collection("default", MODEL))
    yield made
    made.close()


@contextlib.asynccontextmanager
async def connected(process: SearcherSettings) -> AsyncIterator[search_pb2_grpc.SearchServiceAsyncStub]:
    """A searcher with an empty collection `default`, over gRPC."""
    async with (
        serving(process, SERVICES, searcher(process)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        made = search_pb2_grpc.SearchServiceStub(channel)
        await made.CreateCollection(search_pb2.CreateCollectionRequest(name="default", model=MODEL_INFO))
        yield made


@pytest.fixture
async def stub(settings: EmbeddedSettings) -> AsyncIterator[search_pb2_grpc.SearchServiceAsyncStub]:
    async with connected(SearcherSettings(port=0, drain_delay_s=0, embedded=settings)) as made:
        yield made


def upsert_request(
    image_id: str, vectors: np.ndarray, *, tags: tuple[str, ...] = (), skip_existing: bool = False
) -> search_pb2.UpsertRequest:
    """One image: the first vector is the whole image, the others are its regions."""
    records = [
        search_pb2.Record(
            record_id=f"{image_id}-{index:03d}",
            image_id=image_id,
            level=search_pb2.LEVEL_REGION if index else search_pb2.LEVEL_IMAGE,
            box=types_pb2.Box(x_min=index, y_min=0, x_max=index + 2, y_max=2),
            area=4 * index,
        )
        for index in range(len(vectors))
    ]
    return search_pb2.UpsertRequest(
        collection="default",
        model=MODEL_INFO,
        images=[
            search_pb2.StoredImage(image_id=image_id, name=f"{image_id}.jpg", width=64, height=48, tags=tags)
        ],
        records=records,
        vectors=tensor_to_proto(vectors),
        skip_existing=skip_existing,
    )


def search_request(vectors: np.ndarray, **fields: object) -> search_pb2.SearchRequest:
    return search_pb2.SearchRequest(
        collection="default", model=MODEL_INFO, queries=tensor_to_proto(vectors), **fields
    )


async def ingest(stub, count: int, regions: int = 3) -> np.ndarray:
    """Images of one whole and some regions each; their vectors, image by image."""
    vectors = unit_vectors(count * (regions + 1)).reshape(count, regions + 1, DIMENSION)
    for number, rows in enumerate(vectors):
        tags = ("even",) if number % 2 == 0 else ("odd",)
        await stub.Upsert(upsert_request(f"image{number:02d}", rows, tags=tags))
    return vectors


async def image_count(stub, expected: int) -> None:
    """Waits until there are so many images."""
    while (await stub.GetStats(search_pb2.GetStatsRequest())).collections[0].image_count != expected:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def failing(call: Awaitable[object]) -> tuple[Kind, str | None]:
    """The kind and the field of the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return error.kind, error.field

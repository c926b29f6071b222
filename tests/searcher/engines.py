"""The contract's engines, for tests that hold for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.searcher.embedded import open_store as embedded_module
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.engine import Engine
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection
from tests.searcher.fake_gpu import FakeDevice
from tests.searcher.milvus_server import open_milvus
from tests.searcher.random_ops import MODEL


@pytest.fixture(params=["faiss-cpu", "faiss-gpu", pytest.param("milvus", marks=pytest.mark.slow)])
def engine(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The embedded one, the same with a GPU's faults, and Milvus; each with an empty collection `c`."""
    if request.param == "milvus":
        made = open_milvus(request.getfixturevalue("milvus"))
    else:
        if request.param == "faiss-gpu":
            monkeypatch.setattr(embedded_module, "choose_device", lambda settings: FakeDevice())
        made = EmbeddedEngine(EmbeddedSettings(folder=tmp_path, chunk_rows=4, gpu_rows=8))
    made.create_collection(Collection("c", MODEL))
    assert made.name == request.param
    yield made
    if made.name == "milvus":  # the server goes on
        for collection in made.list_collections():
            made.delete_collection(collection.name)
    made.close()

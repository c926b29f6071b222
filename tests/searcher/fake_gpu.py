"""FAISS's GPU classes as a CPU can stand in for them, with their faults and their limits.

They know no selectors, give 2048 rows from 2048 lists, round queries of flat indexes to half precision, bear
one thread, and have only so much memory. What they are asked is recorded.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np

from services.searcher.embedded.index.device import MAX_COUNT, Device


class FakeDevice(Device):
    """A device over the stand-ins.

    Args:
        memory: Bytes that the searcher may use.
        cuvs: Whether FAISS has graphs.
        graph_finds: Share of the rows that a graph's search can find unless it is at least 128 wide.
        real_memory: Bytes that there are.
    """

    def __init__(
        self,
        memory: int = 1 << 30,
        *,
        cuvs: bool = False,
        graph_finds: float = 1.0,
        real_memory: int = 1 << 30,
    ) -> None:
        self.thread: threading.Thread | None = None
        self.released_by: list[str] = []
        self.searched: list[tuple[str, int]] = []  # kind of index; lists visited or width of the search
        self.graph_finds = graph_finds
        self.real_memory = real_memory
        super().__init__(memory, library=self._library(cuvs))

    def claim(self) -> None:
        current = threading.current_thread()
        assert self.thread in (None, current) or not self.thread.is_alive(), "two threads on one device"
        self.thread = current

    def _library(self, cuvs: bool) -> Any:
        classes = {
            "StandardGpuResources": lambda: self,
            "GpuIndexFlatConfig": SimpleNamespace,
            "GpuIndexFlatIP": FakeFlat,
            "GpuIndexIVFScalarQuantizerConfig": SimpleNamespace,
            "GpuIndexIVFScalarQuantizer": FakeLists,
        }
        if cuvs:
            classes |= {
                "GpuIndexCagraConfig": SimpleNamespace,
                "GpuIndexCagra": FakeGraph,
                "SearchParametersCagra": SimpleNamespace,
            }
        constants = {name: getattr(faiss, name) for name in ("METRIC_L2", "Float16")}
        return SimpleNamespace(**classes, **constants)


class FakeIndex:
    def __init__(self, device: FakeDevice, config: Any) -> None:
        assert config.device == 0
        self.device = device
        device.claim()

    def __del__(self) -> None:
        self.device.released_by.append(threading.current_thread().name)

    def _asked(self, kind: str, count: int, effort: int = 0) -> None:
        self.device.claim()
        assert count <= MAX_COUNT, "GPU index only supports k <= 2048"
        self.device.searched.append((kind, effort))

    def _take(self, nbytes: int) -> None:
        self.device.real_memory -= nbytes
        if self.device.real_memory < 0:
            raise RuntimeError("StandardGpuResources: alloc fail: cudaMalloc error out of memory")


class FakeFlat(FakeIndex):
    def __init__(self, device: FakeDevice, dimension: int, config: Any) -> None:
        assert config.useFloat16
        super().__init__(device, config)
        self.vectors = np.empty((0, dimension), np.float32)

    def add(self, vectors: np.ndarray) -> None:
        self._take(vectors.size * 2)
        self.vectors = np.concatenate([self.vectors, vectors])

    def search(self, queries: np.ndarray, count: int):
        self._asked("flat", count)
        return _best(queries.astype(np.float16).astype(np.float32), self.vectors, count)


class FakeLists(FakeIndex):
    def __init__(self, device: FakeDevice, lists: faiss.IndexIVFScalarQuantizer, config: Any) -> None:
        super().__init__(device, config)
        self._take(lists.ntotal * lists.d)
        self.index = lists

    def search(self, queries: np.ndarray, count: int, params: faiss.SearchParametersIVF):
        self._asked("lists", count, params.nprobe)
        assert params.nprobe <= MAX_COUNT and params.max_codes == 0 and params.sel is None
        return self.index.search(queries, count, params=params)


class FakeGraph(FakeIndex):
    def __init__(self, device: FakeDevice, dimension: int, metric: int, config: Any) -> None:
        assert config.use_cuvs and metric == faiss.METRIC_L2
        super().__init__(device, config)

    def train(self, vectors: np.ndarray, numeric_type: int) -> None:
        assert numeric_type == faiss.Float16 and vectors.dtype == np.float16
        self._take(vectors.nbytes)
        self.vectors = vectors.astype(np.float32)
        self.hidden = np.random.default_rng(0).random(len(vectors)) >= self.device.graph_finds

    def search(self, queries: np.ndarray, count: int, params: Any, numeric_type: int):
        self._asked("graph", count, params.itopk_size)
        assert numeric_type == faiss.Float16 and count <= params.itopk_size <= 512
        assert params.itopk_size % 32 == 0
        vectors = self.vectors if params.itopk_size >= 128 else self.vectors * ~self.hidden[:, np.newaxis]
        return _best(queries, vectors, count)


def _best(queries: np.ndarray, vectors: np.ndarray, count: int):
    scores = queries @ vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    found = np.take_along_axis(scores, order, 1)
    missing = max(0, count - len(vectors))
    return (
        np.pad(found, ((0, 0), (0, missing)), constant_values=-np.inf),
        np.pad(order, ((0, 0), (0, missing)), constant_values=-1),
    )

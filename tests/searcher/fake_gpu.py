"""A device with the faults of FAISS's GPU indexes: no filters, 2048 rows, rounded queries, one thread."""

from __future__ import annotations

import threading

import numpy as np

from services.searcher.embedded.index.gpu import MAX_COUNT


class FakeIndex:
    def __init__(self, vectors: np.ndarray, device: FakeDevice) -> None:
        self.vectors = vectors.astype(np.float32)
        self.device = device

    def __del__(self) -> None:
        self.device.released_by.append(threading.current_thread().name)

    def search(self, queries: np.ndarray, count: int):
        self.device.claim()
        assert count <= MAX_COUNT, "GPU index only supports k <= 2048"
        rounded = queries.astype(np.float16).astype(np.float32)
        scores = rounded @ self.vectors.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        found = np.take_along_axis(scores, order, 1)
        missing = max(0, count - len(self.vectors))
        return (
            np.pad(found, ((0, 0), (0, missing)), constant_values=-np.inf),
            np.pad(order, ((0, 0), (0, missing)), constant_values=-1),
        )


class FakeDevice:
    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.released_by: list[str] = []

    def claim(self) -> None:
        current = threading.current_thread()
        assert self.thread in (None, current) or not self.thread.is_alive(), "two threads on one device"
        self.thread = current

    def place(self, vectors: np.ndarray) -> FakeIndex:
        self.claim()
        return FakeIndex(vectors, self)

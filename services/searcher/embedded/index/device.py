"""A GPU and the indexes in its memory: flat ones, inverted lists, and graphs where FAISS has cuVS.

What it holds is never the only copy: the records are searched on the host where the device has no room, and
where its indexes cannot answer. They know no selectors and give at most 2048 rows from 2048 lists (of cuVS's
own limits only the width of a graph's search is used).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.faiss_compat import faiss
from services.searcher.embedded.index.columns import Positions
from services.searcher.embedded.index.inverted_lists import IvfSegment
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.recall import RecallEvaluator, tune
from services.searcher.embedded.index.search_thread import SearchThreads
from services.searcher.embedded.index.segment_files import StoredVectors
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Vectors

MAX_COUNT = 2048
_BLOCK = 65_536
_DEGREE = 64
_BUILD = 2  # times the memory of a graph that building it needs: a guess, not measured
_WIDTHS = (64, 128, 256, 512)  # of a graph's search (itopk_size); more than 512 are not kept in shared memory
_WIDTH_STEP = 32
_log = structlog.get_logger(__name__)


class Device:
    """One GPU, used by the search thread alone: FAISS's resources are not safe for several threads.

    Args:
        memory: Bytes that indexes may take.
        number: CUDA ordinal.
        library: The module `faiss`.

    Attributes:
        graphs: Whether FAISS was built with cuVS, and so has CAGRA.
    """

    def __init__(self, memory: int, number: int = 0, library: Any = faiss) -> None:
        self.library = library
        self.graphs = hasattr(library, "GpuIndexCagra")
        self._number = number
        self._memory = memory
        self._held = 0
        self._resources = library.StandardGpuResources()

    def has_room(self, nbytes: int) -> bool:
        """Whether an index of so many bytes may be placed."""
        return self._held + nbytes <= self._memory

    def place_flat(self, vectors: NDArray[np.float16]) -> Any:
        """A `GpuIndexFlatIP` of half-precision vectors (search thread only).

        Raises:
            MemoryError: There is no room.
        """

        def make() -> Any:
            config = self._config("GpuIndexFlatConfig")
            config.useFloat16 = True
            index = self.library.GpuIndexFlatIP(self._resources, vectors.shape[1], config)
            for start in range(0, len(vectors), _BLOCK):
                index.add(vectors[start : start + _BLOCK].astype(np.float32))
            return index

        return self._placed(make, flat_bytes(*vectors.shape))

    def place_lists(self, lists: Any) -> Any:
        """A copy of a host's `IndexIVFScalarQuantizer` (search thread only).

        Raises:
            MemoryError: There is no room.
        """
        config = self._config("GpuIndexIVFScalarQuantizerConfig")
        return self._placed(
            lambda: self.library.GpuIndexIVFScalarQuantizer(self._resources, lists, config),
            lists_bytes(lists),
        )

    def place_graph(self, vectors: StoredVectors) -> Any:
        """A `GpuIndexCagra` of half-precision vectors (search thread only).

        Raises:
            MemoryError: There is no room.
        """

        def make() -> Any:
            config = self._config("GpuIndexCagraConfig")
            config.graph_degree, config.use_cuvs = _DEGREE, True
            rows = np.ascontiguousarray(vectors[np.arange(len(vectors))])
            # Unit vectors have the same order by distance as by inner product, of which graphs may find
            # little (cuvs issue 841).
            index = self.library.GpuIndexCagra(self._resources, rows.shape[1], self.library.METRIC_L2, config)
            index.train(rows, numeric_type=self.library.Float16)
            return index

        dimension = int(vectors[np.zeros(1, np.intp)].shape[1])
        return self._placed(make, flat_bytes(len(vectors), dimension + 2 * _DEGREE), _BUILD)

    def _config(self, name: str) -> Any:
        config = getattr(self.library, name)()
        config.device = self._number
        return config

    def _placed(self, make: Callable[[], Any], nbytes: int, build: int = 1) -> Any:
        if not self.has_room(build * nbytes):
            raise MemoryError("the GPU's memory for indexes is used up")
        try:
            index = make()
        except RuntimeError as error:
            reason = str(error)  # and nothing else: its traceback keeps what was made, and goes on any thread
        else:
            self._held += nbytes
            weakref.finalize(index, self._freed, nbytes)
            return index
        self._memory = self._held  # others hold more of it than expected: no more comes
        _log.warning("the GPU takes no more indexes", held_bytes=self._held, reason=reason)
        raise MemoryError(reason)

    def _freed(self, nbytes: int) -> None:
        self._held -= nbytes


def flat_bytes(rows: int, dimension: int) -> int:
    """Memory of half-precision vectors."""
    return 2 * rows * dimension


def lists_bytes(lists: Any) -> int:
    """Memory of inverted lists of 8-bit codes: codes and ids, half an unused block of 32 each, centroids."""
    return int((lists.ntotal + 16 * lists.nlist) * (lists.d + 8) + 4 * lists.nlist * lists.d)


class OnDevice:
    """An index in a device's memory, which the search thread alone makes, searches and frees.

    Args:
        threads: The search thread.
        place: Makes the index.

    Raises:
        MemoryError: There is no room.
    """

    def __init__(self, threads: SearchThreads, place: Callable[[], Any]) -> None:
        self._threads = threads
        self._held = [threads.run(place)]
        # The last reference may go on any thread.
        weakref.finalize(self, threads.post, self._held.clear).atexit = False

    def search(self, queries: Vectors, count: int, **how: Any) -> tuple[Vectors, NDArray[np.int64]]:
        """Scores and rows of the best `count` rows, best first, each of shape (queries, count)."""
        (index,) = self._held
        found: tuple[Vectors, NDArray[np.int64]] = self._threads.run(
            lambda: index.search(np.ascontiguousarray(queries), count, **how)
        )
        return found


class DeviceLists:
    """A segment's inverted lists on a device: the same codes, so what was measured on the host holds."""

    kind = "gpu-ivf"
    adjustable = False

    def __init__(self, index: OnDevice) -> None:
        self._index = index

    def search(self, queries: Vectors, count: int, nprobe: int, further: float) -> Positions | None:
        """See `DeviceCopy.search`."""
        if max(count, nprobe) > MAX_COUNT:
            return None
        how = faiss.SearchParametersIVF(nprobe=nprobe)
        rows: Positions = self._index.search(queries, count, params=how)[1]
        return rows


class DeviceGraph:
    """A graph of a segment's vectors on a device (CAGRA), searched as wide as recall was measured to need."""

    kind = "gpu-cagra"
    adjustable = True

    def __init__(self, index: OnDevice, width: int, library: Any) -> None:
        self._index = index
        self._width = width
        self._library = library

    def of_width(self, width: int) -> DeviceGraph:
        """The same graph, searched otherwise."""
        return DeviceGraph(self._index, width, self._library)

    def search(self, queries: Vectors, count: int, nprobe: int, further: float) -> Positions | None:
        """See `DeviceCopy.search`."""
        width = _WIDTH_STEP * int(np.ceil(max(count, self._width * further) / _WIDTH_STEP))
        if width > _WIDTHS[-1]:
            return None
        how = self._library.SearchParametersCagra(itopk_size=width)
        rows: Positions = self._index.search(queries, count, params=how, numeric_type=self._library.Float16)[
            1
        ]
        return rows


def tune_on_device(
    segment: IvfSegment,
    device: Device,
    threads: SearchThreads,
    evaluators: Mapping[QueryKind, RecallEvaluator],
    target: float,
) -> None:
    """Tunes a segment's lists, and brings what finds enough fastest to the device, as far as there is room.

    That is a graph if FAISS has them and one width of its search reaches the target for every kind of query,
    else the lists. Without room the lists stay on the host.
    """
    tuned, graph = copy.copy(segment), None
    if isinstance(segment.device, DeviceGraph):
        tuned.device, graph = None, segment.device
    tune(tuned, evaluators, target)
    if tuned.device is None and graph is None and device.graphs:
        placed = _try_to_place(threads, lambda: device.place_graph(segment.vectors))
        graph = None if placed is None else DeviceGraph(placed, _WIDTHS[0], device.library)
    segment.device = tuned.device
    tuned = (graph and _reaching(target, tuned, graph, evaluators)) or tuned
    graph = placed = None  # if it was not chosen, the lists may need its room
    if tuned.device is None:
        placed = _try_to_place(threads, lambda: device.place_lists(segment.index))
        tuned.device = None if placed is None else DeviceLists(placed)
    segment.effort, segment.recalls, segment.device = tuned.effort, tuned.recalls, tuned.device


def _reaching(
    target: float,
    segment: IvfSegment,
    graph: DeviceGraph,
    evaluators: Mapping[QueryKind, RecallEvaluator],
) -> IvfSegment | None:
    """The segment with the narrowest search of the graph that reaches the target for every kind of query."""
    trial = copy.copy(segment)
    for width in _WIDTHS:
        trial.device = graph.of_width(width)
        trial.recalls = {kind: evaluator.recall(trial) for kind, evaluator in evaluators.items()}
        if min(trial.recalls.values()) >= target:
            return trial
    return None


def _try_to_place(threads: SearchThreads, place: Callable[[], Any]) -> OnDevice | None:
    try:
        return OnDevice(threads, place)
    except MemoryError:
        return None


def gpu_count() -> int:
    """GPUs that the installed FAISS can use; 0 for its CPU package."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def choose_device(settings: EmbeddedSettings) -> Device | None:
    """The GPU that the settings ask for.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when one is demanded and there is none.
    """
    if settings.device == "cpu":
        return None
    if gpu_count():
        return Device(settings.gpu_bytes)
    if settings.device == "gpu":
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            "FAISS finds no GPU: install regionsearch[searcher-gpu] in the place of regionsearch[searcher] "
            "(pip uninstall faiss-cpu first), or set embedded.device=cpu",
        )
    return None

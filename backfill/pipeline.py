"""A backfill on Ray: read → check → segment → embed → write, each stage on its own pool of actors.

Ray Data streams tables of rows between the stages. It restarts an actor that has died and repeats its tables;
the write adds each image exactly once all the same.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from fsspec.core import url_to_fs

from backfill import sources, stages
from backfill.job import Job
from backfill.sources import Metadata
from regionsearch.errors import Kind, RegionSearchError, invalid

try:
    import ray
    import ray.data
except ModuleNotFoundError as error:
    raise RegionSearchError(
        Kind.FAILED_PRECONDITION, f"{error.name} is not installed: pip install 'regionsearch[ray]'"
    ) from error

_MIB = 1 << 20
_BLOCK_BYTES = 32 * _MIB  # between two stages; a node holds several
_FILES = (16, 256)  # files of one read task, at least and at most
_BATCH = (
    16  # images in one call of an actor: enough to overlap decoding and device, and for an efficient write
)
_IO_CPUS = 0.1  # of a stage that mostly waits
_READ_CPUS = 0.2  # unlike the next stage, which Ray would otherwise fuse with reading


@dataclass(frozen=True)
class Workers:
    """Actors of the models.

    Attributes:
        segmenters: Their number; 0 to share the cluster's GPUs, or one without GPUs.
        embedders: As `segmenters`.
        gpus: GPUs of each; None for one, or a fraction where the cluster has fewer GPUs than actors.
        cpus: CPUs of a local Ray; 0 for all.
        object_store_mib: Memory of a local Ray for tables between stages; 0 for Ray's default.
    """

    segmenters: int = 0
    embedders: int = 0
    gpus: float | None = None
    cpus: int = 0
    object_store_mib: int = 0


@contextlib.contextmanager
def cluster(address: str | None, workers: Workers) -> Iterator[None]:
    """Connects to a cluster, or starts a local Ray that ends with this process.

    Raises:
        RegionSearchError: UNAVAILABLE.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        if address:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                "local",
                num_cpus=max(2, workers.cpus or os.cpu_count() or 1),  # see `_model_options`
                object_store_memory=workers.object_store_mib * _MIB or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ValueError, OSError, RuntimeError) as error:
        raise RegionSearchError(Kind.UNAVAILABLE, f"cannot connect to Ray or start it: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


class Backfill:
    """One run, on the connected cluster.

    Args:
        job: The settings.
        source: See `backfill.sources`; also ``hf:NAME`` and ``….lance``.
        collection: Name of the collection, which is created if it does not exist.
        metadata: The images' tags and attributes.
        workers: Actors of the models.

    Attributes:
        total: Number of images of the source; None for shards.
        skipped: Files of the source that are not images, by suffix.
    """

    def __init__(self, job: Job, source: str, collection: str, metadata: Metadata, workers: Workers) -> None:
        self._metadata = metadata
        self._workers = _counted(workers)
        self.total: int | None = None
        self.skipped = ""
        self._images = self._read(source)
        find: Any = ray.remote(**self._model_options())(stages.find_collection)  # type: ignore[call-overload]
        with _typed_errors():
            self._job: Job = ray.get(find.remote(job, collection))

    def outcomes(self) -> Iterator[pa.Table]:
        """Runs the stages and yields outcomes as they come, in tables of `backfill.rows.OUTCOMES`.

        Raises:
            RegionSearchError: A systemic error; running the same backfill again resumes it.
        """
        segmenters, embedders = self._workers.segmenters, self._workers.embedders
        io, model = {"num_cpus": _IO_CPUS}, self._model_options()
        data = self._stage(self._images, stages.Check, embedders, io)
        data = self._stage(data, stages.Segment, segmenters, model)
        data = self._stage(data, stages.Embed, embedders, model)
        data = self._stage(data, stages.Write, embedders, io)
        with _typed_errors():
            yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)

    def _read(self, source: str) -> Any:
        context = ray.data.DataContext.get_current()
        context.target_max_block_size = _BLOCK_BYTES
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.issue_detectors_config.detectors = []
        context.raise_original_map_exception = True  # Ray's own around it does not keep its cause
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
        if sources.is_hugging_face(source):
            loaded = sources.load_hugging_face(source)
            self.total = len(loaded)
            return self._read_table(ray.data.from_huggingface(loaded), source)
        if source.rstrip("/").endswith(".lance"):
            return self._read_table(ray.data.read_lance(source, num_cpus=_READ_CPUS), source)
        files = sources.find_files(source)
        self.skipped = ", ".join(f"{count} {suffix}" for suffix, count in files.skipped.most_common())
        if files.tables:
            if files.images or files.shards:
                raise invalid(
                    "source",
                    f"{source} holds images and Parquet files: choose one by a pattern like *.parquet",
                )
            fs, _ = url_to_fs(files.url)
            with _typed_errors():
                table = ray.data.read_parquet(files.tables, filesystem=fs, num_cpus=_READ_CPUS)
                self.total = table.count()
            return self._read_table(table, source)
        if not files.shards:
            self.total = len(files.images)
        step = min(max(len(files.images) // 1000, _FILES[0]), _FILES[1])
        groups = [files.images[start : start + step] for start in range(0, len(files.images), step)]
        groups += [[shard] for shard in files.shards]
        read = functools.partial(sources.read_files, url=files.url, metadata=self._metadata)
        return ray.data.from_arrow([sources.as_table(group) for group in groups]).map_batches(
            read, batch_size=None, batch_format="pyarrow", num_cpus=_READ_CPUS
        )

    def _read_table(self, table: Any, source: str) -> Any:
        read = functools.partial(sources.read_table, source=source, metadata=self._metadata)
        return table.map_batches(read, batch_size=sources.ROWS, batch_format="pyarrow", num_cpus=_READ_CPUS)

    def _stage(self, data: Any, stage: type[stages.Stage], size: int, options: dict[str, float]) -> Any:
        return data.map_batches(
            stage,
            fn_constructor_args=(self._job,),
            batch_size=_BATCH,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=size),
            **options,
        )

    def _model_options(self) -> dict[str, float]:
        """Resources of one actor of a model: one device."""
        gpus = _resources().get("GPU", 0)
        models = self._workers.segmenters + self._workers.embedders
        if gpus and self._workers.gpus != 0:
            return {"num_gpus": self._workers.gpus or min(1.0, gpus / models), "num_cpus": _IO_CPUS}
        # For the stages that mostly wait, and a reader of Ray's own, which asks for a whole CPU.
        cpus = _resources().get("CPU", 1) - 1.5
        return {"num_cpus": max(0.1, min(1.0, cpus / models))}


def _counted(workers: Workers) -> Workers:
    """With the numbers for the cluster's GPUs: three segmenters for each embedder."""
    gpus = int(_resources().get("GPU", 0))
    embedders = workers.embedders or max(1, gpus // 4)
    segmenters = workers.segmenters or max(1, gpus - embedders)
    return Workers(segmenters, embedders, workers.gpus)


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    """Raises the error of a worker itself in place of Ray's around it."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        seen: set[int] = set()
        while cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            if type(cause) is RegionSearchError:
                raise cause from error
            cause = getattr(cause, "cause", None) or cause.__cause__ or cause.__context__
        raise RegionSearchError(Kind.INTERNAL, f"a worker failed: {error}") from error

"""Prometheus metrics of calls and batches, in the default registry; labels are bound once, not per call."""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import NamedTuple

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_FILL = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

_CALL = ("grpc_service", "grpc_method")
_STARTED = Counter("grpc_server_started_total", "Calls that have started.", _CALL)
_HANDLED = Counter("grpc_server_handled_total", "Calls that have ended, by status.", (*_CALL, "grpc_code"))
_HANDLING = Histogram("grpc_server_handling_seconds", "Duration of a call.", _CALL, buckets=_SECONDS)
_IN_FLIGHT = Gauge("grpc_server_in_flight", "Calls in progress.", _CALL)

_BUILD = Info("regionsearch_build", "1, with the versions of this program and of Python.")
_BUILD.info({"version": version("regionsearch"), "python": platform.python_version()})

SERVING = Gauge("regionsearch_serving", "1 while the process answers health checks with SERVING.")

_QUEUE = ("queue",)
_QUEUE_COST = Gauge("regionsearch_queue_cost", "Admitted items that wait for a batch.", _QUEUE)
_QUEUE_WAIT = Histogram(
    "regionsearch_queue_wait_seconds",
    "Time from admission to the batch, of each batch's first request.",
    _QUEUE,
    buckets=_SECONDS,
)
_BATCH_FILL = Histogram(
    "regionsearch_batch_fill", "Items of a batch divided by max_batch.", _QUEUE, buckets=_FILL
)
_BATCH_ITEMS = Counter("regionsearch_batch_items_total", "Items of finished batches.", _QUEUE)
_STAGE = Histogram(
    "regionsearch_stage_seconds", "Time a batch spends in a stage.", (*_QUEUE, "stage"), buckets=_SECONDS
)
_REFUSED = Counter(
    "regionsearch_queue_refused_total", "Requests that were not admitted.", (*_QUEUE, "reason")
)
_DROPPED = Counter(
    "regionsearch_queue_dropped_total", "Admitted requests that left before the device.", (*_QUEUE, "reason")
)
_FAILURES = Counter(
    "regionsearch_batch_failures_total", "Batches that failed, by the action taken.", (*_QUEUE, "action")
)


class CallMetrics(NamedTuple):
    """Metrics of one RPC method."""

    started: Counter
    handled: Counter  # still takes `grpc_service`, `grpc_method` and `grpc_code`
    handling: Histogram
    in_flight: Gauge


@functools.cache
def call_metrics(service: str, method: str) -> CallMetrics:
    """The metrics of one RPC method with its labels bound."""
    return CallMetrics(
        _STARTED.labels(service, method),
        _HANDLED,
        _HANDLING.labels(service, method),
        _IN_FLIGHT.labels(service, method),
    )


@functools.cache
def handled(service: str, method: str, code: str) -> Counter:
    """The counter of calls to one method that ended with one status code."""
    return _HANDLED.labels(service, method, code)


class QueueMetrics:
    """Metrics of one batcher."""

    def __init__(self, queue: str) -> None:
        self.cost = _QUEUE_COST.labels(queue)
        self.wait = _QUEUE_WAIT.labels(queue)
        self.fill = _BATCH_FILL.labels(queue)
        self.items = _BATCH_ITEMS.labels(queue)
        self.prepare = _STAGE.labels(queue, "prepare")
        self.device = _STAGE.labels(queue, "device")
        self.finish = _STAGE.labels(queue, "finish")
        self.refused_full = _REFUSED.labels(queue, "full")
        self.refused_late = _REFUSED.labels(queue, "deadline")
        self.dropped_cancelled = _DROPPED.labels(queue, "cancelled")
        self.dropped_expired = _DROPPED.labels(queue, "expired")
        self.halved = _FAILURES.labels(queue, "halved")
        self.bisected = _FAILURES.labels(queue, "bisected")
        self.failed = _FAILURES.labels(queue, "failed")


class DeviceMemory(Collector):
    """Memory on each GPU that this process uses, read on each scrape.

    Uses torch where the process has imported it, and never imports it. Devices on which the process holds
    nothing are left out: querying CUDA about them would create a context there.
    """

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the family, without samples where there is no GPU."""
        family = GaugeMetricFamily(
            "regionsearch_device_memory_bytes",
            "Memory of a device: allocated by tensors, reserved by the process, total.",
            labels=("device", "state"),
        )
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is not None and cuda.is_initialized():
            for index in range(cuda.device_count()):
                if reserved := cuda.memory_reserved(index):
                    device = f"cuda:{index}"
                    family.add_metric((device, "allocated"), cuda.memory_allocated(index))
                    family.add_metric((device, "reserved"), reserved)
                    family.add_metric((device, "total"), cuda.get_device_properties(index).total_memory)
        yield family


REGISTRY.register(DeviceMemory())


def serve_metrics(host: str, port: int) -> int:
    """Serves ``/metrics`` from a thread of its own.

    Returns:
        The port that was taken.
    """
    server, _ = start_http_server(port, host)
    return int(server.server_port)

"""One trace from an HTTP request down to the batch that worked for it: real processes, a real collector."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.gateway.conftest import BLUE, RED, GatewayProcess, Process, World, scene
from tests.gateway.fakes import Script
from tests.waiting import wait_for

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans over OTLP and keeps them by id, since an exporter that is in doubt sends them again."""

    def __init__(self) -> None:
        self.spans: dict[bytes, tuple[str, Any]] = {}

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans |= {span.span_id: (names["service.name"], span) for span in scope.spans}
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, process: str) -> list[Any]:
        """The spans of a process."""
        return [span for who, span in list(self.spans.values()) if who == f"regionsearch-{process}"]


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector that runs, and its address."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(None)


def test_one_trace_from_http_to_the_embedder_s_batches(
    world: World, script: Script, collector: tuple[Collector, str], tmp_path: Path
) -> None:
    """Gateway and embedder are real processes with the pocket model, which export to the collector."""
    seen, endpoint = collector
    fast = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    port_file = tmp_path / "embedder"
    embedder = ["services.embedder", "--port=0", "--port-file", str(port_file), "--otlp-endpoint", endpoint]
    with Process(embedder, **fast):
        wait_for(port_file.exists, 400)
        settings = world.settings(embedder=f"127.0.0.1:{port_file.read_text().strip()}")
        with (
            GatewayProcess(settings, REGIONSEARCH_GATEWAY_OTLP_ENDPOINT=endpoint, **fast) as gateway,
            httpx.Client(base_url=gateway.url, timeout=60) as http,
        ):
            assert http.post("/v1/collections", json={"name": "traced"}).status_code == 201
            answer = http.post(
                "/v1/collections/traced/images",
                files=[("files", ("a.png", scene(RED, BLUE)))],
                headers={"traceparent": f"00-{TRACE}-{CALLER}-01"},
            )
            assert answer.json()["results"][0]["outcome"] == "created", answer.text
            wait_for(lambda: len(linked(seen)) >= 1 and all(path(seen, call) for call in linked(seen)))
            http.delete("/v1/collections/traced")

    (entry,) = entries(seen)
    assert entry.kind == entry.SPAN_KIND_SERVER
    assert entry.name == "POST /v1/collections/{collection}/images"
    calls = [path(seen, call) for call in linked(seen)]  # in one batch or in two
    assert {steps[0].name.rpartition("/")[2] for steps in calls} == {"EmbedRegions"}
    for steps in calls:
        assert steps[-1].span_id == entry.span_id
        assert {span.trace_id.hex() for span in steps} == {TRACE}
        assert len(steps) > 2  # the gateway's own call stands between


def path(seen: Collector, call: bytes) -> list[Any]:
    """The spans from a call up to the HTTP request, without a gap; none while one is still to come."""
    steps, parent = [], call
    while parent.hex() != CALLER:
        if parent not in seen.spans:
            return []
        steps.append(seen.spans[parent][1])
        parent = steps[-1].parent_span_id
    return steps


def entries(seen: Collector) -> list[Any]:
    """Where the caller's trace comes into the gateway."""
    return [span for span in seen.of("gateway") if span.parent_span_id.hex() == CALLER]


def linked(seen: Collector) -> set[bytes]:
    """The calls of the trace that the embedder's batches worked for."""
    batches = [span for span in seen.of("embedder") if span.name.startswith("batch ")]
    return {link.span_id for batch in batches for link in batch.links if link.trace_id.hex() == TRACE}

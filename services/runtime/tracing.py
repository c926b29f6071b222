"""OpenTelemetry: one trace from the first HTTP request to every batch that worked for it.

Without an endpoint nothing is recorded and the calls below cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import aio_client_interceptors
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def configure_tracing(process: str, endpoint: str | None) -> TracerProvider | None:
    """Starts exporting spans.

    Args:
        process: Becomes the service name ``regionsearch-<process>``.
        endpoint: OTLP gRPC address; ``http://`` sends without TLS. None or nothing leaves tracing off.

    Returns:
        The provider, to be shut down at the end so that the last spans are sent; None when tracing is off.
    """
    if not endpoint:  # empty is how compose writes a variable that is not set
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": f"regionsearch-{process}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    return provider


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """Interceptors for an asyncio channel that carry the current trace to the service that is called."""
    interceptors: Sequence[grpc.aio.ClientInterceptor] = aio_client_interceptors()  # type: ignore[no-untyped-call]
    return interceptors

"""Logs and traces. Without an endpoint for traces nothing is recorded, at next to no cost."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import grpc
import structlog
from opentelemetry import trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


def configure_logging(process: str, level: str = "info", style: Literal["json", "console"] = "json") -> None:
    """Routes structlog and the standard library's loggers to stderr in one format.

    Args:
        process: Name that every line carries.
        level: Lowest level that is written.
        style: ``json`` for machines, ``console`` for people.
    """

    def add_process(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process
        return event

    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_process,
        _add_trace,
    ]
    if style == "json":
        shared.append(structlog.processors.format_exc_info)
        renderer: structlog.types.Processor = structlog.processors.JSONRenderer()
    else:
        # The default prints the local variables of every frame: whole images, and what callers sent.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _add_trace(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


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
    # Imported here: they take an eighth of the start of a process.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"regionsearch-{process}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    return provider


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """Interceptors for an asyncio channel that carry the current trace to the service that is called."""
    from opentelemetry.instrumentation.grpc import aio_client_interceptors

    interceptors: Sequence[grpc.aio.ClientInterceptor] = aio_client_interceptors()  # type: ignore[no-untyped-call]
    return interceptors

"""Traces of steps for OpenTelemetry: a span for a step, and in it those of its rollouts, its update and its publish.

They go where OTEL_EXPORTER_OTLP_ENDPOINT says, by OTLP over HTTP. Without it nothing is imported and a span is nothing.
Left out: metrics, which the service has for Prometheus, and logs.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SERVICE = "OTEL_SERVICE_NAME"


@cache
def provider() -> Any:
    """The sender of spans. It has a thread and a bounded queue: a collector that is away slows nothing, and what is
    still in the queue is sent at the process's end. None: nobody asked for traces."""
    if not os.environ.get(ENDPOINT):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Not set as the process's: libraries that trace, such as vLLM, would send their spans along.
    sender = TracerProvider(resource=Resource.create({"service.name": os.environ.get(SERVICE) or "coevo-worker"}))
    sender.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return sender


@contextmanager
def span(name: str, **attributes: str | int) -> Generator[None]:
    """A span within the one that is open in this task. It has that one's attributes too: people look for a branch."""
    if (sender := provider()) is None:
        yield
        return
    from opentelemetry import trace

    outer = getattr(trace.get_current_span(), "attributes", None) or {}
    with sender.get_tracer("coevo").start_as_current_span(name, attributes={**outer, **attributes}):
        yield

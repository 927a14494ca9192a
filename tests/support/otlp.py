"""A receiver of traces over OTLP: real HTTP, and OpenTelemetry's own decoder of what comes."""

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

KINDS = ("", "internal", "server", "client", "producer", "consumer")
ERROR = 2


@dataclass(frozen=True, kw_only=True)
class Span:
    """A span that came; times are Unix nanoseconds, ids are hex."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    begins: int
    ends: int
    failed: bool
    attributes: dict[str, Any]
    process: dict[str, Any]
    """The attributes of its resource."""


class Collector:
    """The receiver; a context manager. `url` is what `OTEL_EXPORTER_OTLP_ENDPOINT` names."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.raw = b""
        """All that came."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                collector.raw += body
                collector.spans += _spans(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, trace: str) -> list[Span]:
        """The spans of a trace, by their beginning."""
        return sorted((span for span in self.spans if span.trace == trace), key=lambda span: span.begins)


def _spans(request: ExportTraceServiceRequest) -> list[Span]:
    return [
        Span(
            name=span.name,
            kind=KINDS[span.kind],
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            begins=span.start_time_unix_nano,
            ends=span.end_time_unix_nano,
            failed=span.status.code == ERROR,
            attributes={pair.key: _value(pair.value) for pair in span.attributes},
            process={pair.key: _value(pair.value) for pair in resource.resource.attributes},
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)

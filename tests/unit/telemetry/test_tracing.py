"""The set-up of traces: an option, by OpenTelemetry's variables; without it the trace of a caller goes on."""

import logging
import os
import subprocess
import sys

import pytest
from opentelemetry import trace

from tidemill.telemetry import tracing

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WITHOUT_EXTRA = """
import asyncio, logging, pathlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
import tidemill.ingest.app, tidemill.processors.app, tidemill.results.app, tidemill.webhooks.app
from support.dependencies import client_of, open_dependencies
from tidemill.telemetry import tracing

async def create():
    async with open_dependencies(pathlib.Path(sys.argv[1])) as deps, client_of(deps) as client:
        file = {"file": ("in.jsonl", b'{"custom_id":"a"}')}
        made = (await client.post("/files", data={"purpose": "batch"}, files=file)).json()
        body = {"input_file_id": made["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
        for headers in ({"traceparent": sys.argv[2]}, {"traceparent": "odd"}, {}):
            batch = (await client.post("/batches", json=body, headers=headers)).json()
            print(batch["tidemill"].get("traceparent"))

logging.basicConfig()
flush = tracing.set_up("api")
asyncio.run(create())
flush()
"""


@pytest.fixture
def variables(monkeypatch):
    """The environment without OpenTelemetry's variables."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_without_the_extra_the_trace_of_a_caller_goes_on(tmp_path):
    """All stages can be imported, and the log says what is missing."""
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-c", WITHOUT_EXTRA, str(tmp_path), GIVEN]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [GIVEN, "None", "None"], done.stderr
    assert f"no traces are sent: opentelemetry.sdk is not installed ({tracing.EXTRA})" in done.stderr


def test_nothing_is_set_up_without_variables(variables):
    """Nor if they say so."""
    for names in ({}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}):
        for name, text in names.items():
            variables.setenv(name, text)
        tracing.set_up("api")()
        assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "names",
    [{"OTEL_TRACES_EXPORTER": "odd"}, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}],
)
def test_an_exporter_that_is_not_installed_is_named(variables, caplog, names):
    """A process works without traces."""
    for name, text in names.items():
        variables.setenv(name, text)
    with caplog.at_level(logging.WARNING, "tidemill"):
        tracing.set_up("api")()
    assert "no traces are sent: there is no exporter" in caplog.text
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)

"""The health endpoints of a process."""

import asyncio
import json
import socket
import urllib.error
import urllib.request

import pytest
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill import metrics
from tidemill.runtime import health
from tidemill.runtime.health import Health, Unhealthy
from tidemill.runtime.heartbeat import Heartbeat
from tidemill.storage.directory import DirectoryStore


async def well():
    """A probe that finds nothing."""


def make(*, fault=None, metrics=lambda: (b"tidemill_x 1\n", "text/plain"), **probes):
    return Health(fault=lambda: fault, probes=probes, metrics=metrics)


async def faults(state, path):
    answer = await state.answer(path)
    return answer.status, json.loads(answer.body).get("faults", {})


async def test_a_healthy_process():
    """All endpoints report no fault."""
    for path in ("/livez", "/readyz"):
        assert await faults(make(kafka=well), path) == (200, {})


async def test_unavailable_dependencies():
    """The process is alive but not ready; a fault shows its type, or a text meant to be public."""

    async def refused():
        raise ConnectionRefusedError("secret-host:9092")

    async def waits():
        raise Unhealthy("without an assignment")

    state = make(kafka=refused, assignment=waits, store=well)
    assert await faults(state, "/livez") == (200, {})
    expected = {"kafka": "ConnectionRefusedError", "assignment": "without an assignment"}
    assert await faults(state, "/readyz") == (503, expected)


async def test_a_probe_that_is_left_out_is_not_awaited():
    """A broker that hangs delays no answer that does not depend on it, not even behind one that does."""
    state = make(kafka=asyncio.Event().wait, store=asyncio.Event().wait, start=well)
    whole = asyncio.create_task(state.answer("/readyz"))
    assert (await state.answer("/readyz", ["kafka", "store"])).status == 200
    assert not whole.done()
    whole.cancel()
    await asyncio.wait([whole])


async def test_a_fault_of_the_process_itself():
    """The process is neither alive nor ready."""
    state = make(fault="the loop does not turn", kafka=well)
    for path in ("/livez", "/readyz"):
        assert await faults(state, path) == (503, {"process": "the loop does not turn"})


async def test_a_probe_without_an_answer(monkeypatch):
    """It times out."""
    monkeypatch.setattr(health, "PROBE_SECONDS_MAX", 0.05)
    status, found = await faults(make(kafka=asyncio.Event().wait), "/readyz")
    assert (status, list(found)) == (503, ["kafka"])


async def test_a_recovered_dependency(monkeypatch):
    """The cache is short."""
    monkeypatch.setattr(health, "CACHE_SECONDS", 0.0)
    is_away = True

    async def probe():
        if is_away:
            raise OSError

    state = make(store=probe)
    assert (await faults(state, "/readyz"))[0] == 503
    is_away = False
    assert (await faults(state, "/readyz"))[0] == 200


async def test_a_store_that_cannot_be_written(tmp_path):
    """The probe of a real folder fails."""
    store = DirectoryStore(tmp_path / "store")
    await health.check_store(store, "test")
    (tmp_path / "store").rename(tmp_path / "gone")
    with pytest.raises(OSError, match="No such file"):
        await health.check_store(store, "test")
    await store.close()


async def test_an_old_heartbeat_is_a_fault():
    """A recent one is none."""
    heartbeat = Heartbeat()
    beating = asyncio.create_task(heartbeat.run())
    await until(lambda: heartbeat._guard._silence.seconds == 0, "a beat")
    assert heartbeat.fault() is None
    beating.cancel()
    heartbeat._beat_at -= 3600
    assert "old" in heartbeat.fault()


async def test_the_endpoints_over_http():
    """Paths, methods, and bytes that are not HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with health.serve(make(kafka=well), "127.0.0.1", port):
            pass  # a port in use is no reason to end

    def get(path, method="GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    async def away():
        raise OSError

    async with health.serve(make(kafka=well, store=away), "127.0.0.1", port):
        assert (await asyncio.to_thread(get, "/readyz?exclude=kafka"))[0] == 503
        assert (await asyncio.to_thread(get, "/readyz?exclude=kafka&exclude=store"))[0] == 200
    async with health.serve(make(kafka=well), "127.0.0.1", port):
        assert await asyncio.to_thread(get, "/livez?x=1") == (200, b'{"status":"ok"}\n')
        assert (await asyncio.to_thread(get, "/readyz"))[0] == 200
        assert await asyncio.to_thread(get, "/metrics") == (200, b"tidemill_x 1\n")
        assert (await asyncio.to_thread(get, "/nothing"))[0] == 404
        assert (await asyncio.to_thread(get, "/livez", "POST"))[0] == 405
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * (2 * health.HEAD_BYTES_MAX))
        assert await reader.read() == b""
        writer.close()


def test_prometheus_parses_the_metrics():
    """With its own parser."""
    text, kind = metrics.text()
    assert kind.startswith("text/plain")
    assert b"tidemill_receipt_mismatches_total" in text

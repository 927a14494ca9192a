"""A process names its apps in its log, but not at its health port."""

import contextlib
from types import SimpleNamespace

import pytest

from tidemill.faust.monitored_apps import MonitoredApps
from tidemill.runtime.health import Health, Unhealthy
from tidemill.runtime.heartbeat import Dead, Heartbeat

NAME = "tidemill-processors-secret-model"


async def test_no_model_is_named_at_the_health_port(caplog):
    """Neither for an app without assignment nor for a dead one; the log has the name."""
    caplog.set_level("INFO")
    monitored = MonitoredApps()
    monitored._apps = [(NAME, None, SimpleNamespace(is_assigned=False), None)]
    for _ in range(2):
        with pytest.raises(Unhealthy, match="1 of 1 consumers") as caught:
            await monitored.check_assigned()
        assert NAME not in str(caught.value)
    assert caplog.text.count(NAME) == 1
    heartbeat = Heartbeat(lambda _: f"{NAME}: has ended")
    with pytest.raises(Dead, match=NAME), contextlib.closing(heartbeat.run()) as beating:
        await beating
    for path in ("/livez", "/readyz"):
        answer = await Health(fault=heartbeat.fault, probes={}, metrics=lambda: (b"", "")).answer(path)
        assert (answer.status, NAME.encode() in answer.body) == (503, False)

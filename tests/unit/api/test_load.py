"""The load of servers: reports of several processes, their sums and parts, their age, and the events of it."""

import pytest
from support.dependencies import NOW, READER, client_of, open_dependencies

from tidemill.api.servers.load import SHOWN_MAX, LoadEvent, Loads
from tidemill.configuration.settings import Settings
from tidemill.schemas.log import codec
from tidemill.schemas.resources.load import (
    STALE_SECONDS,
    BreakerState,
    Cause,
    ModelLoad,
    ProcessReport,
    ServerLoad,
)
from tidemill.schemas.resources.waiting import Reason

URL = "http://127.0.0.1:9/v1"
SETTINGS = Settings(
    servers={"gpu-1": {"url": URL}, "pods": {"url": "http://localhost:9/v1", "discover": "dns"}},
    models={"m": {"servers": ["gpu-1", "pods"]}},
)


@pytest.fixture
async def deps(tmp_path):
    async with open_dependencies(tmp_path, settings=SETTINGS) as deps:
        yield deps


async def test_the_limit_of_some_servers(deps):
    """Of all processes; addresses that were discovered count for their server."""
    assert deps.loads.limit({"gpu-1"}) is None
    for process in ("one", "two"):
        report = ProcessReport(process=process, servers=(load(), load("pods@10.0.0.1", limit=3)), models=())
        deps.loads.apply(process, codec.encode(report), NOW)
    deps.loads._limits = (0, [])
    assert (deps.loads.limit({"gpu-1"}), deps.loads.limit({"gpu-1", "pods"})) == (16, 22)
    assert deps.loads.limit({"other"}) is None


def load(name: str = "gpu-1", **fields: object) -> ServerLoad:
    given = {
        "limit": 8, "in_flight": 4, "unacknowledged": 0, "refused": 1, "lines_per_second": 2.5,
        "tokens_per_second": 100, "lines_waiting": 10, "breaker": BreakerState.CLOSED,
        "durations": (0, 0, 0, 0, 0, 100),
    }  # fmt: skip
    return ServerLoad(name=name, **{**given, **fields})


def report(deps, *servers: ServerLoad, process: str = "host:1", at: float = NOW) -> None:
    cause = servers[0].cause
    models = (ModelLoad(name="m", in_flight=4, lines_waiting=10, lines_per_second=2.5, cause=cause),)
    deps.loads.apply(process, codec.encode(ProcessReport(process=process, servers=servers, models=models)), at)


async def test_processes_add_up(deps, operator):
    """What they measure is summed, what the server says of itself is not, and the parts are there."""
    why = Cause(reason=Reason.SERVER_REFUSES, status=503, message="gpu-1 answers 503.", since=NOW - 9)
    full = Cause(reason=Reason.QUEUED, message="It is full.", since=NOW - 99)
    report(deps, load(queued=7, running=12, cause=full))
    report(
        deps,
        load(queued=9, running=11, cause=why, breaker=BreakerState.OPEN, in_flight=0),
        process="host:2",
        at=NOW + 1,
    )
    found = (await operator.get("/admin/servers/gpu-1")).json()["load"]
    parts = found.pop("processes")
    assert found == {
        "limit": 16, "in_flight": 4, "refused": 2, "queued": 9, "running": 11, "lines_waiting": 20,
        "lines_per_second": 5.0, "tokens_per_second": 200.0, "breaker": "open",
        "duration_seconds": {"p50": 0.375, "p99": pytest.approx(0.4975)},
        "first_byte_seconds": {"p50": None, "p99": None}, "cause": why.model_dump(mode="json"),
    }  # fmt: skip
    assert [(one["process"], one["server"], one["at"], one["in_flight"]) for one in parts] == [
        ("host:1", "gpu-1", NOW, 4),
        ("host:2", "gpu-1", NOW + 1, 0),
    ]
    listed = (await operator.get("/admin/servers")).json()["data"]
    assert {one["id"]: one["load"] and one["load"]["in_flight"] for one in listed} == {"gpu-1": 4, "pods": None}
    (model,) = (await operator.get("/admin/models")).json()["data"]
    assert model["load"].pop("cause") == why.model_dump(mode="json")
    assert model["load"] == {"in_flight": 8, "lines_waiting": 20, "lines_per_second": 5.0}


def of_model(cause: Cause | None = None, in_flight: int = 0, lines_waiting: int = 0) -> ModelLoad:
    return ModelLoad(name="m", in_flight=in_flight, lines_waiting=lines_waiting, lines_per_second=0, cause=cause)


DOWN = Cause(reason=Reason.SERVER_UNREACHABLE, message="It is down.", since=NOW - 9)
FULL = Cause(reason=Reason.QUEUED, message="It is full.", since=NOW - 99)


@pytest.mark.parametrize(
    ("loads", "cause"),
    [
        ([of_model(DOWN, lines_waiting=5), of_model(in_flight=8)], None),
        ([of_model(DOWN, lines_waiting=5), of_model(lines_waiting=8)], None),
        ([of_model(FULL, 8, 5), of_model(DOWN, lines_waiting=5)], DOWN),
        ([of_model(), of_model(DOWN, lines_waiting=5), of_model()], DOWN),
        ([of_model(), of_model(DOWN)], DOWN),
        ([of_model(), of_model()], None),
    ],
)
async def test_a_model_has_a_cause_if_no_process_calls_its_lines(deps, loads, cause):
    """A process without lines, in which the model may sleep, does not contradict the others."""
    for number, one in enumerate(loads):
        value = ProcessReport(process=f"h:{number}", servers=(), models=(one,))
        deps.loads.apply(f"h:{number}", codec.encode(value), NOW)
    assert deps.loads.models()["m"].cause == cause


async def test_addresses_of_a_server_add_up(deps, operator):
    """A line that waits for all of them counts once for each process."""
    report(
        deps,
        load("pods@10.0.0.1:80", queued=1, running=1),
        load("pods@10.0.0.2:80", queued=2, running=0),
    )
    report(deps, load("pods@10.0.0.1:80", queued=3, running=1, lines_waiting=5), process="host:2", at=NOW + 1)
    found = (await operator.get("/admin/servers/pods")).json()["load"]
    assert (found["in_flight"], found["queued"], found["lines_waiting"]) == (12, 5, 15)
    assert [one["server"] for one in found["processes"]] == [
        "pods@10.0.0.1:80",
        "pods@10.0.0.1:80",
        "pods@10.0.0.2:80",
    ]


async def test_a_process_that_is_gone_does_not_count(tmp_path):
    """At once if it said so, or when it has missed its heartbeats."""
    now = [float(NOW)]
    async with open_dependencies(tmp_path, settings=SETTINGS, clock=lambda: now[0]) as deps:
        report(deps, load())
        report(deps, load(), process="host:2")
        deps.loads.apply("host:1", None, NOW)
        assert len(deps.loads.servers()["gpu-1"].processes) == 1
        now[0] += STALE_SECONDS
        assert deps.loads.servers()["gpu-1"].in_flight == 4
        now[0] += 1
        assert "gpu-1" not in deps.loads.servers()


def limit_after(ahead: list[float], *, old_seconds: float | None = None) -> int | None:
    """The limit of a server by a report that comes once clocks and log are so many seconds ahead, one by one."""
    wall, seconds = [float(NOW)], [0.0]
    loads = Loads(lambda: wall[0], lambda: {"gpu-1"}, monotonic=lambda: seconds[0])
    body = codec.encode(ProcessReport(process="h:1", servers=(load(),), models=()))
    for step in ahead:
        seconds[0] += 10
        wall[0] = NOW + seconds[0] + step
        loads.apply("h:1", body, wall[0] - (old_seconds or 0), is_old=old_seconds is not None)
    return loads.limit({"gpu-1"})


def test_the_load_needs_no_right_clock():
    """Also after the clocks were an hour ahead, or behind; only what the log had at the start has an age."""
    assert limit_after([0, 3600, 0]) == limit_after([0, -3600, 0]) == limit_after([3600]) == 8
    assert limit_after([0], old_seconds=STALE_SECONDS - 1) == 8
    assert limit_after([0], old_seconds=STALE_SECONDS + 1) is None


async def test_only_reports_are_read(deps):
    """Other records are refused."""
    with pytest.raises(codec.DecodeError):
        deps.loads.apply("host:1", b"{}", NOW)


async def test_the_event_of_a_load_is_bounded(deps):
    """It has the busiest servers, without parts, and is made once for all streams."""
    many = {f"s{number}": {"url": f"http://127.0.0.1:{number + 1}/v1"} for number in range(SHOWN_MAX + 9)}
    settings = Settings(servers=many, models={"m": {"servers": list(many)}})
    loads = type(deps.loads)(deps.clock, lambda: settings.servers)
    for process in range(3):
        first, last = 100 * process, min(100 * process + 100, SHOWN_MAX + 9)
        servers = tuple(load(f"s{number}", in_flight=number) for number in range(first, last))
        body = codec.encode(ProcessReport(process=f"h:{process}", servers=servers, models=()))
        loads.apply(f"h:{process}", body, NOW)
    event = LoadEvent.model_validate_json(loads.event())
    assert (len(event.servers), event.processes, "s0" in event.servers) == (SHOWN_MAX, 3, False)
    assert len(loads.event()) < 256 << 10
    assert loads.event() is loads.event()


@pytest.mark.parametrize("key", ["key-of-p", READER])
async def test_only_an_operator_may_follow_the_load(deps, key):
    """A stream that names no types has no load."""
    async with client_of(deps, key) as client:
        answer = await client.get("/events", params={"types": "batch,load"})
    assert answer.status_code == 403

"""Tasks that a process cannot do without, and those that go on after a fault."""

import ast
import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.api import listed_models
from tidemill.api.listed_models import ListedModels
from tidemill.kafka import admin
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.partitions.owner import Bounds, PartitionOwners
from tidemill.processors.backends import addresses, servers
from tidemill.processors.backends.addresses import Addresses
from tidemill.processors.backends.servers import Servers
from tidemill.tasks import CrashLatch, drain, run_all, watched

ROOT = Path(__file__).parents[2]
LONG_LIVED = ["api", "ingest", "processors", "results", "webhooks"] + [
    f"src/tidemill/{name}" for name in ("faust", "kafka", "runtime", "sealing", "storage")
]
EXEMPT = {
    "processors/backends/servers.py": "its loops log a fault and go on",
    "processors/calls/in_flight.py": "its `_run` is one call",
    "src/tidemill/faust/stage_runner.py": "it waits for its tasks",
    "src/tidemill/kafka/follower.py": "the loop goes on after any error",
    "src/tidemill/storage/disk_space.py": "the loop goes on after any error",
}


def own(node: ast.AST) -> Iterator[ast.AST]:
    """What is in a function, without the functions inside it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from own(child)


def callee(node: ast.AST | None) -> str:
    """The name of what a node calls."""
    func = node.func if isinstance(node, ast.Call) else None
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def is_endless(function: ast.AsyncFunctionDef, names: set[str]) -> bool:
    """Whether a function has an endless loop, or awaits another that has one."""
    for node in own(function):
        is_loop = isinstance(node, ast.While) and getattr(node.test, "value", False) is True
        if is_loop and not any(isinstance(inner, ast.Return | ast.Break) for inner in own(node)):
            return True
        awaited = node.value if isinstance(node, ast.Expr) else None
        if isinstance(awaited, ast.Await) and callee(awaited.value) in names:
            return True
    return False


def test_an_endless_task_is_watched() -> None:
    """One that ends by a fault, unseen, leaves a process that looks well and does not do its work."""
    paths = [path for folder in LONG_LIVED for path in (ROOT / folder).rglob("*.py") if not path.is_symlink()]
    trees = {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in paths}
    functions = [
        node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)
    ]
    names: set[str] = set()
    while found := {each.name for each in functions if is_endless(each, names)} - names:
        names |= found
    assert {"run_timers", "destroy_due_keys", "_finish_start"} <= names
    bare = set()
    for name, tree in trees.items():
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            is_task = callee(node) in ("create_task", "ensure_future")
            if is_task and callee(node.args[0]) in names and callee(parents[node]) != "watched":
                bare.add(name)
    assert bare == EXEMPT.keys()


async def test_the_error_of_a_watched_task_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    """The first one counts; a task that ends or is cancelled causes none."""
    fault = CrashLatch()

    async def work(error: Exception | None) -> None:
        if error is not None:
            raise error

    first = RuntimeError()
    await watched(asyncio.create_task(work(None)), fault)
    idle = watched(asyncio.create_task(asyncio.Event().wait()), fault)
    idle.cancel()
    await asyncio.wait([idle])
    assert fault.error is None
    for error in (first, ValueError()):
        watched(asyncio.create_task(work(error), name="look"), fault)
        await fault.wait()
        assert fault.error is first
    assert "the task look failed: RuntimeError" in caplog.text


async def test_timers_that_cannot_be_read_end_the_process() -> None:
    """Else nothing of the partition would be due any more."""

    class Broken:
        start = abandon = lambda _: None

        def is_due(self) -> bool:
            raise KeyError

    fault = CrashLatch()
    owners = PartitionOwners(lambda _: Broken(), Bounds(records=1, bytes=1, records_per_call=1), crash=fault)
    owners.assign([0])
    watched(asyncio.create_task(owners.run_timers()), fault)
    await fault.wait()
    assert isinstance(fault.error, KeyError)


async def test_addresses_are_looked_up_again_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it was."""
    monkeypatch.setattr(addresses, "LOOKUP_SECONDS", 0.0)

    async def lookup(*_: object) -> list[str]:
        return ["10.0.0.1"] if changed else ["10.0.0.2"]

    def change() -> None:
        changed.append(found.present)
        if len(changed) == 1:
            raise RuntimeError

    changed: list[tuple[str, ...]] = []
    found = Addresses("gpu", ("gpu", 80), lookup, change, lambda: 0.0)
    running = asyncio.create_task(found.run())
    await until(lambda: len(changed) == 2, "the second answer")
    assert changed == [("10.0.0.2",), ("10.0.0.1",)]
    running.cancel()


async def test_listed_models_are_looked_for_again_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it was."""
    looks: list[None] = []

    async def look() -> None:
        looks.append(None)
        raise TypeError

    monkeypatch.setattr(listed_models, "LOOK_SECONDS", 0.0)
    models = ListedModels(Catalog(None), None, lambda: 0.0)
    monkeypatch.setattr(models, "look", look)
    running = asyncio.create_task(models.run())
    await until(lambda: len(looks) > 1, "the second look")
    running.cancel()


async def test_servers_look_for_a_missing_key_again_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look is due although this one failed."""
    found, later = Servers(lambda: 0.0, lambda: 0.0), []
    monkeypatch.setattr(found, "_set_all", lambda: later[0])
    monkeypatch.setattr(found, "_follow_later", lambda: later.append(servers.LACK_SECONDS))
    with pytest.raises(IndexError):
        found._follow()
    assert later


@pytest.mark.parametrize("kept", [None, "", "x"])
async def test_a_retention_time_that_is_no_number_is_unknown(
    kept: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard of it then keeps the last known one."""

    async def configs(*_: object, **__: object) -> dict[str, dict[str, str | None]]:
        return {"a": {"retention.ms": "1000"}, "b": {"retention.ms": kept}}

    monkeypatch.setattr(admin, "topic_configs", configs)
    with pytest.raises(OSError, match="retention"):
        await admin.retention(None, [])


async def test_a_drain_cancels_the_tasks_that_go_on():
    """After a bound; the process goes on if they end then."""
    fault, ended, released = CrashLatch(), asyncio.Event(), asyncio.Event()
    short, endless = asyncio.create_task(ended.wait()), asyncio.create_task(released.wait())
    ended.set()
    assert await drain([short, endless], 0.01, fault) == 1
    assert (short.cancelled(), endless.cancelled(), fault.error) == (False, True, None)
    assert await drain([short], 0.01, fault) == await drain([], 0.01, fault) == 0


async def never() -> None:
    """Work until cancelled."""
    await asyncio.Event().wait()


async def fail(words: str, *, at_end: bool = False) -> None:
    """Fail at once, or once cancelled."""
    try:
        await (never() if at_end else asyncio.sleep(0))
    finally:
        raise ValueError(words)


async def test_the_first_error_of_several_works_is_raised() -> None:
    """The others have ended by then, whatever they ended with."""
    ends = asyncio.Event()

    async def other() -> None:
        try:
            await never()
        finally:
            ends.set()

    with pytest.raises(ValueError, match="first"):
        await run_all([other(), fail("second", at_end=True), fail("first")])
    assert ends.is_set()


@pytest.mark.parametrize("works", [[never], [never, lambda: fail("late", at_end=True)]])
async def test_a_cancellation_of_several_works_is_raised(
    works: list[Callable[[], Coroutine[Any, Any, None]]],
) -> None:
    """Also if a work fails when it is cancelled: who cancels, or sets a timeout, must not get its error."""
    running = asyncio.create_task(run_all(work() for work in works))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run_all(work() for work in works)


async def test_a_cancellation_while_several_works_fail_is_raised() -> None:
    """An error has cancelled the others, and they have not ended yet."""
    is_ending, may_end = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        try:
            await never()
        finally:
            is_ending.set()
            await may_end.wait()

    running = asyncio.create_task(run_all([slow(), fail("first")]))
    await is_ending.wait()
    running.cancel()
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.wait([running])
    assert running.cancelled()


@pytest.mark.parametrize("is_direct", [False, True])
async def test_a_work_that_is_cancelled_has_not_ended(is_direct: bool) -> None:
    """The caller would go on without its result; the other works are cancelled."""
    inner = asyncio.create_task(never())
    tasks: list[asyncio.Task[None] | None] = []

    async def work() -> None:
        tasks.append(asyncio.current_task())
        await (never() if is_direct else inner)

    running = asyncio.create_task(run_all([work(), never()]))
    await until(lambda: bool(tasks), "the work")
    to_cancel = tasks[0] if is_direct else inner
    assert to_cancel is not None
    to_cancel.cancel()
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        await asyncio.wait([running])
    assert running.cancelled()

"""The Python client: mistakes in its use are named before anything is sent."""

import asyncio
import gc
import os
import signal
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import ClientConnectorDNSError
from aiohttp.client_reqrep import ConnectionKey
from support.service import KEY, Batches, Service
from support.waiting import until

from tidemill import AsyncTidemill, Tidemill, UsageError
from tidemill.client.errors import LIBRARY
from tidemill.client.http.client import Client
from tidemill.client.library.blocking import Loop
from tidemill.terminal import Console


async def test_the_library_connects_in_async_with(service: Service, source: Path) -> None:
    """Each method says so before, and after its end."""
    client = AsyncTidemill(base_url=service.url, api_key=KEY)
    table = pa.table({"text": ["a"]})
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: client.submit(source),
        lambda: client.submit(source, key="k"),
        lambda: client.run(source),
        lambda: client.map(table, model="m", prompt="{{ text }}"),
        lambda: client.embed(table, model="m", column="text"),
        lambda: client.batch("batch_1"),
        lambda: anext(client.batches()),
        client.__aexit__,
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="not connected: use it inside `async with AsyncTidemill"):
            await call()
    async with client:
        assert (await client.batch("batch_1")).id == "batch_1"
    with pytest.raises(RuntimeError, match="not connected"):
        await client.batch("batch_1")


async def test_a_rejected_input_is_an_error_in_both_clients(service: Service, source: Path) -> None:
    """Its text has the faulty lines: without them, a program would go on with no results."""
    fault = {"code": "invalid_json", "message": "It is not JSON.", "line": 2, "param": None}
    service.states = [{"status": "failed", "errors": {"object": "list", "data": [fault]}}]
    expected = r"the service rejected the input\n  line 2: It is not JSON\. \[invalid_json\]$"
    async with AsyncTidemill(base_url=service.url, api_key=KEY) as client:
        with pytest.raises(UsageError, match=expected):
            await client.run(source)
        batch = await client.batch("batch_1")
        with pytest.raises(UsageError, match="batch_1 is failed and has no results: line 2"):
            await batch.download(source.with_name("out.jsonl"))

    def blocking() -> None:
        with Tidemill(base_url=service.url, api_key=KEY) as client:
            client.run(source)

    with pytest.raises(UsageError, match=expected):
        await asyncio.to_thread(blocking)


async def test_an_option_that_does_not_exist_is_refused_before_the_upload(service: Service, source: Path) -> None:
    """The service ignores fields that it does not know."""
    wrong: dict[str, Any] = {"windw": "24h"}
    async with AsyncTidemill(base_url=service.url, api_key=KEY) as client:
        for call in (client.submit, client.run):
            with pytest.raises(TypeError, match="windw"):
                await call(source, **wrong)
        table = pa.table({"text": ["a"]})
        for options, name in ((wrong, "windw"), ({"tries": 3}, "tries"), ({"output": "o"}, "output")):
            with pytest.raises(TypeError, match=f"a table has no option {name}; its options are window, "):
                await client.embed(table, model="m", column="text", **options)
            with pytest.raises(TypeError, match=f"a table has no option {name}; its options are window, "):
                await client.map(table, model="m", prompt="{{ text }}", **options)
        inner: dict[str, Any] = {"show_all": True}
        with pytest.raises(TypeError, match="a batch has no option show_all"):
            await client.run(source, **inner)
        assert (service.files, service.created) == ({}, [])
        await client.submit(source, window="1h", dedupe="all", metadata={"name": "n"})
    assert [each["completion_window"] for each in service.created] == ["1h"]


async def test_a_closed_client_says_so(service: Service, source: Path) -> None:
    """Also its batches and iterators; it closes twice, and nothing is left that was never awaited."""
    service.states = [{"status": "in_progress", "request_counts": {"total": 3, "completed": 0, "failed": 0}}]

    def calls() -> None:
        with Tidemill(service.url, KEY) as client:
            batch = client.batch("batch_1")
            found = client.batches()
            assert next(found).id == "batch_0"
        table = pa.table({"text": ["a"]})
        late: tuple[Callable[[], object], ...] = (
            lambda: client.submit(source),
            lambda: client.run(source),
            lambda: client.map(table, model="m", prompt="{{ text }}"),
            lambda: client.batch("batch_1"),
            lambda: next(client.batches()),
            batch.wait,
            batch.refresh,
            lambda: next(batch.results()),
        )
        for call in late:
            with pytest.raises(RuntimeError, match="the client is closed"):
                call()
        found.close()  # type: ignore[attr-defined]  # it is a generator
        client.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await asyncio.to_thread(calls)
        gc.collect()
    assert [str(each.message) for each in caught if "never awaited" in str(each.message)] == []


def test_a_call_ends_when_another_thread_closes_the_client() -> None:
    """Its work is cancelled, and comes to its end before the loop does."""
    loop, ended = Loop(), []

    async def work() -> None:
        threading.Thread(target=loop.stop).start()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            ended.append(True)
            raise

    with pytest.raises(RuntimeError, match="the client is closed"):
        loop.run(work())
    assert ended == [True]
    loop.stop()


async def test_two_threads_close_one_client(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one waits for the first."""
    client = await asyncio.to_thread(Tidemill, service.url, KEY)
    leave, left, threads = AsyncTidemill.__aexit__, [], ThreadPoolExecutor()

    async def leaving(inner: AsyncTidemill) -> None:
        left.append(inner)
        others.append(threads.submit(client.close))
        for _ in range(1_000):
            await asyncio.sleep(0)
        await leave(inner)

    others: list[Future[None]] = []
    monkeypatch.setattr(AsyncTidemill, "__aexit__", leaving)
    await asyncio.to_thread(client.close)
    assert [await asyncio.to_thread(other.result, 10) for other in others] == [None]
    assert len(left) == 1
    threads.shutdown()


def test_ctrl_c_waits_for_the_end_of_the_work() -> None:
    """The same call may follow at once, and needs the files that the first one has locked."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    loop, ended = Loop(), []

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(1_000):
                await asyncio.sleep(0)
            ended.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run(work())
        assert ended == [True]
    finally:
        signal.signal(signal.SIGINT, before)
        loop.stop()


async def test_the_library_names_its_own_arguments(
    source: Path, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an error nor a line of the progress has an option of the command line."""
    for name in ("TIDEMILL_BASE_URL", "TIDEMILL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    said = []
    for options in (
        {},
        {"base_url": "http://127.0.0.1:1/v1"},
        {"base_url": "http://127.0.0.1:1/v1", "api_key": "ä"},
    ):
        with pytest.raises(UsageError) as caught:
            AsyncTidemill(**options)
        said.append(str(caught.value))
    key = ConnectionKey("a.invalid", 80, False, True, None, None, None)
    error = ClientConnectorDNSError(key, OSError())
    said.append(str(Client("http://a.invalid/v1", KEY, LIBRARY).unreachable(error)))
    async with Batches() as service, AsyncTidemill(service.url, KEY) as client:
        client._console = console
        service.is_held, service.drops = True, {"1"}
        said.append(await _interrupted(client, service, console, source))
        service.is_held = False
        await client.run(source)
        batch = await client.batch("batch_0")
        calls = (lambda: client.run(source), lambda: batch.download("in.output.jsonl"))
        for call in calls:
            with pytest.raises(UsageError, match="already exists; overwrite=True overwrites it") as caught:
                await call()
            said.append(str(caught.value))
        await client.run(source, overwrite=True, again=True)
        table = pa.table({"text": ["a", "b"]})
        await client.map(table, model="m", prompt="{{ text }}")
    printed = console.export_text()
    assert "1 of 2 rows answered, 1 with an error" in printed
    assert "The same call resumes it" in printed
    assert "Resuming in.jsonl; again=True starts over." in printed
    assert ".arrow" not in printed
    assert [line for line in (*said, *printed.splitlines()) if "--" in line or "command" in line] == []


async def _interrupted(client: AsyncTidemill, service: Batches, console: Console, source: Path) -> str:
    """Interrupt runs of a file and of a table; returns the error of a call that meets the journal of another."""

    async def interrupt(work: Coroutine[Any, Any, object], until_: Callable[[], object]) -> None:
        task = asyncio.create_task(work)
        await until(until_, "the batch")
        task.cancel()
        await asyncio.wait([task])

    table = pa.table({"text": ["a", "b"]})
    await interrupt(client.run(source), lambda: len(service.inputs) == 1)
    await interrupt(client.run(source), lambda: "Resuming" in console.export_text(clear=False))
    await interrupt(client.map(table, model="m", prompt="{{ text }}"), lambda: len(service.inputs) == 2)
    with pytest.raises(UsageError, match="again=True starts over") as caught:
        await client.run(source, window="1h")
    return str(caught.value)

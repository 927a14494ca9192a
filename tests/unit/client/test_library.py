"""The Python client: mistakes in its use are named before anything is sent."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.service import KEY, Service

from tidemill import AsyncTidemill, Tidemill, UsageError


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
        with pytest.raises(TypeError, match="windw"):
            await client.embed(table, model="m", column="text", **wrong)
        assert (service.files, service.created) == ({}, [])
        await client.submit(source, window="1h", dedupe="all", metadata={"name": "n"})
    assert [each["completion_window"] for each in service.created] == ["1h"]

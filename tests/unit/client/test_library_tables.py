"""The Python client over tables in memory: each row has its own answer, and no answer is lost or asked twice."""

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from support.service import KEY, Batches
from support.waiting import until

from tidemill import AsyncTidemill, Tidemill
from tidemill.client.library import frames
from tidemill.client.library.blocking import Loop
from tidemill.client.runs.journal import Journal

TEXTS = ["one", "two", "three"]
FRAME = pa.table({"text": TEXTS})
INTERRUPTED = """
import signal, sys
import pyarrow as pa
from tidemill import Tidemill

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.siginterrupt(signal.SIGINT, False)
with Tidemill(sys.argv[1], sys.argv[2], progress=False) as client:
    table = pa.table({"text": ["one"]})
    try:
        client.map(table, model="m", prompt="{{ text }}")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(client.map(table, model="m", prompt="{{ text }}")["answer"].to_pylist())
"""


class Changing:
    """A query whose every reading gives other rows, like a sample of DuckDB."""

    def __init__(self) -> None:
        self.reads = 0

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        self.reads += 1
        table = pa.table({"text": [f"{text} at reading {self.reads}" for text in TEXTS]})
        return table.__arrow_c_stream__(requested_schema)


@pytest.fixture
async def service() -> Any:
    """A service whose answer is the question."""
    async with Batches() as service:
        service.answer = lambda line: line["body"]["messages"][-1]["content"]
        yield service


async def asked(service: Batches, frame: Any, **options: Any) -> Any:
    """The result of a call of the asynchronous client."""
    async with AsyncTidemill(service.url, KEY, progress=False) as client:
        return await client.map(frame, model="m", prompt="{{ text }}", **options)


def kept(state: Path) -> list[Path]:
    """What the state directory holds of calls."""
    return list((state / "tidemill").iterdir())


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def fail(*_: object) -> None:
    """Stands for a fault while the result is made."""
    raise ZeroDivisionError


@pytest.mark.parametrize("frame", [FRAME.to_reader, Changing])
async def test_a_stream_is_read_once(service: Batches, frame: Callable[[], Any]) -> None:
    """It may end after that, or have other rows: the answers would stand beside the wrong ones."""
    found = await asked(service, frame())
    assert found["text"].to_pylist() == found["answer"].to_pylist()
    assert found.num_rows == len(TEXTS)


async def test_a_result_that_cannot_be_made_leaves_the_answers(
    service: Batches, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call reads them from disk and makes no batch; the one after it asks again."""
    with monkeypatch.context() as broken:
        broken.setattr(frames, "like", fail)
        with pytest.raises(ZeroDivisionError) as caught:
            await asked(service, FRAME)
    assert str(state) in caught.value.__notes__[0]
    again = await asked(service, FRAME)
    assert again["answer"].to_pylist() == TEXTS
    assert (len(service.inputs), kept(state)) == (1, [])
    await asked(service, FRAME)
    assert len(service.inputs) == 2


async def test_starting_over_does_not_read_answers_that_are_kept(
    service: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a call that resumes one with `again`."""
    with monkeypatch.context() as broken:
        broken.setattr(frames, "like", fail)
        with pytest.raises(ZeroDivisionError):
            await asked(service, FRAME)
    service.is_held = True
    task = asyncio.create_task(asked(service, FRAME, again=True))
    await until(lambda: len(service.inputs) == 2, "the second batch")
    task.cancel()
    await asyncio.wait([task])
    service.is_held, service.answer = False, lambda _: "new"
    found = await asked(service, FRAME)
    assert found["answer"].to_pylist() == ["new"] * len(TEXTS)
    assert len(service.inputs) == 2


async def test_a_journal_that_a_crash_left_is_removed(
    service: Batches, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call after its answers were taken would resume from it, and give them again."""
    with monkeypatch.context() as broken:
        broken.setattr(Journal, "remove", fail)
        with pytest.raises(ZeroDivisionError):
            await asked(service, FRAME)
    found = await asked(service, FRAME)
    assert found["answer"].to_pylist() == TEXTS
    assert (len(service.inputs), kept(state)) == (1, [])


async def test_ctrl_c_after_the_end_leaves_the_answers(
    service: Batches, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result may be lost on its way to the blocking caller; the same call has it, without a batch."""
    waited = Loop._result

    def interrupted(self: Loop, future: Any) -> Any:
        waited(self, future)
        raise KeyboardInterrupt

    def calls() -> Any:
        with Tidemill(service.url, KEY, progress=False) as client:
            with monkeypatch.context() as late:
                late.setattr(Loop, "_result", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    client.map(FRAME, model="m", prompt="{{ text }}")
            assert kept(state)
            return client.map(FRAME, model="m", prompt="{{ text }}")

    found = await asyncio.to_thread(calls)
    assert found["answer"].to_pylist() == TEXTS
    assert (len(service.inputs), kept(state)) == (1, [])


async def test_ctrl_c_ends_a_blocking_call_at_any_time(service: Batches) -> None:
    """Also if its handler restarts system calls, as that of polars does; the same call resumes at once."""
    service.is_held = True
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", INTERRUPTED, service.url, KEY, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        await until(lambda: service.inputs, "the first batch")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"interrupted\n"
            service.is_held = False
            assert await process.stdout.read() == b"['one']\n"
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert len(service.inputs) == 1


@pytest.mark.parametrize("ids", [[1, 2], [1, 3, 7]])
async def test_a_named_index_is_a_column_of_the_prompt(service: Batches, ids: list[int]) -> None:
    """Also if its numbers are evenly spaced, which pandas keeps as a range."""
    frame = pd.DataFrame({"id": ids}).set_index("id")
    async with AsyncTidemill(service.url, KEY, progress=False) as client:
        found = await client.map(frame, model="m", prompt="{{ id }}")
    assert list(found["answer"]) == [str(each) for each in ids]
    assert list(found.index) == ids

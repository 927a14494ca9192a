"""Calls whose answers are checked: each answer costs one call and frees its seat, whatever the check does."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.dispatching import World
from support.waiting import until

from tidemill.processors import answer_check
from tidemill.processors.calls import request_codec
from tidemill.schemas import ids
from tidemill.schemas.log.part import schema_key

LARGE = "[" + "1," * answer_check.SMALL_CHECKS_MAX + "1]"


class Checked(World):
    """A stage whose batches have a schema."""

    def __init__(self, folder: Path, text: str = "[1]", **more: Any) -> None:
        super().__init__(folder, **more)
        self.url, self.validated = "/v1/chat/completions", True
        self.inference.reply = orjson.dumps({"choices": [{"message": {"content": text}}]})

    def batch(self, lines: int) -> str:
        """A batch with lines."""
        batch_id = ids.new_batch_id()
        path = self.folder / schema_key(batch_id)
        path.parent.mkdir(parents=True)
        path.write_bytes(b'{"type": "array"}')
        self.publish(batch_id, 0, lines)
        return batch_id

    async def finish(self) -> None:
        await super().finish()
        assert not self.fleet.in_flight
        assert not any(one.in_flight or one.server.in_flight for one in self.fleet.backends)


@pytest.mark.parametrize("text", ["[1]", LARGE])
async def test_a_schema_in_use_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """More batches than schemas in memory: each line is called once, and fits."""
    monkeypatch.setattr(answer_check, "BATCHES_MAX", 1)
    world = Checked(tmp_path, text, limit=16)
    for _ in range(4):
        world.batch(12)
    await world.finish()
    assert set(world.inference.calls.values()) == set(world.log.lines.values()) == {1}
    assert not world.log.failed


def _once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception) -> list[Exception]:
    """Let a function raise an error in its first call; returns a list that is empty once it has raised it."""
    left, real = [error], getattr(owner, name)

    def raising(*args: Any) -> Any:
        if left:
            raise left.pop()
        return real(*args)

    monkeypatch.setattr(owner, name, raising)
    return left


STEPS: list[tuple[Any, str]] = [
    (answer_check.AnswerChecks, "known"),
    (answer_check.AnswerChecks, "learn"),
    (answer_check.AnswerChecks, "_learn"),
    (answer_check.AnswerChecks, "fault"),
    (answer_check.AnswerCheck, "is_small"),
    (answer_check.AnswerCheck, "fault"),
    (request_codec, "judge"),
]


@pytest.mark.parametrize("error", [KeyError("x"), OSError(), RecursionError()])
@pytest.mark.parametrize(("owner", "name"), STEPS)
async def test_no_error_keeps_a_seat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception
) -> None:
    """Whichever step fails, all seats are free afterwards, and each line has one result."""
    world = Checked(tmp_path, LARGE)
    left = _once(monkeypatch, owner, name, error)
    world.batch(8)
    await world.finish()
    assert not left
    assert set(world.log.lines.values()) == {1}
    assert len(world.log.lines) == 8
    assert sum(world.inference.calls.values()) <= 9


async def test_an_answer_waits_for_its_check_without_a_seat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further lines are called while large answers are checked, up to a bound of them."""
    gate, real = asyncio.Event(), answer_check.run_half_time

    async def held(work: Callable[..., Any], *args: Any) -> Any:
        if len(args) == 2:
            await gate.wait()
        return await real(work, *args)

    monkeypatch.setattr(answer_check, "run_half_time", held)
    monkeypatch.setattr(answer_check, "LARGE_ANSWERS_MAX", 12)
    world = Checked(tmp_path, LARGE, limit=2)
    world.batch(30)
    await until(lambda: sum(world.inference.calls.values()) == 14, "the calls beside the checks")
    await until(lambda: not world.inference.in_flight, "their answers")
    assert world.fleet.in_flight == 2
    gate.set()
    await world.finish()
    assert set(world.inference.calls.values()) == {1}
    assert not world.log.failed


async def test_a_check_may_be_aborted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that ends while its answers wait for their check leaves no seat behind."""
    gate = asyncio.Event()

    async def held(work: Callable[..., Any], *args: Any) -> Any:
        if len(args) == 2:
            await gate.wait()
        return work(*args)

    monkeypatch.setattr(answer_check, "run_half_time", held)
    monkeypatch.setattr(answer_check, "LARGE_ANSWERS_MAX", 3)
    world = Checked(tmp_path, LARGE, limit=2, grace=0.0)
    batch_id = world.batch(12)
    await until(lambda: sum(world.inference.calls.values()) == 5, "calls")
    world.end(batch_id)
    await until(lambda: not world.stage.busy, "the aborts")
    gate.set()
    world.batch(3)
    await world.finish()

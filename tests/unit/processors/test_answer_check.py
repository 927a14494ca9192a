"""Answers against the schema of their batch: which part of a reply is checked, and within which bounds."""

import asyncio

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.waiting import WAIT_SECONDS_MAX

from tidemill.processors import answer_check
from tidemill.processors.answer_check import AnswerChecks
from tidemill.processors.calls import request_codec
from tidemill.processors.calls.request_codec import Success
from tidemill.processors.failures import Answer, Fault
from tidemill.schemas.jsonl.line import Call
from tidemill.schemas.log.part import schema_key
from tidemill.schemas.ports import NotFound, once
from tidemill.storage.directory import DirectoryStore

BATCH = "batch_" + "0" * 32
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "score": {"type": "number"}},
    "required": ["mood"],
}
GOOD, BAD = '{"mood": "good"}', '{"mood": "odd"}'


def chat(*texts):
    """A chat completion with these answers."""
    return {"choices": [{"message": {"role": "assistant", "content": text}} for text in texts]}


async def check_of(folder, schema=SCHEMA):
    """The check of a batch with a schema."""
    store = DirectoryStore(folder)
    await store.write(schema_key(BATCH), once(orjson.dumps(schema)))
    return await AnswerChecks(store).learn(BATCH)


@pytest.mark.parametrize(
    ("url", "reply", "fault"),
    [
        (CHAT, chat(GOOD), None),
        (CHAT, chat(BAD), "at /mood: "),
        (CHAT, chat(GOOD, BAD), "at /mood: "),
        (CHAT, chat("Good."), "not JSON"),
        (CHAT, chat("```json\n{}\n```"), "not JSON"),
        (CHAT, chat("{}"), '"mood" is a required property'),
        (CHAT, chat(None), "no text"),
        (CHAT, {"choices": [{"message": {"tool_calls": []}}]}, "no text"),
        (CHAT, {"choices": []}, "no text"),
        ("/v1/completions", {"choices": [{"text": GOOD}]}, None),
        ("/v1/completions", {"choices": [{"text": BAD}]}, "at /mood: "),
        (RESPONSES, {"output": [
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "content": [{"type": "output_text", "text": GOOD[:5]}, {"text": GOOD[5:]}]},
        ]}, None),
        (RESPONSES, {"output": [{"type": "message", "content": [{"text": BAD}]}]}, "at /mood: "),
        (RESPONSES, {"output": []}, "no text"),
        (MESSAGES, {"content": [{"type": "thinking", "text": "Hm."}, {"type": "text", "text": GOOD}]}, None),
        (MESSAGES, {"content": [{"type": "text", "text": BAD}]}, "at /mood: "),
    ],
)  # fmt: skip
async def test_the_text_of_the_model_is_checked(tmp_path, url, reply, fault):
    """Of each choice, and nothing else of the reply."""
    found = (await check_of(tmp_path)).fault(url, orjson.dumps(reply))
    assert found is None if fault is None else fault in found


async def test_the_bounds(tmp_path):
    """An answer that needs too much work is refused before it; commas in a text are none."""
    many = {"type": "array", "items": {"anyOf": [{"const": number} for number in range(100)]}}
    made = await check_of(tmp_path, many)
    assert made.fault(CHAT, orjson.dumps(chat("[1]"))) is None
    assert made.is_small(orjson.dumps(chat("[1]")))
    long = orjson.dumps(chat("[" + "1," * 600 + "1]"))
    assert "more values" in made.fault(CHAT, long)
    assert not made.is_small(long)
    assert "more than" in made.fault(CHAT, orjson.dumps(chat("x" * answer_check.REPLY_BYTES_MAX)))
    prose = await check_of(tmp_path / "prose", {"type": "string"})
    assert prose.fault(CHAT, orjson.dumps(chat('"' + "a, " * 60_000 + '"'))) is None
    deep = orjson.dumps(chat("[" * 5_000 + "]" * 5_000))
    assert made.fault(CHAT, deep) is not None


async def test_few_schemas_are_kept(tmp_path, monkeypatch):
    """The one that was used last stays; a batch whose schema is gone cannot be checked."""
    monkeypatch.setattr(answer_check, "BATCHES_MAX", 2)
    store = DirectoryStore(tmp_path)
    made, names = AnswerChecks(store), [f"batch_{number:032}" for number in range(3)]
    for name in names:
        await store.write(schema_key(name), once(b"{}"))
        await made.learn(name)
        assert made.known(names[0]) is not None
    assert [made.known(name) is not None for name in names] == [True, False, True]
    with pytest.raises(NotFound):
        await made.learn("batch_" + "9" * 32)


class SlowStore(DirectoryStore):
    """One that does not answer for the schema of a batch."""

    reads = 0

    async def read(self, key, start=0, end=None):
        self.reads += 1
        if key == schema_key(BATCH):
            await asyncio.Event().wait()
        async for chunk in super().read(key, start, end):
            yield chunk


async def test_a_slow_store_harms_one_batch(tmp_path, monkeypatch):
    """The other batches have their schemas meanwhile; those who wait share one read, which has a bound."""
    store, other = SlowStore(tmp_path), "batch_" + "1" * 32
    await store.write(schema_key(other), once(b"{}"))
    made = AnswerChecks(store)
    monkeypatch.setattr(answer_check, "READ_SECONDS_MAX", 3600.0)
    waiting = asyncio.create_task(made.learn(BATCH))
    assert await asyncio.wait_for(made.learn(other), WAIT_SECONDS_MAX) is made.known(other)
    waiting.cancel()
    made, store.reads = AnswerChecks(store), 0
    monkeypatch.setattr(answer_check, "READ_SECONDS_MAX", 0.01)
    ends = await asyncio.gather(*(made.learn(BATCH) for _ in range(3)), return_exceptions=True)
    assert [type(end) for end in ends] == [TimeoutError] * 3
    assert store.reads == 1


@given(st.text(max_size=30))
def test_the_error_line_has_the_answer_and_the_reason(text):
    """It is the fault of the line, costs nothing, and has no retry."""
    body = orjson.dumps(chat(text.encode(errors="ignore").decode()))
    failure = request_codec.unfit(Success(Answer(200, body), body, (5, 0, 7, 0)), "at /mood: no")
    assert failure.fault is Fault.LINE
    line, mark = request_codec.failed(BATCH, 0, b'"a"', failure, Call(1, b'"s"', 0.1))
    found = orjson.loads(line)
    assert (found["error"]["code"], found["response"]["status_code"]) == ("invalid_output", 200)
    assert "at /mood: no" in found["error"]["message"]
    assert found["response"]["body"] == orjson.loads(body)
    assert (mark.failed, mark.usage, mark.attempts) == (True, (0, 0, 0, 0), 1)

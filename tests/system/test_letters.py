"""Dead letters on a real broker: from the stage that could not read a record back into its topic."""

import json
import secrets
from types import SimpleNamespace

import pytest

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_model_topics, ensure_topics
from tidemill.kafka.partitions.dead_letters import send_dead_letter
from tidemill.kafka.producer import Log
from tidemill.ops import OperatorError, dead_letters
from tidemill.schemas.log import topics
from tidemill.schemas.log.dead_letters import REQUEUED, VALUE_BYTES_MAX

pytestmark = pytest.mark.kafka

HEADERS = (("tidemill-batch", b"b"), ("x", b"\x1b[31m"))


@pytest.fixture
async def place(kafka):
    """A topic of requests with one dead letter of a record that has everything."""
    model = f"m-{secrets.token_hex(4)}"
    await ensure_topics(Settings(kafka=kafka), kafka)
    await ensure_model_topics(Settings(), kafka, model)
    topic = topics.requests(model).name
    log = Log(kafka)
    await log.start()
    message = SimpleNamespace(topic=topic, partition=0, offset=7, key=b"k", value=b"a\nb\x1b[0m", headers=HEADERS)
    await send_dead_letter(log, message, stage="processors", reason="odd")
    yield SimpleNamespace(kafka=kafka, log=log, topic=topic, message=message, id=f"{topic}/0/7")
    await log.stop()


async def records(kafka, topic):
    """All records of a topic."""
    async with dead_letters.history.reading(kafka) as reader:
        return [record async for record in reader.records(topic)]


async def test_a_letter_is_listed_shown_and_sent_again(place):
    """With its own key, value and headers, once; a second time only on demand."""
    said = []
    await dead_letters.show_all(place.kafka, said.append, requeued_too=False)
    (line,) = [line for line in said if line.startswith(place.id)]
    assert "processors: odd" in line
    said.clear()
    await dead_letters.show(place.kafka, place.id, said.append)
    assert "  b\\x1b[0m" in said
    assert not any("\x1b" in line for line in said)
    assert await dead_letters.requeue(place.kafka, [place.id], said.append) == 1
    assert await dead_letters.requeue(place.kafka, [place.id], said.append) == 0
    (record,) = await records(place.kafka, place.topic)
    assert (record.key, record.value) == (b"k", b"a\nb\x1b[0m")
    assert record.headers == (*HEADERS, (REQUEUED, place.id.encode()))
    assert await dead_letters.requeue(place.kafka, [place.id], said.append, again=True) == 1
    said.clear()
    await dead_letters.show_all(place.kafka, said.append, requeued_too=False)
    assert not any(line.startswith(place.id) for line in said)


async def test_a_letter_as_json(place, capfd):
    """As a pipe gets it: the list without content, one letter with its key, headers and value."""
    await dead_letters.show_all(place.kafka, print, requeued_too=False, as_json=True)
    listed = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    (found,) = [each for each in listed if each["id"] == place.id]
    assert (found["stage"], found["reason"], found["requeued_at"]) == ("processors", "odd", None)
    await dead_letters.show(place.kafka, place.id, print, value_bytes=2, as_json=True)
    whole = json.loads(capfd.readouterr().out)
    assert whole.items() >= found.items()
    assert (whole["key"], whole["value"], whole["value_bytes"]) == ("k", "a\n", 7)
    assert [name for name, _ in whole["headers"]] == [name for name, _ in HEADERS]


async def test_written_twice_is_one_letter(place):
    """A stage that died between its dead letter and the ack writes the letter once more."""
    await send_dead_letter(place.log, place.message, stage="processors", reason="odd")
    async with dead_letters.history.reading(place.kafka) as reader:
        waiting = (await dead_letters.known(reader)).waiting
        found = [letter.id async for letter in dead_letters.picked(reader, waiting)]
    assert found.count(place.id) == 1


async def test_a_value_too_large_for_a_letter(place):
    """It stays in its topic, and the commands say so."""
    place.message.value, place.message.offset = b"x" * (VALUE_BYTES_MAX + 1), 8
    await send_dead_letter(place.log, place.message, stage="processors", reason="large")
    said = []
    await dead_letters.show(place.kafka, f"{place.topic}/0/8", said.append)
    assert any("too large" in line for line in said)
    with pytest.raises(OperatorError, match="does not hold"):
        await dead_letters.requeue(place.kafka, [f"{place.topic}/0/8"], said.append)


async def test_an_id_that_is_none(place):
    """It is named, with nothing that a terminal would obey."""
    with pytest.raises(OperatorError, match=r"no dead letter \\x1b"):
        await dead_letters.show(place.kafka, "\x1b[31m", print)

"""`tidemill dead` with very many letters, on a log in memory."""

import json
import tracemalloc
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from tidemill.ops import OperatorError, dead_letters
from tidemill.schemas.log import dead_letters as letters
from tidemill.schemas.log import topics

MANY = 10_003
VALUE_BYTES = 100_000
LARGE = b"made when it is read"
TOPIC = topics.OUTCOMES.name


class Kafka:
    """Stands for consumer and producer: the topic of dead letters, and the records sent to other topics."""

    def __init__(self):
        self.dead, self.sent = [], []
        self.read = 0

    def add(self, offset, value=b"v", topic=TOPIC, key=b"k", project=None):
        source = f"{topic}/0/{offset}"
        headers = letters.headers(source, [], key=key, stage="results", reason="odd", project=project)
        self.dead.append((headers, value))

    async def records(self, topic, since):
        assert (topic, since) == (topics.DEAD.name, dead_letters.history.FIRST)
        for headers, value in self.dead[:]:
            self.read += 1
            content = bytes(VALUE_BYTES) if value is LARGE else value
            yield SimpleNamespace(headers=headers, value=content, timestamp=1000)

    async def send(self, topic, key, value, *, headers):
        if topic == topics.DEAD.name:
            self.dead.append((headers, value))
        else:
            assert (topic, key, value is not None) == (TOPIC, b"k", True)
            self.sent.append(dict(headers)[letters.REQUEUED].decode())

    async def start(self):
        return

    async def stop(self):
        return


@pytest.fixture
def kafka(monkeypatch):
    found = Kafka()

    @asynccontextmanager
    async def reading(cluster):
        yield cluster

    monkeypatch.setattr(dead_letters.history, "reading", reading)
    monkeypatch.setattr(dead_letters, "Log", lambda cluster: cluster)
    return found


async def test_all_letters_are_sent_however_many(kafka):
    """Those that were sent before hide no others."""
    said = []
    for first in (0, MANY):
        for offset in range(first, first + MANY):
            kafka.add(offset)
        kafka.add(first)
        kafka.sent.clear()
        assert await dead_letters.requeue(kafka, None, said.append) == MANY
        assert kafka.sent == [f"{TOPIC}/0/{n}" for n in range(first, first + MANY)]
    assert await dead_letters.requeue(kafka, None, said.append) == 0
    said.clear()
    await dead_letters.show_all(kafka, said.append, requeued_too=False)
    assert said == [f"({2 * MANY} more were requeued; --all shows them)"]
    await dead_letters.show_all(kafka, said.append, requeued_too=True)
    assert len(said) == 1 + 2 * MANY


async def test_chosen_letters_are_sent_once(kafka):
    """An unknown id sends none; the read ends with the last of them."""
    for offset in range(5):
        kafka.add(offset)
    wanted = [f"{TOPIC}/0/1", f"{TOPIC}/0/0"]
    with pytest.raises(OperatorError, match="no dead letter"):
        await dead_letters.requeue(kafka, [*wanted, f"{TOPIC}/0/9"], print)
    assert not kafka.sent
    kafka.read = 0
    assert await dead_letters.requeue(kafka, wanted, print) == 2
    assert sorted(kafka.sent) == sorted(wanted)
    assert kafka.read <= 5 + 2
    assert await dead_letters.requeue(kafka, wanted, print) == 0
    assert await dead_letters.requeue(kafka, wanted, print, again=True) == 2


async def test_letters_of_producers_name_stream_and_project(kafka, capsys):
    """As far as they are known; a name cannot move the cursor of the terminal."""
    said = []
    kafka.add(0, topic=topics.INTAKE.name, key="nächtlich\x1b".encode(), project="acme")
    kafka.add(1, topic=topics.INTAKE.name, key=None)
    kafka.add(2)
    await dead_letters.show_all(kafka, said.append, requeued_too=False)
    assert "  stream nächtlich\\x1b  project acme  results: odd" in said[0]
    assert not [line for line in said[1:] if "stream" in line or "project" in line]
    await dead_letters.show_all(kafka, said.append, requeued_too=False, as_json=True)
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["stream"], one["project"]) for one in shown] == [
        ("nächtlich\x1b", "acme"),
        (None, None),
        (None, None),
    ]


async def test_a_letter_may_expire_while_it_is_shown(kafka, monkeypatch):
    """Kafka deletes it between two reads of the topic."""
    kafka.add(0)
    known = dead_letters.known

    async def known_just_before(reader):
        found = await known(reader)
        kafka.dead.clear()
        return found

    monkeypatch.setattr(dead_letters, "known", known_just_before)
    with pytest.raises(OperatorError, match=f"the dead letter {TOPIC}/0/0 has just expired"):
        await dead_letters.show(kafka, f"{TOPIC}/0/0", print)


async def test_no_command_holds_the_values(kafka):
    """Letters of a hundred MiB take the memory of one."""
    for offset in range(1_000):
        kafka.add(offset, LARGE)
    tracemalloc.start()
    try:
        await dead_letters.show_all(kafka, lambda _: None, requeued_too=True)
        assert await dead_letters.requeue(kafka, None, lambda _: None) == 1_000
        assert tracemalloc.get_traced_memory()[1] < 20 * VALUE_BYTES
    finally:
        tracemalloc.stop()

"""A record is handled, becomes a dead letter, or its failure goes to the caller."""

from types import SimpleNamespace

import pytest
from aiokafka.errors import KafkaConnectionError

from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.partitions.dead_letters import handle_record
from tidemill.schemas.bounds import TEXT_CHARS_MAX
from tidemill.schemas.log import dead_letters, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.ports import RecordTooLarge

MESSAGE = SimpleNamespace(topic="t", partition=2, offset=7, key=b"\xff", value=b"v", headers=(("\\xff", None),))


class Letters:
    """Those that were sent."""

    def __init__(self):
        self.sent = []

    async def send(self, topic, key, value, *, headers=()):
        self.sent.append(dead_letters.decode(headers, value, 0.0))
        assert (topic, self.sent[-1].id) == (topics.DEAD.name, key)
        return 0


class Work:
    """Fails a given number of times."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.undone = 0

    async def __call__(self):
        if self.errors:
            raise self.errors.pop(0)

    def undo(self):
        self.undone += 1


async def run(work):
    sent = Letters()
    return await handle_record(sent, MESSAGE, work, stage="results", undo=work.undo), sent.sent


@pytest.mark.parametrize(("errors", "undone"), [((), 0), ((ValueError("x"),), 1), ((MemoryError(),), 1)])
async def test_a_record_gets_two_attempts(errors, undone):
    """The stage undoes a failed first attempt."""
    work = Work(*errors)
    assert await run(work) == (None, [])
    assert work.undone == undone


@pytest.mark.parametrize(
    "error", [ValueError("secret"), RecursionError(), KeyError("secret"), AssertionError("secret")]
)
async def test_a_second_failure_makes_a_dead_letter(error):
    """The reason has the kind and place of the error, and not its text."""
    work = Work(error, error, error)
    letter, sent = await run(work)
    assert work.undone == 2
    assert len(work.errors) == 1
    assert letter.source == sent[0].id == "t/2/7"
    assert letter.reason == sent[0].reason
    assert letter.reason.startswith(f"{type(error).__name__} at __call__:")
    assert not letter.unreadable
    assert (sent[0].key, sent[0].value, sent[0].headers) == (b"\xff", b"v", (("\\xff", None),))


@pytest.mark.parametrize("reason", ["it has no value", "x" * 10_000])
async def test_an_undecodable_record_gets_one_attempt(reason):
    """The letter has the reason."""
    work = Work(DecodeError(reason), ValueError())
    letter, sent = await run(work)
    assert letter.unreadable
    assert letter.reason == reason[:TEXT_CHARS_MAX]
    assert len(sent) == len(work.errors) == 1


async def test_the_reason_of_a_large_record_names_it():
    """The error of a record that is too large is our own text."""
    letter, _ = await run(Work(RecordTooLarge("a record of x"), RecordTooLarge("a record of x")))
    assert letter.reason == "a record of x"


@pytest.mark.parametrize("error", [OSError(), LogUnavailable(), KafkaConnectionError(), TimeoutError()])
async def test_a_failure_of_log_or_store_goes_to_the_caller(error):
    """At once; the stage undoes nothing, and sends no dead letter."""
    work = Work(error)
    with pytest.raises(type(error)):
        await run(work)
    assert work.undone == 0

"""Which ends of batches become events, and where the router goes on after a crash."""

from types import SimpleNamespace

import pytest

from tidemill.schemas import ids
from tidemill.schemas.bounds import CLOCK_SKEW_SECONDS
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import TERMINAL, Batch, Extras, Status
from tidemill.schemas.webhooks import messages
from tidemill.schemas.webhooks.messages import CURSOR, Endpoint, EndpointRecord, EventType
from tidemill.schemas.webhooks.table import Endpoints
from tidemill.webhooks.router import ROUND_RECORDS_MAX, Router
from tidemill.webhooks.schedule import LIFE_SECONDS

NOW = 1_800_000_000
URL = "https://example.com/of-the-batch"


class Log:
    """The topic of batches as a list, and what the router appends."""

    def __init__(self):
        self.batches = []
        self.sent = []
        self.fails_after = None

    async def ends(self, topic, numbers):
        assert topic == topics.BATCHES.name
        return {number: (0, len(self.batches)) for number in numbers}

    async def records(self, topic, starts, *, end):
        assert topic == topics.BATCHES.name
        for value in self.batches[starts[0].offset : end.offset]:
            yield SimpleNamespace(value=value)

    async def send(self, topic, key, value, *, headers=()):
        del headers
        if self.fails_after is not None and len(self.sent) >= self.fails_after:
            raise OSError("the log is away")
        self.sent.append((topic, key, value))
        return 0

    def dues(self):
        return [messages.decode_event(value) for topic, _, value in self.sent if topic == topics.EVENTS.name]

    def cursor(self):
        found = [messages.decode_state(value).offset for _, key, value in self.sent if key == CURSOR]
        return found[-1] if found else 0


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def batch(status=Status.COMPLETED, *, at=NOW, project="p", number=0, callback_url=None):
    ended = {f"{status}_at": at} if status in TERMINAL else {}
    found = Batch(
        id=f"batch_{number:032x}", endpoint="/v1/embeddings", input_file_id="file-1", completion_window="24h",
        status=status, created_at=at - 9, expires_at=at + 9, **ended,
        tidemill=Extras(callback_url=callback_url, traceparent=TRACE),
    )  # fmt: skip
    return codec.encode(BatchRecord(project=project, batch=found))


def with_endpoints(*found):
    table = Endpoints()
    for endpoint_id, fields in found:
        shown = Endpoint(**{
            "id": endpoint_id, "created_at": NOW - 100, "event_types": tuple(EventType), "name": "n",
            "url": "https://example.com/", "signing_secret_hint": "", "updated_at": NOW, **fields,
        })  # fmt: skip
        secret = messages.WrappedSecret(id="s", wrapped_by="k", wrapped="")
        # A change since then enables an endpoint, and leaves out no event.
        record = EndpointRecord(project="p", endpoint=shown, secrets=(secret,), enabled_at=NOW + 1_000)
        table.apply(endpoint_id, codec.encode(record))
    return table


def router(log, endpoints, cursor=0):
    async def catch_up():
        return

    return Router("", log, endpoints, catch_up=catch_up, clock=lambda: float(NOW), cursor=cursor)


@pytest.mark.parametrize(
    ("value", "goes"),
    [
        *((batch(status), True) for status in sorted(TERMINAL)),
        *((batch(status), False) for status in sorted(set(Status) - TERMINAL)),
        (batch(project="q"), False),
        (batch(at=NOW - 100), True),
        # The clock of results may be behind that of the api.
        (batch(at=NOW - 100 - CLOCK_SKEW_SECONDS), True),
        (batch(at=NOW - 101 - CLOCK_SKEW_SECONDS), False),
        (batch(at=NOW - LIFE_SECONDS), False),
        (b"nonsense", False),
        (None, False),
    ],
)
async def test_ends_of_batches_become_events(value, goes):
    """Of the endpoint's project, since its creation or shortly before, while a delivery may still follow."""
    log = Log()
    log.batches = [value]
    await router(log, with_endpoints(("we_1", {})))._round(log)
    assert len(log.dues()) == goes


async def test_an_endpoint_gets_its_types_of_events():
    """Each as a record of its own, under the endpoint's id."""
    log = Log()
    log.batches = [batch(Status.FAILED), batch(Status.EXPIRED, number=1)]
    endpoints = with_endpoints(("we_1", {"event_types": ("batch.failed",)}), ("we_2", {}))
    await router(log, endpoints)._round(log)
    found = [(key, messages.decode_event(value).event.type) for topic, key, value in log.sent if key != CURSOR]
    assert found == [("we_1", "batch.failed"), ("we_2", "batch.failed"), ("we_2", "batch.expired")]


async def test_a_callback_goes_to_the_url_of_the_batch():
    """Whatever its end; without a secret for callbacks it goes nowhere."""
    log = Log()
    log.batches = [batch(callback_url=URL)]
    callbacks = ids.callback_endpoint_id("p")
    await router(log, with_endpoints((callbacks, {"url": "", "event_types": ()})))._round(log)
    (due,) = log.dues()
    assert (due.endpoint_id, due.url, due.traceparent) == (callbacks, URL, TRACE)
    log.sent.clear()
    await router(log, with_endpoints())._round(log)
    assert not log.dues()


async def test_the_cursor_moves_once_the_log_has_the_events():
    """A crash anywhere repeats events with the same ids, and loses none."""
    wanted = [batch(number=number) for number in range(3 * ROUND_RECORDS_MAX)]
    endpoints = with_endpoints(("we_1", {}))
    for fails_after in (0, 10, ROUND_RECORDS_MAX + 1, 2 * ROUND_RECORDS_MAX + 50, None):
        log = Log()
        log.batches, log.fails_after = wanted, fails_after
        if fails_after is not None:
            with pytest.raises(OSError, match="away"):
                await router(log, endpoints)._round(log)
        log.fails_after = None
        await router(log, endpoints, cursor=log.cursor())._round(log)
        assert len({due.event.id for due in log.dues()}) == len(wanted)
        assert log.cursor() == len(wanted)


async def test_a_new_topic_is_read_from_its_beginning():
    """One that ends before the cursor was created anew."""
    log = Log()
    log.batches = [batch()]
    await router(log, with_endpoints(("we_1", {})), cursor=99)._round(log)
    assert len(log.dues()) == 1

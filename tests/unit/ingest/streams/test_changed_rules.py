"""Open streams while the operator changes models, aliases and endpoints, with and without a new owner."""

import dataclasses

import orjson
import pytest
from support.checking import CHAT
from support.intake import World, line, producing

from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.schemas import endpoints
from tidemill.schemas.endpoints import ENDPOINTS

MINE = "/v1/mine"


@pytest.fixture(autouse=True)
def _mine():
    """An endpoint of the settings."""
    endpoints.configure({MINE: ENDPOINTS[CHAT]})
    yield
    endpoints.configure({})


class Owners:
    """The owners of a partition, one after the other."""

    def __init__(self, folder, *models):
        self.world, self._gate, self._partition = World(0, folder), AckGate(), None
        self.serve(*models)

    def serve(self, *models, **aliases):
        """Let the catalog have these models."""
        served = dict.fromkeys(models, ENDPOINTS.keys() | {MINE})
        self.world.rules = dataclasses.replace(self.world.rules, models=served, aliases=aliases)

    async def begin(self):
        """Let a new owner take the partition over."""
        if self._partition is not None:
            self._partition.abandon()
        self.world.crashes += 1
        self._partition, _ = self.world.partition()
        await self._partition.load()

    async def take(self, *lines, wait=10):
        """Let the owner take a record of a stream, and after a while write its lines to a part."""
        self.world.log.append(producing(b"s", *lines))
        await self.again(len(self.world.log) - 1)
        self.world.now += wait
        await self._partition.tick(lambda _: False)

    async def again(self, offset, at=None, *, is_logged_at=True):
        """Let the owner take the record at an offset; the log, or its producer, gives this as its time."""
        record = self.world.arrival(self._gate, offset)
        record.timestamp, record.is_logged_at = record.timestamp if at is None else at, is_logged_at
        await self._partition.take([record])

    @property
    def codes(self):
        """The error code of each line of the only batch, by its place; None if it runs."""
        (batch_id,) = {name for name, _ in (*self.world.lines, *self.world.codes)}
        count = len({place for _, place in (*self.world.lines, *self.world.codes)})
        found = (self.world.codes.get((batch_id, place), {None}) for place in range(count))
        return [code for (code,) in found]


async def test_a_stream_keeps_its_model_when_an_alias_takes_the_name(tmp_path):
    """The next owner would otherwise find two models in the parts, and no owner could begin."""
    owners = Owners(tmp_path, "m")
    await owners.begin()
    await owners.take(line("1"))
    owners.serve("n", m="n")
    await owners.begin()
    await owners.take(line("2"), line("1"), line("3", model="n"))
    assert owners.codes == [None, None, "duplicate_custom_id", "mismatched_model"]


async def test_a_stream_keeps_its_model_when_that_is_removed(tmp_path):
    """A line that was refused for its model does not choose another one."""
    owners = Owners(tmp_path, "m", "n")
    await owners.begin()
    await owners.take(line("1"), line("2", model="n"))
    owners.serve("n")
    await owners.begin()
    await owners.take(line("3"), line("4", model="n"))
    assert owners.codes == [None, "mismatched_model", None, "mismatched_model"]


async def test_lines_that_were_refused_choose_no_model(tmp_path):
    """Their model was added later."""
    owners = Owners(tmp_path, "m")
    await owners.begin()
    await owners.take(line("1", model="n"))
    owners.serve("m", "n")
    await owners.begin()
    await owners.take(line("2"))
    assert owners.codes == ["model_not_found", None]


async def test_a_model_that_is_added_serves_open_streams(tmp_path):
    """As long as they have no model; aliases of a stream's model stay as they are."""
    owners = Owners(tmp_path, "n")
    await owners.begin()
    await owners.take(line("1"))
    owners.serve("n", "m", also="m")
    await owners.take(line("2", model="also"), line("3"))
    owners.serve("n", "m", also="n")
    await owners.take(line("4", model="also"))
    assert owners.codes == ["model_not_found", None, None, None]


async def test_an_invalid_line_chooses_no_model(tmp_path):
    """Its fault lies in another field; the model is that of the first valid line."""
    owners = Owners(tmp_path, "m", "n")
    await owners.begin()
    await owners.take(line("1", model="n", messages=None), line("2"), line("3", model="n"))
    assert owners.codes == ["invalid_request", None, "mismatched_model"]


async def test_lines_of_a_removed_endpoint_become_error_lines(tmp_path):
    """The stream opened when the settings had the endpoint."""
    text = orjson.loads(line("1")) | {"url": MINE}
    owners = Owners(tmp_path, "m")
    await owners.begin()
    await owners.take(orjson.dumps(text))
    endpoints.configure({})
    await owners.begin()
    await owners.take(orjson.dumps(text | {"custom_id": "2"}), orjson.dumps(text))
    assert owners.codes == [None, "invalid_url", "duplicate_custom_id"]


async def test_lines_that_come_again_say_how_old_they_are(tmp_path, monkeypatch):
    """Processors read outcomes back from then on: the former owner may have published the lines."""
    owners, created = Owners(tmp_path, "m"), []
    publish = owners.world.publish

    async def published(records):
        found = [record async for record in records]
        created.extend(record.head.created for record in found)

        async def again():
            for record in found:
                yield record

        await publish(again())

    monkeypatch.setattr(owners.world, "publish", published)
    await owners.begin()
    began = int(owners.world.now)
    await owners.take(line("1"))
    await owners.take(line("2"), wait=0)
    arrived = int(owners.world.now)
    owners.world.now += 120
    await owners.begin()
    await owners.again(1, at=arrived)
    assert created == [began, arrived, arrived]
    await owners.begin()
    await owners.again(1, at=0)
    assert created[3:] == [began]
    await owners.begin()
    await owners.again(1, at=arrived, is_logged_at=False)
    assert created[4:] == [began], "a producer's clock may be ahead"


async def test_an_error_of_ours_ends_no_owner(tmp_path, monkeypatch, caplog):
    """The stream goes on without the ids of its part."""
    owners = Owners(tmp_path, "m")
    await owners.begin()
    await owners.take(line("1"))

    def read(key):
        raise ValueError(key)

    monkeypatch.setattr(owners.world.store, "read", read)
    await owners.begin()
    monkeypatch.undo()
    await owners.take(line("2"))
    assert owners.codes == [None, None]
    assert "will not be recognised" in caplog.text

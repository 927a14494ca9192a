"""A project may have two batches at work: the others wait for their turn, whatever is killed."""

import asyncio
import itertools
import json

import pytest
from openai import OpenAI, RateLimitError
from support.backend import Behaviour
from support.batches import create, ended, numbered
from support.stack import KEY, Stack
from support.waiting import wait_until

from tidemill.kafka.follower import Follower
from tidemill.schemas.log import codec, topics

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

AT_WORK_MAX = 2
IN_PROGRESS_MAX = 8
LINES = 120


@pytest.fixture(scope="module")
def queued(tmp_path_factory, inference):
    """An installation with the limit."""
    environ = {
        "TIDEMILL_LIMITS__BATCHES_AT_WORK_MAX": str(AT_WORK_MAX),
        "TIDEMILL_LIMITS__BATCHES_IN_PROGRESS_MAX": str(IN_PROGRESS_MAX),
        "TIDEMILL_WINDOWS": json.dumps({"24h": 0, "16s": 0}),
    }
    with Stack(tmp_path_factory.mktemp("queued"), inference.models("chat", max_in_flight=8), environ) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(queued):
    """The SDK, which does not repeat a refused request."""
    return OpenAI(base_url=queued.api, api_key=KEY, max_retries=0)


def slowly(body, nth):
    """Take so long that the window of the last batch ends before its turn."""
    del body, nth
    return Behaviour(latency_seconds=0.3)


def records_of_batches(kafka):
    """Every record of the topic, in order."""
    found = []

    async def read():
        follower = Follower(kafka, topics.BATCHES.name, lambda key, value, _: found.append((key, value)))
        await follower.start()
        await follower.caught_up()
        await follower.stop()

    asyncio.run(read())
    return [(key, codec.decode_batch(value).batch) for key, value in found]


def test_no_more_batches_are_at_work(queued, client, inference):
    """They run in the order of their creation; those that wait say so, can be cancelled, and may expire."""
    inference.reset(slowly)
    inference.hold()
    extra = queued.start_extra("ingest", "extra-1")
    try:
        made = [create(client, numbered(0, LINES)) for _ in range(IN_PROGRESS_MAX - 1)]
        late = create(client, numbered(0, LINES), window="16s")
        with pytest.raises(RateLimitError, match="has 8 batches in progress and may have 8"):
            create(client, numbered(0, LINES))
        waiting = wait_until(lambda: client.batches.retrieve(made[-1]).tidemill["waiting"], "a reason")
        assert [one["reason"] for one in waiting] == ["batches_at_work"]
        assert waiting[0]["message"].startswith("The project may have 2 batches at work, and ")
        client.batches.cancel(made[3])
        inference.release()
        queued.kill("ingest")
        wait_until(lambda: client.batches.retrieve(made[1]).status == "completed", "an end")
        extra.kill()
        extra.wait()
        queued.kill("results")
        over = {batch_id: ended(client, batch_id) for batch_id in (*made, late)}
    finally:
        extra.kill()
        extra.wait()
    assert over[made[3]].status == "cancelled"
    assert (over[late].status, over[late].request_counts.total) == ("expired", LINES)
    lines = list(map(json.loads, client.files.content(over[late].error_file_id).text.splitlines()))
    assert {line["error"]["code"] for line in lines} == {"batch_expired"}
    assert len(lines) == LINES
    rest = [over[batch_id] for batch_id in made if batch_id != made[3]]
    assert {(batch.status, batch.request_counts.completed) for batch in rest} == {("completed", LINES)}
    at_work = set()
    for key, batch in records_of_batches(queued.cluster()):
        if batch.status.is_terminal:
            at_work.discard(key)
        elif batch.is_validated:
            at_work.add(key)
        assert len(at_work) <= AT_WORK_MAX
    begun = [batch.in_progress_at for batch in rest]
    # A batch that the killed process was about to start may start after those behind it.
    assert sum(before > after for before, after in itertools.pairwise(begun)) <= 1

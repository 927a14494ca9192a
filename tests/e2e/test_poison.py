"""Records that nobody can read stop no partition of any stage, and end with the dead letters."""

import json

import pytest
from aiokafka import AIOKafkaProducer
from openai import OpenAI
from support.stack import KEY
from support.waiting import until

from tidemill.ops import letters
from tidemill.schemas import codec, ids, topics

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

BATCH = ids.new_batch_id().encode()
LINES = (codec.KIND, codec.LINES)
POISON = (
    (topics.COMMANDS, b"{", ()),
    (topics.COMMANDS, None, ()),
    (topics.OUTCOMES, b"\xff", ()),
    (topics.OUTCOMES, b"x\n", (LINES, ("tidemill-batch", b"../../etc"), ("tidemill-marks", b"[[0,2,false]]"))),
    (topics.OUTCOMES, b"x\n", (LINES, ("tidemill-batch", BATCH), ("tidemill-marks", b"[[-1,2,false]]"))),
    (topics.OUTCOMES, b"x\n", (LINES, ("tidemill-batch", BATCH), ("tidemill-marks", b"[[99999999,2,false]]"))),
    (topics.OUTCOMES, b"x\n", (LINES, ("tidemill-batch", BATCH),
                               ("tidemill-marks", b"[[0,2,false,[99999999999,0,0,0]]]"))),
    (topics.OUTCOMES, b"", (LINES, ("tidemill-batch", BATCH), ("tidemill-marks", b"[[0,2,false]]"),
                            ("tidemill-ref", b'{"key":"../x","offset":0,"length":2}'))),
    (topics.requests("chat"), b"{", (("tidemill-batch", b"\xff"),)),
)  # fmt: skip


@pytest.mark.usefixtures("backend")
async def test_every_stage_goes_on(stack):
    """Poison in every partition of each topic, then a batch that has to pass them all."""
    before = {stage: stack.pids(stage) for stage in ("ingest", "processors", "results")}
    producer = AIOKafkaProducer(**stack.clients())
    await producer.start()
    sent = set()
    for topic, value, headers in POISON:
        for partition in await producer.partitions_for(topic.name):
            record = await producer.send_and_wait(
                topic.name, value, key=b"k", headers=list(headers), partition=partition
            )
            sent.add(f"{topic.name}/{partition}/{record.offset}")
    await producer.stop()
    client = OpenAI(base_url=stack.api, api_key=KEY)
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
    lines = [
        json.dumps({"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        for n in range(100)
    ]
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    await until(lambda: client.batches.retrieve(made.id).status == "completed", "its end", seconds_max=60)

    async def buried():
        return sent <= (await letters.opened(stack.cluster("operator"))).letters.keys()

    await until(buried, "all of them among the dead letters")
    assert {stage: stack.pids(stage) for stage in before} == before, "no process ended over it"

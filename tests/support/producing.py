"""Direct producers for tests: send records to the intake topic, and find their batches and dead letters."""

import asyncio
import json

import orjson
from aiokafka import AIOKafkaConsumer
from support.stack import KEY
from support.waiting import until

from tidemill.schemas import ids
from tidemill.schemas.log import topics

URL = "/v1/chat/completions"
BEARER = ("authorization", f"Bearer {KEY}".encode())
END = ("tidemill-end", b"true")


def line(number, **body):
    body = {"model": "chat", "messages": [{"role": "user", "content": f"line {number}"}], **body}
    return orjson.dumps({"custom_id": f"id-{number}", "method": "POST", "url": URL, "body": body})


async def send(producer, name, lines, *headers, key=BEARER):
    """Append a record; returns the id of the batch that it would open."""
    told = [header for header in (key, *headers) if header is not None]
    sent = await producer.send_and_wait(topics.INTAKE.name, b"\n".join(lines), key=name.encode(), headers=told)
    return ids.stream_batch_id(sent.partition, sent.offset)


async def shown(client, batch_id, is_so=bool):
    """A batch, once `is_so` holds for it; without it, once there is one."""

    def look():
        try:
            batch = client.batches.retrieve(batch_id)
        except Exception:  # noqa: BLE001  it is not there yet
            return None
        return batch if is_so(batch) else None

    return await until(lambda: asyncio.to_thread(look))


def is_over(batch):
    return batch.status in {"completed", "expired", "cancelled", "failed"}


def lines_of(client, file_id):
    return [json.loads(text) for text in client.files.content(file_id).text.splitlines()] if file_id else []


async def letters(stack, name):
    """The dead letters of a stream; without a name, those of records without a key."""
    key = name and name.encode()
    consumer = AIOKafkaConsumer(topics.DEAD.name, **stack.clients("operator"), auto_offset_reset="earliest")
    await consumer.start()
    found = []

    async def look():
        for records in (await consumer.getmany(timeout_ms=200)).values():
            found.extend(record for record in records if dict(record.headers).get("tidemill-dead-key") == key)
        return found

    try:
        return await until(look, f"a dead letter of {name}")
    finally:
        await consumer.stop()

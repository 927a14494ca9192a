"""The ways in which one project, or a client without a key, may flood an installation."""

import asyncio
import itertools
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from aiokafka import AIOKafkaProducer
from support.backend import Behaviour

from tidemill.schemas.log import topics

URL = "/v1/chat/completions"
LINE_BYTES = 8 << 20
REPLY = b'{"object":"chat.completion","choices":[{"index":0,"message":{"content":"' + b"x" * (31 << 20) + b'"}}]}'
BIG = "big"
"""The model whose replies are that large."""
TIMEOUT_SECONDS = 60.0
AT_ONCE = 16
UPLOADS = 64
SILENT = 1_500
HEAD_BYTES = 40 << 20
REFUSED = 20
PAUSE_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Target:
    """The installation as a flood sees it."""

    api: str
    key: str
    kafka: dict[str, Any]
    begun: Any
    """An event, set when what the flood needs is there."""
    steps: Any
    """A shared counter of the flood's steps."""


Flood = Callable[[Target], Awaitable[None]]
"""Goes on until it is cancelled."""


def rule(body: dict[str, Any], nth: int) -> Behaviour:
    """How the backend answers: at once, and at length where the model says so."""
    del nth
    return Behaviour(body=REPLY) if body["model"] == BIG else Behaviour()


def line(number: int, model: str = "chat", **more: object) -> bytes:
    """A request."""
    body = {"model": model, "messages": [{"role": "user", "content": f"line {number}"}], **more}
    return json.dumps({"custom_id": f"id-{number}", "method": "POST", "url": URL, "body": body}).encode()


def client(api: str, key: str) -> httpx.AsyncClient:
    """A client with the project's key."""
    return httpx.AsyncClient(
        base_url=api,
        headers={"authorization": f"Bearer {key}"},
        timeout=TIMEOUT_SECONDS,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )


async def upload(asking: httpx.AsyncClient, content: bytes) -> str:
    """A file for a batch; its id."""
    answer = await asking.post("/files", data={"purpose": "batch"}, files={"file": ("f.jsonl", content)})
    return str(answer.raise_for_status().json()["id"])


async def create(asking: httpx.AsyncClient, file_id: str) -> httpx.Response:
    """A batch of it."""
    body = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}
    return await asking.post("/batches", json=body)


async def slow_uploads(target: Target) -> None:
    """Twice as many as there are places, a byte at a time."""
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {target.key}\r\ncontent-length: 1000000\r\n"
        'content-type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; '
        'filename="f"\r\n\r\n'
    ).encode()

    async def trickle() -> None:
        reader, writer = await _connect(target)
        del reader
        try:
            writer.write(head)
            while not writer.is_closing():
                await asyncio.sleep(1)
                writer.write(b"x")
                await writer.drain()
        finally:
            writer.close()

    await _repeat(target, UPLOADS, trickle)


async def bracket_lines(target: Target) -> None:
    """Files of a line that is all brackets, checked one after the other."""
    async with client(target.api, target.key) as asking:
        content = _brackets()

        async def once() -> None:
            await create(asking, await upload(asking, content))

        await _repeat(target, 4, once)


async def estimates(target: Target) -> None:
    """Of such a file, many at one time."""
    async with client(target.api, target.key) as asking:
        file_id = await upload(asking, _brackets())

        async def once() -> None:
            await asking.post("/batches/estimate", json={"input_file_id": file_id, "endpoint": URL})

        await _repeat(target, AT_ONCE, once)


async def big_replies(target: Target) -> None:
    """Batches of lines whose server answers with 31 MiB each."""
    async with client(target.api, target.key) as asking:
        file_id = await upload(asking, b"\n".join(line(number, BIG) for number in range(200)))

        async def once() -> None:
            made = (await create(asking, file_id)).raise_for_status().json()
            while made["status"] in {"validating", "in_progress", "finalizing"}:
                await asyncio.sleep(1)
                made = (await asking.get(f"/batches/{made['id']}")).json()

        await _repeat(target, 1, once)


async def tiny_lines(target: Target) -> None:
    """Records of 800 KB of lines of a byte."""
    await _produce(target, b"x\n" * 400_000, compression=None)


async def bad_lines(target: Target) -> None:
    """Records of as many bad lines as one may have; each becomes an error line."""
    await _produce(target, (b"x" * 70 + b"\n") * 14_000, compression=None)


async def bomb(target: Target) -> None:
    """Records of 150 MiB in some kilobytes."""
    await _produce(target, b"x\n" * (75 << 20), compression="gzip")


async def lists(target: Target) -> None:
    """Lists of batches that were refused for a thousand faults each."""
    async with client(target.api, target.key) as asking:
        file_id = await upload(asking, b"{}\n" * 1_000)
        for _ in range(REFUSED):
            await create(asking, file_id)

        async def once() -> None:
            await asking.get("/batches", params={"limit": 100})

        await _repeat(target, AT_ONCE, once)


async def creates(target: Target) -> None:
    """Batches as fast as they can be made."""
    async with client(target.api, target.key) as asking:
        file_id = await upload(asking, line(0))

        async def once() -> None:
            await create(asking, file_id)

        await _repeat(target, 2 * AT_ONCE, once)


async def silence(target: Target) -> None:
    """Connections that say nothing."""

    async def once() -> None:
        reader, writer = await _connect(target)
        try:
            await reader.read(1)
        finally:
            writer.close()

    await _repeat(target, SILENT, once)


async def heads(target: Target) -> None:
    """Requests whose head does not end."""

    async def once() -> None:
        _, writer = await _connect(target)
        try:
            writer.write(b"GET /v1/models HTTP/1.1\r\n")
            # Every one of them is cut off.
            with suppress(OSError):
                for number in range(HEAD_BYTES // 65_536):
                    writer.write(b"x-%d: " % number + b"x" * 65_000 + b"\r\n")
                    await writer.drain()
        finally:
            writer.close()

    await _repeat(target, AT_ONCE, once)


FLOODS: dict[str, Flood] = {
    "slow uploads": slow_uploads,
    "lines of brackets": bracket_lines,
    "estimates": estimates,
    "replies of 31 MiB": big_replies,
    "intake: tiny lines": tiny_lines,
    "intake: bad lines": bad_lines,
    "intake: a bomb": bomb,
    "lists of refused batches": lists,
    "creates": creates,
    "silent connections": silence,
    "heads without end": heads,
}


def _brackets() -> bytes:
    """A file of one line of the largest size, which is not run: its model is none."""
    made = line(0, "absent", x="X")
    return made.replace(b'"X"', b"[" + b"[]," * ((LINE_BYTES - len(made) - 8) // 3) + b"[]]") + b"\n"


async def _connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(target.api)
    return await asyncio.open_connection(address.hostname, address.port, family=socket.AF_INET)


async def _produce(target: Target, value: bytes, *, compression: str | None) -> None:
    names = itertools.cycle((b"a", b"b", b"c", b"d", b"e", b"f"))
    headers = [("authorization", f"Bearer {target.key}".encode())]
    producer = AIOKafkaProducer(
        **target.kafka, compression_type=compression, max_request_size=1 << 28, max_batch_size=1 << 28
    )
    await producer.start()
    try:

        async def once() -> None:
            await producer.send_and_wait(topics.INTAKE.name, value, key=next(names), headers=headers)

        # To compress one takes a client of low priority seconds.
        await once()
        with target.steps.get_lock():
            target.steps.value += 1
        await _repeat(target, 1, once)
    finally:
        await producer.stop()


async def _repeat(target: Target, at_once: int, once: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again, so many of it at one time, whatever it comes to."""

    async def repeat() -> None:
        while True:
            with suppress(httpx.HTTPError, OSError, asyncio.IncompleteReadError):
                await once()
                with target.steps.get_lock():
                    target.steps.value += 1
            await asyncio.sleep(PAUSE_SECONDS)

    target.begun.set()
    await asyncio.gather(*(repeat() for _ in range(at_once)))

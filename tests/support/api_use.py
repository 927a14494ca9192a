"""Helpers for tests of an api process (`support.api`); they also play the other stages."""

import asyncio

import httpx
import openai
from support.api import Api

from tidemill.kafka.producer import Log
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import Batch

UPLOAD_BYTES_MAX = 4 << 20
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'
MODELS = {"Qwen/Qwen3-8B": {"backends": [{"url": "http://127.0.0.1:9/v1"}]}}
CHAT = "/v1/chat/completions"


def publish(api: Api, batch: Batch, project: str = "default") -> None:
    """Publish the state of a batch, as `results` would."""

    async def send() -> None:
        log = Log(api.kafka)
        await log.send(topics.BATCHES.name, batch.id, codec.encode(BatchRecord(project=project, batch=batch)))
        await log.stop()

    asyncio.run(send())


def new_batch(sdk: openai.OpenAI) -> Batch:
    """A batch with a real input file, as the api shows it."""
    file = sdk.files.create(file=LINE, purpose="batch")
    made = sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    return Batch.model_validate(made.model_dump())


def fault(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    """Status, param and code of an error, whose envelope it checks."""
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    return answer.status_code, error["param"], error["code"]


def stored(api: Api) -> set[str]:
    """The objects in the store."""
    return {path.name for path in (api.data / "store").rglob("*") if path.is_file()}

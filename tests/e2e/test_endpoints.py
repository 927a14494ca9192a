"""A batch on every endpoint, through the whole service: OpenAI's with its SDK, and those of other servers."""

import base64
import hashlib
import json
from typing import get_args, get_type_hints

import pytest
from openai import OpenAI
from openai.types import (
    Completion,
    CreateEmbeddingResponse,
    ImagesResponse,
    Video,
)
from openai.types.audio import Transcription
from openai.types.batch_create_params import BatchCreateParams
from openai.types.chat import ChatCompletion
from support.backend import Backend, Behaviour
from support.batches import create as create_batch
from support.batches import ended
from support.shapes import PIXEL
from support.stack import KEY, Stack
from support.waiting import wait_until

from tidemill.schemas.endpoints import BUILT_IN

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LITERAL = get_args(get_type_hints(BatchCreateParams)["endpoint"])
IMAGE, WAV = base64.b64decode(PIXEL), b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100)
URL = f"data:image/png;base64,{PIXEL}"
CASES = {
    "/v1/responses": ({"input": "hi"}, None, (3, 4)),
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "hi"}]}, ChatCompletion, (1, 2)),
    "/v1/embeddings": ({"input": "hi"}, CreateEmbeddingResponse, (1, 0)),
    "/v1/completions": ({"prompt": "hi"}, Completion, (1, 2)),
    "/v1/moderations": ({"input": "hi"}, None, (0, 0)),
    "/v1/images/generations": ({"prompt": "hi", "n": 2}, ImagesResponse, (50, 200)),
    "/v1/images/edits": ({"prompt": "hi", "image": ["IMAGE", URL], "n": 2}, ImagesResponse, (50, 200)),
    "/v1/videos": ({"prompt": "hi", "seconds": "4"}, Video, (0, 0)),
    "/v1/audio/transcriptions": (
        {"file": "AUDIO", "timestamp_granularities": ["word"], "stream": False}, Transcription, (14, 3),
    ),
    "/v1/audio/translations": ({"file": {"file_id": "AUDIO"}}, Transcription, (0, 0)),
    "/v1/rerank": ({"query": "a", "documents": ["b", "c"]}, None, (5, 0)),
    "/v1/score": ({"queries": "a", "documents": ["b", "c"]}, None, (5, 0)),
    "/v1/classify": ({"input": "hi"}, None, (5, 0)),
    "/v1/pooling": ({"input": "hi"}, None, (5, 0)),
    "/v1/messages": ({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}, None, (1, 2)),
}  # fmt: skip
"""A body of each endpoint, the SDK's type of its reply if the mock's is complete, and the tokens."""
FREE = ({"images": None, "audio_seconds": None}, "0")
UNITS = {
    "/v1/images/generations": ({"images": 2, "audio_seconds": None}, "0.5"),
    "/v1/images/edits": ({"images": 2, "audio_seconds": None}, "0.5"),
    "/v1/audio/transcriptions": ({"images": None, "audio_seconds": 0}, "0"),
    "/v1/audio/translations": ({"images": None, "audio_seconds": 90}, "1.5"),
}
"""The units of the batch and their cost at half of the price."""


def shown(content, filename, media_type):
    """A file as the server reads it."""
    return {"filename": filename, "type": media_type, "sha256": hashlib.sha256(content).hexdigest()}


MINE = "/v1/mine"
CUSTOM = {
    "required": {"text": ["string", "array"], "top": ["integer"]},
    "reply_list": "verdicts",
    "usage": ["meta.tokens"],
}  # fmt: skip


def rule(body, nth):
    """Return no verdict on the text `empty`, and a 529 for the first call with `busy`."""
    if body.get("text") == "busy" and nth == 1:
        return Behaviour(status=529)
    return Behaviour(body=b'{"verdicts": []}') if body.get("text") == "empty" else Behaviour()


@pytest.fixture
def served(tmp_path):
    """An installation with an endpoint of its settings, a model that has every endpoint, and its server."""
    with Backend(rule) as backend:
        price = {"per_image": 0.5, "per_audio_minute": 2}
        models = {"m": {**backend.models("m")["m"], "endpoints": [*BUILT_IN, MINE], "price": price}}
        custom = {"TIDEMILL_ENDPOINTS": json.dumps({MINE: CUSTOM})}
        with Stack(tmp_path / "data", models, custom) as stack:
            yield OpenAI(base_url=stack.api, api_key=KEY), backend


async def test_a_batch_on_an_endpoint_of_the_settings(served):
    """The api, ingest, processors and results know its path, its fields, its good replies and its usage."""
    client, backend = served
    bodies = [
        {"text": ["good"], "top": 1},
        {"text": "busy", "top": 1},
        {"text": "empty", "top": 1},
        {"text": "good"},
        {"text": 1, "top": 1},
    ]
    made = [create(client, MINE, {}, {"model": "m", **body}) for body in bodies]
    good, busy, empty, *bad = [ended(client, batch_id) for batch_id in made]
    for batch in (good, busy):
        assert (batch.status, batch.usage.input_tokens, batch.usage.output_tokens) == ("completed", 7, 1)
    assert client.models.retrieve("m").model_extra["tidemill"]["endpoints"][-1] == MINE
    assert "The reply has no verdicts." in client.files.content(empty.error_file_id).text
    expected = [
        ("body.top", "Top parameter is required."),
        ("body.text", "Invalid type for 'body.text': expected a string or an array, but got an integer instead."),
    ]
    assert [(batch.errors.data[0].param, batch.errors.data[0].message) for batch in bad] == expected
    assert (backend.repeats, list(backend.paths)) == (1, [MINE])


async def test_a_batch_on_every_endpoint(served):
    """Each result is a reply of the SDK's type, and each usage that of the reply; forms have their files."""
    client, backend = served
    assert tuple(sorted(CASES)) == tuple(sorted(BUILT_IN))
    assert set(LITERAL) < CASES.keys()
    assert len(LITERAL) == 8
    ids = {
        "IMAGE": client.files.create(file=("i.bin", IMAGE), purpose="vision").id,
        "AUDIO": client.files.create(file=("a.bin", WAV), purpose="user_data").id,
    }
    batches = {path: create(client, path, ids, {"model": "m", **body}) for path, (body, *_) in CASES.items()}
    for path, (_, kind, tokens) in CASES.items():
        batch = ended(client, batches[path])
        assert (batch.status, batch.request_counts.completed) == ("completed", 1), (path, batch.errors)
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == tokens, path
        assert (batch.usage.model_extra, batch.model_extra["tidemill"]["cost"]["units"]) == UNITS.get(path, FREE)
        body = json.loads(client.files.content(batch.output_file_id).text)["response"]["body"]
        if kind is not None:
            assert kind.model_validate(body, strict=False)
    forms = [json.loads(body) for body in backend.bodies]
    image = shown(IMAGE, "file-0.png", "image/png")
    assert {
        "model": "m",
        "prompt": "hi",
        "n": "2",
        "image[]": [image, {**image, "filename": "file-1.png"}],
    } in forms
    audio = shown(WAV, "file-0.wav", "audio/wav")
    assert {"model": "m", "stream": "false", "timestamp_granularities[]": ["word"], "file": audio} in forms
    assert {"model": "m", "file": audio} in forms
    wait_until(lambda: billed(client) == (4, 90, "2.5"), "the entries of all batches in the ledger")
    assert backend.paths["/v1/audio/translations"] == backend.paths["/classify"] == 1


def billed(client):
    (total,) = client.get("/usage", cast_to=object)["data"]
    return total["images"], total["audio_seconds"], total["cost"]["units"]


def create(client, path, ids, body):
    """A batch with a line of this body, in which ids stand for the names of files."""
    text = json.dumps({"custom_id": "1", "method": "POST", "url": path, "body": body})
    for name, file_id in ids.items():
        text = text.replace(name, file_id)
    return create_batch(client, [text.encode()], path)

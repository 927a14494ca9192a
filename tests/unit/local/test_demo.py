"""The demo backend without its models: configuration, requests and answers of embeddings."""

import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import msgspec
import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tidemill.__main__ import app as main
from tidemill.configuration.servers import Model
from tidemill.configuration.settings import SettingsError
from tidemill.local import demo
from tidemill.local.demo import app
from tidemill.local.demo.app import _application
from tidemill.local.demo.embedding import INPUTS_MAX, EmbeddingRequest, reply
from tidemill.schemas import UNREADABLE
from tidemill.schemas.endpoints import DEFAULTS

parse = msgspec.json.Decoder(EmbeddingRequest).decode
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def test_its_models_are_valid_settings() -> None:
    """They serve the endpoints that a model has by default."""
    models = {name: Model(**shape) for name, shape in demo.models("http://127.0.0.1:9100/v1").items()}
    assert set(models) == {demo.CHAT_MODEL, demo.EMBEDDING_MODEL}
    assert {endpoint for model in models.values() for endpoint in model.endpoints} == set(DEFAULTS)
    assert {model.backends[0].base for model in models.values()} == {"http://127.0.0.1:9100/v1"}


def test_it_is_installed_with_all_of_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """One alone does not serve."""
    monkeypatch.setattr(demo, "_MODULES", ("json", "asyncio"))
    assert demo.is_installed()
    monkeypatch.setattr(demo, "_MODULES", ("json", "no_such_module"))
    assert not demo.is_installed()


@given(
    texts=st.one_of(texts, st.lists(texts, min_size=1, max_size=5)), encoding=st.sampled_from(["float", "base64"])
)
def test_every_text_has_a_vector(texts: str | list[str], encoding: str) -> None:
    """In the order of the texts; both encodings hold the same numbers."""
    body = {"model": "m", "input": texts, "encoding_format": encoding, "user": "ignored"}
    request = parse(json.dumps(body).encode())
    assert request.texts == ([texts] if isinstance(texts, str) else texts)
    vectors = list(np.arange(4 * len(request.texts), dtype=np.float32).reshape(-1, 4))
    answer: dict[str, Any] = json.loads(reply(request, vectors, 7))
    assert [item["index"] for item in answer["data"]] == list(range(len(vectors)))
    for item, vector in zip(answer["data"], vectors, strict=True):
        numbers = item["embedding"]
        if encoding == "base64":
            numbers = np.frombuffer(base64.b64decode(numbers), dtype="<f4").tolist()
        assert numbers == vector.tolist()
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"model":"m"}',
        b'{"input":"x"}',
        b'{"model":"m","input":""}',
        b'{"model":"m","input":[]}',
        b'{"model":"m","input":["x",""]}',
        b'{"model":"m","input":[[1,2]]}',
        b'{"model":"m","input":[1,2]}',
        b'{"model":"m","input":["x",1]}',
        b'{"model":"m","input":"x","encoding_format":"int8"}',
        b'{"model":"m","input":"x","dimensions":64}',
        json.dumps({"model": "m", "input": ["x"] * (INPUTS_MAX + 1)}).encode(),
    ],
)
def test_an_invalid_request_is_refused(body: bytes) -> None:
    """The error names the place."""
    with pytest.raises(msgspec.DecodeError):
        parse(body)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_request_or_an_error(body: bytes) -> None:
    """No other exception is raised."""
    with contextlib.suppress(*UNREADABLE):
        assert isinstance(parse(body), EmbeddingRequest)


@pytest_asyncio.fixture
async def client() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """A client of the backend, whose models answer nothing."""
    app = _application(SimpleNamespace(address="http://127.0.0.1:9"), SimpleNamespace())  # type: ignore[arg-type]
    async with TestClient(TestServer(app)) as client:
        yield client


async def error_of(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """The error of an answer, which has the shape of OpenAI's."""
    error: dict[str, Any] = (await answer.json())["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize("path", [*demo.CHAT_ENDPOINTS, *demo.EMBEDDING_ENDPOINTS])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"model":',
        b'{"model":1}',
        b'{"model":"\xff"}',
        b'{"model":"\xff","input":"x"}',
        b'{"model":"smollm2-135m-instruct","messages":"\xff"}',
        b'{"model":"wordllama-256","input":[[1]]}',
        b"[" * 100_000,
        b'{"model":"m","x":' + b"[" * 100_000,
    ],
)
async def test_a_bad_body_gets_an_error(
    client: TestClient[web.Request, web.Application], path: str, body: bytes
) -> None:
    """As JSON, whatever is wrong with it."""
    answer = await client.post(path, data=body)
    assert answer.status in {400, 404}
    await error_of(answer)


async def test_other_refusals_are_errors_too(client: TestClient[web.Request, web.Application]) -> None:
    """Of an unknown path, a wrong method, and a body that is too large."""
    for method, path, size, status in (
        ("GET", "/v1/none", 0, 404),
        ("GET", "/v1/embeddings", 0, 405),
        ("POST", "/v1/embeddings", app.BODY_BYTES_MAX + 1, 413),
    ):
        answer = await client.request(method, path, data=io.BytesIO(bytes(size)))
        assert answer.status == status
        await error_of(answer)


async def test_a_model_is_described(client: TestClient[web.Request, web.Application]) -> None:
    """In the list and alone, each time the same."""
    listed = (await (await client.get("/v1/models")).json())["data"]
    for model in listed:
        assert await (await client.get(f"/v1/models/{model['id']}")).json() == model
        assert model["created"] == app.CREATED
    answer = await client.get("/v1/models/org/none")
    assert answer.status == 404
    assert (await error_of(answer))["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("the disk is away"), "the demo models cannot be served: the disk is away"),
        (SettingsError("port 1 of 127.0.0.1 is in use"), "port 1 of 127.0.0.1 is in use"),
    ],
)
def test_the_command_says_what_failed(error: Exception, said: str) -> None:
    """A model that cannot be loaded is no fault of the port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "serve", AsyncMock(side_effect=error))
        patch.setattr(demo, "is_installed", lambda: True)
        result = CliRunner().invoke(main, ["backend-demo"])
    assert result.exit_code != 0
    assert said in result.stderr

"""The demo backend without its models: configuration, requests and answers of embeddings."""

import base64
import contextlib
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.configuration.servers import Model
from tidemill.local import demo
from tidemill.local.demo.embedding import INPUTS_MAX, EmbeddingRequest, reply
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
    with contextlib.suppress(msgspec.DecodeError):
        assert isinstance(parse(body), EmbeddingRequest)

"""Estimates of batches: sums over a file, and what they would cost."""

import httpx
import orjson
import pytest
from support.dependencies import client_of, open_dependencies, with_settings

from tidemill.api.batches.token_estimate import TokenEstimate, figures
from tidemill.configuration.catalog import Entry, Fold
from tidemill.configuration.settings import Settings
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import READ_BYTES

CHAT = "/v1/chat/completions"
BACKENDS = [{"url": "http://127.0.0.1:9/v1"}]


def line(model: str, text: str, **more: object) -> bytes:
    """A line that asks a model."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return orjson.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": body}) + b"\n"


@pytest.fixture
async def client(tmp_path):
    """A client of the app, as the project `p`; a million tokens of `m` cost 1 and 3, by default half of it."""
    price = {"input_per_million": 1, "output_per_million": 3}
    windows = {"24h": 0.5, "1h": 0.25}
    settings = Settings(models={"m": {"backends": BACKENDS, "price": price}}, windows=windows)
    async with open_dependencies(tmp_path) as deps, client_of(with_settings(deps, settings)) as client:
        yield client


async def estimate(client, content: bytes, **more: object) -> httpx.Response:
    """The estimate of a file."""
    form = {"data": {"purpose": "batch"}, "files": {"file": ("f", content)}}
    file_id = (await client.post("/files", **form)).json()["id"]
    return await client.post("/batches/estimate", json={"input_file_id": file_id, "endpoint": CHAT, **more})


async def test_an_estimate_bounds_the_cost(client):
    """From no output to the maximum of all lines."""
    found = (await estimate(client, line("m", "x" * 400, max_tokens=50) * 100)).json()
    assert (found["lines"], found["unreadable_lines"]) == (100, 0)
    assert (found["input_tokens"], found["output_tokens_max"]) == (10_400, 5_000)
    assert found["cost"] == {"min": "0.0052", "max": "0.0127", "is_free": False}
    assert (found["confidence"], "4 bytes" in found["method"]) == ("low", True)
    (model,) = found["models"]
    assert (model["model"], model["is_configured"], model["lines"]) == ("m", True, 100)


async def test_the_window_decides_the_discount(client):
    """Of the sum and of each model; a window that the installation does not have is refused."""
    content = line("m", "x" * 400, max_tokens=50) * 100
    found = (await estimate(client, content, completion_window="1h")).json()
    assert found["cost"] == found["models"][0]["cost"] == {"min": "0.0078", "max": "0.01905", "is_free": False}
    assert (await estimate(client, content, completion_window="2h")).status_code == 400


async def test_a_line_without_a_maximum_has_no_upper_bound(client):
    """The estimate also reports unknown models."""
    content = line("m", "x", max_tokens=5) + b"\n \n" + line("other", "x") + b'{"half":'
    found = (await estimate(client, content)).json()
    assert (found["lines"], found["unreadable_lines"]) == (3, 1)
    assert (found["output_tokens_max"], found["cost"]["max"]) == (None, None)
    configured, other = found["models"]
    assert (configured["output_tokens_max"], configured["cost"]["max"]) == (5, "0.00001")
    assert (other["is_configured"], other["lines_without_max"], other["cost"]["min"]) == (False, 1, "0")


@pytest.mark.parametrize(
    ("endpoint", "price", "body", "cost"),
    [
        (CHAT, {}, {"max_tokens": 9}, ("0", "0", True)),
        (CHAT, {}, {}, ("0", None, True)),
        (CHAT, {"output_per_million": 10}, {}, ("0", None, False)),
        (CHAT, {"output_per_million": 10}, {"max_tokens": 100}, ("0", "0.001", False)),
        (CHAT, {"output_per_million": 10}, {"max_tokens": 0}, ("0", "0", False)),
        (CHAT, {"per_image": 1}, {"max_tokens": 9}, ("0", "0", True)),
        (CHAT, {"input_per_million": "x"}, {"max_tokens": 9}, ("0", None, False)),
        ("/v1/images/generations", {"per_image": "0.04"}, {"n": 2, "max_tokens": 0}, ("0", None, False)),
        ("/v1/images/generations", {"output_per_million": 10}, {"max_tokens": 100}, ("0", "0.001", False)),
        ("/v1/audio/transcriptions", {"per_audio_minute": 1}, {"max_tokens": 0}, ("0", None, False)),
    ],
)
def test_a_cost_has_a_maximum_only_if_the_lines_bound_it(endpoint, price, body, cost):
    """Nothing bounds images and audio, or a price that cannot be read; `is_free` says that no price is set."""
    fold = Fold()
    entry = Entry(settings={"servers": ["a"], "endpoints": [endpoint], "price": price}, author="k", at=1)
    fold.apply("model/m", entry.model_dump_json().encode(), 0)
    found = TokenEstimate(endpoint)
    found.add(orjson.dumps({"custom_id": "a", "body": {"model": "m", "prompt": "x", **body}}))
    shown = figures(Settings(windows={"24h": 0}), fold.contents(), found, None).cost
    assert (shown.min, shown.max, shown.is_free) == cost


async def test_an_estimate_uses_half_of_the_time(client, pauses):
    """It pauses after each chunk for as long as the chunk took."""
    await estimate(client, line("m", "x" * READ_BYTES) * 3)
    assert sum(pause > 0 for pause in pauses) >= 3


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "input_file_id"),
        ({"input_file_id": "file-x"}, 400, "endpoint"),
        ({"input_file_id": "file-x", "endpoint": "/v1/x"}, 400, "endpoint"),
        ({"input_file_id": "file-x", "endpoint": CHAT}, 404, "id"),
    ],
)
async def test_invalid_estimates(client, body, status, param):
    """The error names the invalid field."""
    answer = await client.post("/batches/estimate", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_an_estimate_of_a_file_without_bytes(tmp_path, client):
    """It gets a 404."""
    form = {"data": {"purpose": "batch"}, "files": {"file": ("f", line("m", "x"))}}
    file_id = (await client.post("/files", **form)).json()["id"]
    (tmp_path / "store" / file_key(file_id)).unlink()
    answer = await client.post("/batches/estimate", json={"input_file_id": file_id, "endpoint": CHAT})
    assert answer.status_code == 404

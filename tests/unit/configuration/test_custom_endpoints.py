"""Endpoints of the settings: what they must say, and the modules that must know them."""

import orjson
import pytest
from pydantic import ValidationError
from support.checking import fault, line, rules, verdict

from tidemill.api.batches.token_estimate import TokenEstimate
from tidemill.api.requests import reading
from tidemill.api.requests.bodies import NewBatch
from tidemill.configuration import misconfigured
from tidemill.configuration.settings import Settings
from tidemill.ingest.files import validation
from tidemill.ingest.files.validation import Passed
from tidemill.processors.calls import health_probe, reply
from tidemill.processors.scheduling.prefix_groups import prefix_key
from tidemill.schemas import endpoints
from tidemill.schemas.endpoints import BUILT_IN, DEFAULTS, ENDPOINTS, address
from tidemill.schemas.resources.error import ApiError

MINE = "/v1/mine"
ENTRY = {
    "required": {"text": ["string"], "top": ["integer", "number"]},
    "reply_list": "verdicts",
    "usage": ["stats"],
}
SERVER = {"backends": [{"url": "http://127.0.0.1:9/v1"}]}


@pytest.fixture(autouse=True)
def _clean():
    """The table of the process is as it was."""
    yield
    endpoints.configure({})


def configured(**fields):
    """The settings with one such endpoint, which a model has."""
    return Settings(endpoints={MINE: ENTRY | fields}, models={"m": {**SERVER, "endpoints": [MINE]}})


@pytest.mark.parametrize("long", [False, True])
def test_ingest_checks_its_fields(monkeypatch, long):
    """Those of a long line, too."""
    configured()
    monkeypatch.setattr(validation, "LONG_LINE_BYTES", 0 if long else 1 << 20)
    of = rules(MINE)
    good = {"model": "m", "text": "x", "top": 1.5}
    assert verdict(line(url=MINE, body=good), of=of) == Passed(total=1, models=("m",))
    assert fault(line(url=MINE, body=good | {"text": None}), of=of).param == "body.text"
    assert fault(line(url=MINE, body=good | {"top": "1"}), of=of).message == (
        "Invalid type for 'body.top': expected an integer or a number, but got a string instead."
    )
    assert fault(line(url=MINE, body=good | {"stream": True}), of=of).code == "streaming_unsupported"


def test_the_other_modules_know_it():
    """The api, the estimate, groups of prompts, replies, probes and addresses."""
    settings = configured(beside_v1=True)
    asked = {"endpoint": MINE, "completion_window": "24h", "input_file_id": "file-1"}
    assert reading.body(NewBatch, orjson.dumps(asked), settings).endpoint == MINE
    estimate = TokenEstimate(MINE)
    estimate.add(line(url=MINE, body={"model": "m", "text": "12345678", "top": 1}))
    assert estimate.models["m"].input_tokens == 2
    assert prefix_key(b'{"body":{"text":"abcd"}}', MINE, 4) == prefix_key(b'{"body":{"text":"abce"}}', MINE, 4)
    assert reply.read(b'{"verdicts":[1],"stats":{"input_tokens":3,"output_tokens":4}}', MINE) == (3, 0, 4, 0)
    assert reply.read(b'{"verdicts":[1],"usage":{"prompt_tokens":2}}', MINE) == (2, 0, 0, 0)
    assert reply.read(b'{"verdicts":[]}', MINE) == reply.ReplyError(200, "The reply has no verdicts.")
    assert health_probe.requests(MINE) == [{"text": endpoints.PROMPT, "top": 1}]
    assert address("http://a/v1", MINE) == "http://a/mine"


@pytest.mark.parametrize(
    ("path", "entry", "text"),
    [
        ("/v1/rerank", ENTRY, "/v1/rerank is built in"),
        ("/mine", ENTRY, "expected a path like /v1/mine"),
        ("/v1/" + "x" * 64, ENTRY, "at most 64 characters"),
        ("/v1/../x", ENTRY, "expected a path like /v1/mine"),
        (MINE, {"required": {}}, "at least 1"),
        (MINE, {"required": {"text": []}}, "at least 1"),
        (MINE, {"required": {"text": ["str"]}}, "'string', 'array'"),
        (MINE, ENTRY | {"streams": True}, "unknown setting streams"),
    ],
)
def test_an_entry_that_cannot_be_used(path, entry, text):
    """Its fault names it, and the table stays as it was."""
    with pytest.raises(ValidationError) as refused:
        Settings(endpoints={path: entry})
    assert text in "\n".join(misconfigured.faults(refused.value))
    assert tuple(ENDPOINTS) == BUILT_IN


def test_a_model_must_name_endpoints_that_exist():
    """An endpoint that was taken out of the settings is unknown again."""
    configured()
    endpoints.configure({})
    with pytest.raises(ValidationError, match="unknown endpoint '/v1/mine'"):
        Settings(models={"m": {**SERVER, "endpoints": [MINE]}})
    assert len(DEFAULTS) == 4
    with pytest.raises(ApiError, match="Supported values are"):
        reading.body(
            NewBatch, b'{"endpoint":"/v1/mine","completion_window":"24h","input_file_id":"f"}', Settings()
        )

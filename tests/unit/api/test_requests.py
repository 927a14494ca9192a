"""Requests as models: any input is a request, or a fault in OpenAI's words."""

import json
from typing import Annotated

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from tidemill.api.batches.result_search import ResultsQuery
from tidemill.api.requests import reading
from tidemill.api.requests.bodies import Completion, NewBatch, NewUpload
from tidemill.api.requests.filters import BatchesQuery
from tidemill.api.routes.admin.keys import KeyRequest
from tidemill.api.routes.batches import EstimateRequest
from tidemill.api.routes.files import ContentHeaders, FilesQuery
from tidemill.api.routes.reruns import ReplayRequest, RerunRequest
from tidemill.api.routes.usage import UsageQuery
from tidemill.configuration.settings import Settings
from tidemill.schemas.resources.error import ApiError

BODIES = (NewBatch, NewUpload, Completion, KeyRequest, EstimateRequest, ReplayRequest, RerunRequest)
QUERIES = (BatchesQuery, FilesQuery, ResultsQuery, UsageQuery)
SETTINGS = Settings()
NAMES = sorted(
    {field.alias or name for model in (*BODIES, *QUERIES) for name, field in model.model_fields.items()}
    | {
        "anchor",
        "seconds",
        "batch",
        "from",
        "to",
        "project",
        "codes",
        "metadata[k]",
        "limit[]",
        "[",
        "x[y",
        "=name",
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=70),
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=20)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=8)


def names_its_field(error: ApiError) -> bool:
    """Whether a fault is a short 400 that names the field."""
    body = error.body
    return error.status == 400 and 0 < len(body.message) < 2_000 and len(body.param or "") < 1_000


def fault(read, *arguments) -> ApiError | None:
    """The fault of a request, if any: no other exception is raised."""
    try:
        read(*arguments)
    except ApiError as error:
        return error
    return None


@given(st.sampled_from(BODIES), OBJECTS)
def test_any_object_as_a_body(model, fields):
    """It is a request, or a fault of one."""
    found = fault(reading.body, model, json.dumps(fields).encode(), SETTINGS)
    assert found is None or names_its_field(found)


@given(st.sampled_from(BODIES), st.binary(max_size=100))
def test_any_bytes_as_a_body(model, content):
    """They are a fault, except for reruns, which need no field."""
    found = fault(reading.body, model, content, SETTINGS)
    if found is None:
        assert model is RerunRequest
        assert content.strip() in {b"", b"{}"} or isinstance(json.loads(content), dict)
    else:
        assert names_its_field(found)


@given(
    st.sampled_from(QUERIES),
    st.lists(st.tuples(st.sampled_from(NAMES) | st.text(max_size=10), st.text(max_size=70)), max_size=20),
)
def test_any_query(model, pairs):
    """A request, or a fault of one."""
    found = fault(reading.query, model, pairs)
    assert found is None or names_its_field(found)


@given(st.dictionaries(st.sampled_from(["range", "if-range", "if-none-match", "other"]), st.text(max_size=2_000)))
def test_any_headers(sent):
    """A request, or a fault of one."""
    found = fault(reading.headers, ContentHeaders, sent)
    assert found is None or names_its_field(found)


UNLIKE = "Invalid 'code': string does not match pattern."


class Odd(reading.Body):
    """Fields of kinds whose faults have words of their own."""

    name: Annotated[str, Field(min_length=1)] = "n"
    code: Annotated[str, Field(pattern="^[a-c]+$")] = "a"
    share: Annotated[float, Field(gt=0)] = 1.0


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"name": ""}, "empty_string", "Invalid 'name': empty string. Expected a string with minimum length 1."),
        (
            {"code": "d"}, "invalid_value",
            f"{UNLIKE} Expected a string that matches the pattern '^[a-c]+$'.",
        ),
        ({"share": 0.0}, "invalid_value", "Invalid 'share': the value cannot be used."),
    ],
)  # fmt: skip
def test_other_faults(fields, code, message):
    """A fault of an unforeseen type is a 400, too."""
    with pytest.raises(ApiError) as caught:
        reading.body(Odd, orjson.dumps(fields), SETTINGS)
    assert (caught.value.body.code, caught.value.body.message) == (code, message)


def test_null_counts_as_absent():
    """Also in nested objects; in a map it is a value of the wrong type."""
    given_none = {
        "endpoint": "/v1/embeddings", "completion_window": "24h", "input_file_id": "file-x", "metadata": None,
        "output_expires_after": {"anchor": None, "seconds": 3_600},
    }  # fmt: skip
    with pytest.raises(ApiError) as caught:
        reading.body(NewBatch, orjson.dumps(given_none), SETTINGS)
    assert caught.value.body.message == "Missing required parameter: 'output_expires_after.anchor'."
    given_none["output_expires_after"] = None
    found = reading.body(NewBatch, orjson.dumps(given_none), SETTINGS)
    assert (found.metadata, found.output_expires_after) == (None, None)


def test_a_create_may_leave_out_the_window_only_if_there_is_a_default():
    """Null is as good as nothing; a window that is given counts."""
    content = {"endpoint": "/v1/embeddings", "input_file_id": "file-x"}
    with pytest.raises(ApiError) as caught:
        reading.body(NewBatch, orjson.dumps(content), SETTINGS)
    error = caught.value.body
    assert (error.message, error.param, error.code) == (
        "Missing required parameter: 'completion_window'.", "completion_window", "missing_required_parameter",
    )  # fmt: skip
    settings = SETTINGS.model_copy(update={"windows": {"24h": 0, "1h": 0}, "default_window": "1h"})
    for window, expected in ((None, "1h"), ("24h", "24h")):
        for fields in ({"completion_window": window}, {} if window is None else {"completion_window": window}):
            assert reading.body(NewBatch, orjson.dumps(content | fields), settings).completion_window == expected
    with pytest.raises(ApiError):
        reading.body(NewBatch, orjson.dumps(content | {"completion_window": ""}), settings)

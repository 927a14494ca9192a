"""Each endpoint of the table and one of the settings: its required fields, their types, and streaming."""

import re
from pathlib import Path

import msgspec
import orjson
import pytest
from support.checking import fault, line, rules, verdict

from tidemill.configuration.custom_endpoints import CustomEndpoint
from tidemill.ingest.files import validation
from tidemill.ingest.files.verdict import Passed
from tidemill.schemas import endpoints
from tidemill.schemas.endpoints import BUILT_IN, DEFAULTS, ENDPOINTS
from tidemill.schemas.resources.batch import BatchError

VALUES = {str: "text", list: ["text"], dict: {"content": []}, int: 1, float: 1.5, bool: True}
WORDS = {str: "a string", list: "an array", dict: "an object", int: "an integer", float: "a number"}
MINE = CustomEndpoint(required={"text-1": ("string", "array"), "__dict__": ("integer",)}).endpoint("/v1/mine")
TABLE = {**ENDPOINTS, "/v1/mine": MINE}
FORMS = [(path, form) for path, entry in TABLE.items() for form in entry.forms]
BODIES = {
    "/v1/moderations": {"input": [{"type": "text", "text": "x"}]},
    "/v1/images/generations": {"prompt": "a tide mill", "n": 2, "size": "1024x1024"},
    "/v1/rerank": {"query": "tide", "documents": ["a", {"text": "b"}], "top_n": 1},
    "/v1/score": {"text_1": "a", "text_2": ["b", "c"]},
    "/v1/classify": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/pooling": {"data": {"any": "thing"}, "task": "plugin"},
    "/v1/messages": {"max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "system": "Be brief."},
}


@pytest.fixture(autouse=True)
def _mine():
    """The settings have one more endpoint."""
    endpoints.configure({"/v1/mine": MINE})
    yield
    endpoints.configure({})


def of(path, body):
    """The line and the rules for a body."""
    return line(url=path, body={"model": "m", **body}), rules(path)


def value_of(path, field, kind):
    """A value of a field, of a type."""
    if field not in ENDPOINTS[path].files:
        return VALUES[kind]
    url = f"data:{ENDPOINTS[path].files[field].types[0]}x;base64,eA=="
    return {str: url, list: [url], dict: {"image_url": url}}[kind]


@pytest.fixture(params=[False, True], ids=["short", "long"])
def _any_length(request, monkeypatch):
    """A long line is checked without decoding its values."""
    if request.param:
        monkeypatch.setattr(validation, "LONG_LINE_BYTES", 0)


@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize(("path", "form"), FORMS)
def test_a_form_passes_and_each_of_its_fields_is_required(path, form):
    """A field that is absent or null has a fault of its own."""
    for name in form:
        body = {field: value_of(path, field, kinds[-1]) for field, kinds in form.items()}
        data, of_path = of(path, body)
        assert verdict(data, of=of_path) == Passed(total=1, models=("m",))
        if len(form) == 1 and form is not ENDPOINTS[path].forms[0]:
            continue
        data, of_path = of(path, {**body, name: None})
        found = fault(data, of=of_path)
        expected = [
            BatchError(
                code="invalid_request",
                message=f"{field.capitalize()} parameter is required.",
                param=f"body.{field}",
                line=1,
            )
            for other in ENDPOINTS[path].forms
            for field in other
            if field not in body or field == name
        ]
        assert found in expected[: 1 if len(ENDPOINTS[path].forms) == 1 else None]


@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize(("path", "form"), FORMS)
def test_a_field_of_another_type(path, form):
    """The fault has the types that it may have, and the one that it has."""
    for name, kinds in form.items():
        body = {field: VALUES[types[0]] for field, types in form.items()}
        for kind in VALUES.keys() - {*kinds, bool}:
            data, of_path = of(path, {**body, name: VALUES[kind]})
            expected = " or ".join(WORDS[kind] for kind in kinds)
            assert fault(data, of=of_path) == BatchError(
                code="invalid_type",
                message=f"Invalid type for 'body.{name}': expected {expected}, but got {WORDS[kind]} instead.",
                param=f"body.{name}",
                line=1,
            )


@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize("path", TABLE)
def test_streaming(path):
    """No endpoint streams."""
    body = {**ENDPOINTS[path].smallest, "stream": True}
    data, of_path = of(path, body)
    assert fault(data, of=of_path) == BatchError(
        code="streaming_unsupported",
        message=f"{ENDPOINTS[path].name}: Streaming is not supported in the Batch API.",
        param="body.stream",
        line=1,
    )


@pytest.mark.usefixtures("_any_length")
def test_answers_in_the_background():
    """Such a response is queued, and never holds its seat; for an image, `background` is a colour."""
    data, of_path = of("/v1/responses", {"input": "x", "background": True})
    assert fault(data, of=of_path) == BatchError(
        code="invalid_request",
        message="Responses: Answers in the background are not supported in the Batch API.",
        param="body.background",
        line=1,
    )
    for path, body in (
        ("/v1/responses", {"input": "x", "background": False}),
        ("/v1/images/generations", {"prompt": "x", "background": "transparent"}),
    ):
        data, of_path = of(path, body)
        assert isinstance(verdict(data, of=of_path), Passed)


@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"messages": [{"role": "user", "content": "x"}], "dimensions": 8}),
        ("/v1/responses", {"prompt": {"id": "pmpt_1"}}),
        ("/v1/responses", {"previous_response_id": "resp_1"}),
        ("/v1/responses", {"conversation": "conv_1", "input": None}),
        ("/v1/completions", {"prompt_embeds": "AAAA"}),
        ("/v1/completions", {"prompt": None, "prompt_embeds": ["AAAA"]}),
    ],
)
def test_requests_without_the_usual_prompt(path, body):
    """Texts with images for a vector, a stored prompt, the next turn of a response, vectors in place of a text."""
    data, of_path = of(path, body)
    assert verdict(data, of=of_path) == Passed(total=1, models=("m",))


@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/pooling"])
def test_vectors_as_bytes(path):
    """A reply of bytes is no line of JSON."""
    for name in ("bytes", "bytes_only", "float", "base64"):
        data, of_path = of(path, {"input": "x", "encoding_format": name})
        if name in {"float", "base64"}:
            assert isinstance(verdict(data, of=of_path), Passed)
        else:
            error = fault(data, of=of_path)
            assert (error.code, error.param) == ("invalid_request", "body.encoding_format")


@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize(("path", "body"), [*BODIES.items(), *((p, e.smallest) for p, e in TABLE.items())])
def test_real_requests_pass(path, body):
    """Those of the references, and the ones that Tidemill sends itself."""
    data, of_path = of(path, body)
    assert verdict(data, of=of_path) == Passed(total=1, models=("m",))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "queries"),
        ({"text_1": "a"}, "text_2"),
        ({"data_2": "a"}, "data_1"),
        ({"queries": "a"}, "documents"),
        ({"items": ["a"]}, "queries"),
        ({"query": "a", "documents": ["b"]}, "queries"),
    ],
)
def test_the_form_that_a_request_is_nearest_to_decides(body, param):
    """Of several forms, the fault is about the one that its author meant."""
    data, of_path = of("/v1/score", body)
    assert fault(data, of=of_path).param == f"body.{param}"


def test_only_embeddings_are_counted():
    """The bound on inputs is that of embeddings; any other endpoint may have more."""
    texts = orjson.dumps({"model": "m", "input": ["x"] * (validation.EMBEDDING_INPUTS_MAX + 1)})
    data = line(url="/v1/moderations", body=msgspec.json.decode(texts))
    assert verdict(data, of=rules("/v1/moderations")) == Passed(total=1, models=("m",))


def test_the_page_has_all_endpoints_with_their_fields():
    """In the order of the table, the defaults first."""
    page = Path(__file__).parents[4] / "docs" / "reference" / "api" / "batches.md"
    rows = re.findall(r"^\| `(/v1/\S+)` \| (.+?) \|", page.read_text("utf-8"), re.MULTILINE)
    assert [path for path, _ in rows] == list(BUILT_IN)
    assert len(DEFAULTS) == 4
    assert BUILT_IN[: len(DEFAULTS)] == DEFAULTS
    for path, fields in rows:
        assert set(re.findall(r"`(\w+)`", fields)) == {name for form in ENDPOINTS[path].forms for name in form}

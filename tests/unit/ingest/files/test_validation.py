"""The checks of an input file: one test for each row of the specification's table."""

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.checking import ABSENT, CHAT, EMBEDDINGS, fault, line, request_body, rules, verdict

from tidemill.ingest.files import validation
from tidemill.ingest.files import verdict as verdict_of_file
from tidemill.ingest.files.validation import Checker
from tidemill.ingest.files.verdict import Failed, Passed
from tidemill.schemas.jsonl.line import REFUSALS
from tidemill.schemas.jsonl.lines import LINE_BYTES_MAX, Splitter
from tidemill.schemas.resources.batch import BatchError


def test_a_valid_file_passes():
    """The verdict has its number of lines and its model."""
    assert verdict(line("a"), b"", line("b"), b"\r", line("c")) == Passed(total=3, models=("m",))


def test_row_1_a_missing_file():
    """The text is OpenAI's."""
    assert verdict_of_file.missing_file("file-x", "org-x").errors == (
        BatchError(
            code="invalid_request",
            message="Cannot find file file-x, or organization org-x does not have access to it.",
            param="file_id",
        ),
    )


@pytest.mark.parametrize("lines", [[], [b"", b" ", b"\r"]])
def test_row_2_an_empty_file(lines):
    """A file of blank lines is empty as well."""
    assert fault(*lines) == BatchError(
        code="empty_file",
        message="The input file is empty. Please ensure that the batch contains at least one request.",
    )


def test_row_3_too_many_lines():
    """The bound itself passes, one more does not."""
    lines = [line(str(number)) for number in range(6)]
    assert verdict(*lines[:5], of=rules(lines_max=5)) == Passed(total=5, models=("m",))
    error = fault(*lines, of=rules(lines_max=5))
    assert (error.code, error.line) == ("too_many_tasks", None)


@pytest.mark.parametrize(("first", "name"), [(line(), " for the m model"), (b"x", "")])
def test_row_4_too_large_a_file(first, name):
    """The message names the model if the first line has one."""
    checker, splitter = Checker(rules()), Splitter()
    checker.check(splitter.feed(first + b"\n"))
    assert checker.too_large().errors == (
        BatchError(
            code="file_too_large", message=f"The batch input file is larger than the 209715200 maximum{name}"
        ),
    )


@pytest.mark.parametrize(
    "broken",
    [
        b"x", b"{", b'{"a":1}}', b"NaN", b'{"a":NaN}', b'{"a":Infinity}', b"1e400", b'{"a":"\\ud800"}',
        b'{"a":"\xff"}', b'{"a":"\x00"}', b"{'a':1}", b'{"a":01}', b'{"a":1,}', b"\xef\xbb\xbf{}", b"\x00",
        b'{"a":"' + b"\xed\xa0\x80" + b'"}', b'"\\', b'{"a":"\\"',
    ],
)  # fmt: skip
def test_row_5_not_json(broken):
    """Texts that only Python or another parser accepts are not JSON."""
    error = fault(line(), broken)
    assert (error.code, error.param, error.line) == ("invalid_json_line", None, 2)
    assert re.match(r"This line is not parseable as valid JSON\. (Column|Byte) [1-9]\d*: .*\.\Z", error.message)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"[]", "an array"),
        (b'"text"', "a string"),
        (b"1", "an integer"),
        (b"null", "null"),
        (b"true", "a boolean"),
    ],
)
def test_row_6_not_an_object(value, kind):
    """JSON of another kind."""
    text = f"Each line must be a JSON dictionary object, but this one is {kind}."
    assert fault(line(), b"", value) == BatchError(code="invalid_request", message=text, line=3)


@pytest.mark.parametrize("field", ["custom_id", "method", "url", "body"])
def test_row_7_a_missing_field(field):
    """The fault names it."""
    assert fault(line(**{field: ABSENT})) == BatchError(
        code="missing_required_parameter", message=f"Missing required parameter: '{field}'.", param=field, line=1
    )


def test_row_7_a_missing_field_goes_before_a_wrong_one():
    """The order of the rows is the order of the checks."""
    assert fault(line(1, url=ABSENT)).param == "url"


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("custom_id", 1, "expected a string, but got an integer instead."),
        ("custom_id", None, "expected a string, but got null instead."),
        ("method", ["POST"], "expected a string, but got an array instead."),
        ("url", 1.5, "expected a string, but got a number instead."),
        ("body", "x", "expected an object, but got a string instead."),
        ("body", [1], "expected an object, but got an array instead."),
    ],
)
def test_row_8_a_field_of_another_type(field, value, text):
    """The message has the expected and the found type."""
    assert fault(line(**{field: value})) == BatchError(
        code="invalid_type", message=f"Invalid type for '{field}': {text}", param=field, line=1
    )


@pytest.mark.parametrize(
    ("custom_id", "code"),
    [
        ("", "empty_string"),
        ("x" * 513, "string_above_max_length"),
        ("x" * 10_000, "string_above_max_length"),
    ],
)
def test_row_8_a_custom_id_of_another_length(custom_id, code):
    """One to 512 characters."""
    error = fault(line(custom_id))
    assert (error.code, error.param, error.line) == (code, "custom_id", 1)


@pytest.mark.parametrize(
    "custom_id", ["x" * 512, "😀" * 512, "../../etc/passwd", "\r\nX: y", "=cmd()", "\x00", "\u2028", " "]
)
def test_any_custom_id_of_valid_length_passes(custom_id):
    """All characters are allowed."""
    assert verdict(line(custom_id)) == Passed(total=1, models=("m",))


def test_row_9_a_duplicate():
    """The later line has the fault; different escapes of an id are the same id."""
    twin = line("xy").replace(b'"xy"', b'"\\u0078y"')
    found = verdict(line("xy"), line("z"), twin, line("xy"))
    assert isinstance(found, Failed)
    assert [error.line for error in found.errors] == [3, 4]
    assert found.errors[0] == BatchError(
        code="duplicate_custom_id",
        message="The custom_id 'xy' for this request is a duplicate of another request. "
        "The custom_id parameter must be unique for each request in a batch. Line 1 has it too.",
        param="custom_id",
        line=3,
    )


def test_row_9_a_long_duplicate():
    """Long ids are compared as a whole, and quoted in part."""
    error = fault(line("x" * 511 + "a"), line("x" * 511 + "b"), line("x" * 511 + "a"))
    assert error.line == 3
    assert "'" + "x" * verdict_of_file.SHOWN_CHARS_MAX + "…'" in error.message


@pytest.mark.parametrize("method", ["GET", "post", ""])
def test_row_10_another_method(method):
    """Only POST."""
    error = fault(line(method=method))
    assert (error.code, error.param, error.line) == ("invalid_method", "method", 1)
    assert error.message == f"Invalid method for this request. Only POST is supported, but it is '{method}'."


@pytest.mark.parametrize("url", [EMBEDDINGS, CHAT + "/", "https://x" + CHAT, ""])
def test_row_11_another_url(url):
    """It must equal the batch's endpoint."""
    assert fault(line(url=url)) == BatchError(
        code="invalid_url",
        message="The URL provided for this request does not match the batch endpoint. "
        f"Expected '{CHAT}', but got '{url}'.",
        param="url",
        line=1,
    )


def test_row_12_streaming():
    """A line that asks for it is refused; `false` passes."""
    assert fault(line(body=request_body(stream=True))) == BatchError(
        code="streaming_unsupported",
        message="Chat Completions: Streaming is not supported in the Batch API.",
        param="body.stream",
        line=1,
    )
    assert isinstance(
        verdict(line("a", body=request_body(stream=False)), line("b", body=request_body(stream=None))), Passed
    )


@pytest.mark.parametrize("value", [1, "true", {"a": 1}])
def test_row_12_streaming_in_disguise(value):
    """Values that a lenient backend might treat as true are refused too."""
    error = fault(line(body=request_body(stream=value)))
    assert (error.code, error.param) == ("invalid_type", "body.stream")


@pytest.mark.parametrize("model", [ABSENT, None, ""])
def test_row_13_no_model(model):
    """Null is no model."""
    assert fault(line(body=request_body(model=model))) == BatchError(
        code="invalid_request", message="Model parameter is required.", param="body.model", line=1
    )


@pytest.mark.parametrize("model", [1, ["m"], {"m": 1}, True])
def test_row_13_a_model_of_another_type(model):
    """A model is a string."""
    error = fault(line(body=request_body(model=model)))
    assert (error.code, error.param) == ("invalid_type", "body.model")


def test_row_14_an_unknown_model(monkeypatch):
    """The message quotes it, and names the first known models."""
    assert fault(line(body=request_body(model="nonexistent-model-xyz"))) == BatchError(
        code="model_not_found",
        message="The provided model 'nonexistent-model-xyz' is not supported by the Batch API. "
        "Models here: 'm', 'other', 'embed'.",
        param="body.model",
        line=1,
    )
    monkeypatch.setattr(validation, "MODELS_SHOWN_MAX", 1)
    assert fault(line(body=request_body(model="x"))).message.endswith(" Models here: 'm' and 2 more.")


def test_row_14_a_model_of_another_endpoint():
    """The message names the endpoints of the model."""
    assert fault(line(body=request_body(model="embed"))) == BatchError(
        code="model_not_supported",
        message="The model 'embed' does not serve /v1/chat/completions; it serves /v1/embeddings.",
        param="body.model",
        line=1,
    )


def test_row_15_mixed_models():
    """The first valid model is the batch's; an unknown one before it does not count."""
    unknown, other = request_body(model="x"), request_body(model="other")
    found = verdict(line("a", body=unknown), line("b"), line("c", body=other), line("d"))
    assert isinstance(found, Failed)
    assert [(error.code, error.line) for error in found.errors] == [
        ("model_not_found", 1),
        ("mismatched_model", 3),
    ]
    assert found.errors[1].message == (
        "The model 'other' for this request does not match the rest of the batch. "
        "Each batch must contain requests for a single model; this one began with 'm'."
    )
    assert found.errors[1].param == "body.model"


@pytest.mark.parametrize(
    ("endpoint", "param", "text"),
    [
        (CHAT, "messages", "Messages parameter is required."),
        ("/v1/completions", "prompt", "Prompt parameter is required."),
        (EMBEDDINGS, "input", "Input parameter is required."),
        ("/v1/responses", "input", "Input parameter is required."),
    ],
)
def test_row_16_no_messages(endpoint, param, text):
    """Each endpoint has a required field; null is none; the other fields of a body are free."""
    for body in ({"model": "m"}, {"model": "m", param: None}):
        assert fault(line(url=endpoint, body=body), of=rules(endpoint)) == BatchError(
            code="invalid_request", message=text, param=f"body.{param}", line=1
        )
    body = {"model": "m", param: [], "temperature": "hot"}
    assert verdict(line(url=endpoint, body=body), of=rules(endpoint)) == Passed(total=1, models=("m",))


@pytest.mark.parametrize(
    ("given", "count"), [("one", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3], [4]], 3), ([], 1)]
)
def test_row_17_embedding_inputs(given, count, monkeypatch):
    """Texts are counted over the file; a list of tokens is one text."""
    lines = [line(str(number), url=EMBEDDINGS, body={"model": "m", "input": given}) for number in range(4)]
    monkeypatch.setattr(validation, "EMBEDDING_INPUTS_MAX", 4 * count)
    assert verdict(*lines, of=rules(EMBEDDINGS)) == Passed(total=4, models=("m",))
    monkeypatch.setattr(validation, "EMBEDDING_INPUTS_MAX", 4 * count - 1)
    error = fault(*lines, of=rules(EMBEDDINGS))
    assert (error.code, error.param, error.line) == ("too_many_embedding_inputs", "body.input", None)


def test_the_code_of_each_fault_is_a_known_one():
    """A rerun recognises the lines that were no requests by these codes."""
    source = Path(validation.__file__).read_text("utf-8")
    assert set(re.findall(r"(?:(?:raise|return) LineFault\(\s*|code = )\"(\w+)\"", source)) == REFUSALS


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize(
    ("more", "is_refused"),
    [
        ({"dimensions": 1024}, True),
        ({"dimensions": 1024, "encoding_format": "base64"}, False),
        ({"dimensions": 4096, "encoding_format": "base64"}, True),
        ({"dimensions": 10**15}, True),
        ({"dimensions": 512}, False),
        ({"dimensions": "1024"}, False),
        ({}, False),
    ],
)
def test_a_line_with_too_large_a_reply_is_refused(more, is_refused, is_long, monkeypatch):
    """Inputs times dimensions give its size, in short and long lines alike."""
    monkeypatch.setattr(validation, "LONG_LINE_BYTES", 0 if is_long else 1 << 20)
    of = dataclasses.replace(rules(EMBEDDINGS), reply_bytes_max=32 << 20)
    body = {"model": "m", "input": ["x"] * 2048, **more}
    found = verdict(line(url=EMBEDDINGS, body=body), of=of)
    assert isinstance(found, Failed) == is_refused
    if is_refused:
        (error,) = found.errors
        assert (error.code, error.param) == ("reply_too_large", "body.input")


ODD = [
    "1e400", "-1e999999", "1e-400", "9" * 10_000, "1.", "01", "-", "1e", "NaN", '"\\ud800"', '"\\udc00abcdefgh"',
    '"\\ud800\\u0041"', '"\\ud83d\\ude00"', '"\x01"', '"\\x"', "{}", "[]", "[1,]", '{"a":1,"a":2}', "tru",
    "null", "true", '"m"', "{", '"',
]  # fmt: skip
PLACES = [
    "@", '{"custom_id":@}', '{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":@}',
    *(
        f'{{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{{"model":"m","messages":[],{more}}}}}'
        for more in ('"y":@', '"y":[{"z":@}]', '"model":@', '"messages":@', '"messages":[@]', '"stream":@', "@:1")
    ),
]  # fmt: skip


@given(st.sampled_from(PLACES), st.sampled_from(ODD), st.sampled_from(["", ",", "}", "x", '"b":2']))
@example(PLACES[3], "1e400", "")
def test_a_line_is_judged_alike_at_any_length(place, odd, more):
    """Spaces before its last bracket make it long, and are no part of its values."""
    text = place.replace("@", odd + more)
    at = len(text) - 1 if text[-1:] in {"}", "]"} else 0
    long = text[:at] + " " * validation.LONG_LINE_BYTES + text[at:]
    found = [verdict(each.encode()) for each in (text, long)]
    if isinstance(found[0], Passed):
        assert found[1] == found[0]
        return
    # The reasons of the two parsers follow.
    said = [(each.code, each.param, each.message.partition(". ")[0]) for one in found for each in one.errors]
    assert said[0] == said[1]


def test_a_number_may_be_too_large_for_a_double():
    """The server gets it as it is written, and judges it; half of a surrogate pair is not JSON."""
    place = PLACES[4]
    assert isinstance(verdict(place.replace("@", "1e400").encode()), Passed)
    for odd in ('"\\ud800"', '"\\udc00x"'):
        assert fault(place.replace("@", odd).encode()).code == "invalid_json_line"


def test_the_rules_bound_a_line():
    """The fault names the bound."""
    of = dataclasses.replace(rules(), line_bytes_max=100)
    checker, splitter = Checker(of), Splitter(of.line_bytes_max)
    checker.check([*splitter.feed(b"x" * 101), *splitter.finish()])
    (error,) = checker.verdict().errors
    assert "maximum of 100 bytes" in error.message
    # A line that was checked is read by whatever reads it later.
    (found,) = [*Splitter().feed(b"x" * (LINE_BYTES_MAX + 1) + b"\n")]
    assert len(found.data) == LINE_BYTES_MAX + 1


def test_a_model_is_known_by_its_aliases():
    """Lines of one batch may mix them; the batch has the model's own name."""
    named = dataclasses.replace(rules(), aliases={"latest": "m"})
    lines = [line(f"r-{n}", body=request_body(model=name)) for n, name in enumerate(("latest", "m", "latest"))]
    assert verdict(*lines, of=named) == Passed(total=3, models=("m",))
    assert fault(line(body=request_body(model="newest")), of=named).code == "model_not_found"

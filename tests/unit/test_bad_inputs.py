"""Bad requests, each with the exact answer: status, code, param and message.

They go through the whole app, on a folder and without a broker.
"""

import json
from typing import Any

import pytest
import pytest_asyncio
from support.dependencies import open_client
from support.faults import (
    FLOAT,
    HIGH,
    LIST,
    LOW,
    NULL,
    NUMBER,
    OBJECT,
    TEXT,
    TRUE,
    Fault,
    cursor,
    high,
    kind,
    long,
    low,
    many,
    missing,
    no_batch,
    no_file,
    no_upload,
    rows,
    said,
    shown,
    value,
)

from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.resources import access

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
STATES = (
    "'validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', and 'cancelled'"
)
*_FIRST, _LAST = (f"'{path}'" for path in ENDPOINTS)
ENDPOINTS_SAID = f"{', '.join(_FIRST)}, and {_LAST}"
NOT_JSON = "We could not parse the JSON body of your request."
NOT_OBJECT = "The JSON body of your request must be an object."
NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using "
    "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
)

GOOD_BATCH = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"}
WRONG_TEXTS = ((1, NUMBER), (1.5, FLOAT), (True, TRUE), ([], LIST), ({}, OBJECT))
EXPIRY = "output_expires_after"

BATCHES: list[tuple[dict[str, Any], Fault]] = [
    *(({name: None}, missing(name)) for name in GOOD_BATCH),
    *(({name: wrong}, kind(name, TEXT, got)) for name in GOOD_BATCH for wrong, got in WRONG_TEXTS),
    *(
        ({"endpoint": endpoint}, value("endpoint", endpoint, ENDPOINTS_SAID))
        for endpoint in (
            "", "/v1/invalid/endpoint", "v1/embeddings", "/v1/embeddings/", "/V1/EMBEDDINGS", "/v1/mine",
            "/v1/images", "chat", " /v1/embeddings", "/v1/embeddings\n",
        )
    ),
    *(
        ({"completion_window": window}, value("completion_window", window, "'24h'"))
        for window in ("", "invalid", "1h", "48h", "24H", "24", " 24h", "1d", "0h", "-24h")
    ),
    ({"endpoint": "x" * 300}, value("endpoint", "x" * 200 + "…", ENDPOINTS_SAID)),
    *(({"metadata": wrong}, kind("metadata", OBJECT, got)) for wrong, got in (
        ([], LIST), ("a", TEXT), (1, NUMBER), (1.5, FLOAT), (False, TRUE), ([["a", "b"]], LIST),
    )),
    *(({"metadata": {"tags": wrong}}, kind("metadata.tags", TEXT, got)) for wrong, got in (
        ([], LIST), (["a"], LIST), (1, NUMBER), (1.5, FLOAT), (True, TRUE), (None, NULL), ({"a": "b"}, OBJECT),
    )),
    ({"metadata": {str(n): "" for n in range(17)}}, many("metadata", 16, 17)),
    ({"metadata": {str(n): "" for n in range(1000)}}, many("metadata", 16, 1000)),
    ({"metadata": {"k" * 65: "v"}}, long("metadata." + "k" * 65, 64, 65)),
    ({"metadata": {"k" * 300: "v"}}, long("metadata." + "k" * 200 + "…", 64, 300)),
    ({"metadata": {"k": "v" * 513}}, long("metadata.k", 512, 513)),
    ({"metadata": {"ä" * 65: ""}}, long("metadata." + "ä" * 65, 64, 65)),
    ({"metadata": {"good": "yes", "k": "😀" * 513}}, long("metadata.k", 512, 513)),
    *(({EXPIRY: wrong}, kind(EXPIRY, OBJECT, got)) for wrong, got in (
        (3600, NUMBER), ("3600", TEXT), ([], LIST), (True, TRUE), (1.5, FLOAT),
    )),
    ({EXPIRY: {}}, missing(f"{EXPIRY}.anchor")),
    ({EXPIRY: {"seconds": 3600}}, missing(f"{EXPIRY}.anchor")),
    ({EXPIRY: {"anchor": None, "seconds": 3600}}, missing(f"{EXPIRY}.anchor")),
    ({EXPIRY: {"anchor": 1, "seconds": 3600}}, kind(f"{EXPIRY}.anchor", TEXT, NUMBER)),
    ({EXPIRY: {"anchor": "now", "seconds": 3600}}, value(f"{EXPIRY}.anchor", "now", "'created_at'")),
    ({EXPIRY: {"anchor": "", "seconds": 3600}}, value(f"{EXPIRY}.anchor", "", "'created_at'")),
    ({EXPIRY: {"anchor": "created_at"}}, missing(f"{EXPIRY}.seconds")),
    *(
        ({EXPIRY: {"anchor": "created_at", "seconds": wrong}}, kind(f"{EXPIRY}.seconds", NUMBER, got))
        for wrong, got in (("3600", TEXT), (3600.0, FLOAT), (True, TRUE), ([], LIST), ({}, OBJECT))
    ),
    *(
        ({EXPIRY: {"anchor": "created_at", "seconds": wrong}}, fault)
        for wrong, fault in (
            (LOW - 1, low(f"{EXPIRY}.seconds", LOW, LOW - 1)), (0, low(f"{EXPIRY}.seconds", LOW, 0)),
            (-1, low(f"{EXPIRY}.seconds", LOW, -1)), (HIGH + 1, high(f"{EXPIRY}.seconds", HIGH, HIGH + 1)),
            (1 << 62, high(f"{EXPIRY}.seconds", HIGH, 1 << 62)),
        )
    ),
]  # fmt: skip

BODIES: list[tuple[bytes, Fault]] = [
    *((body, said(NOT_JSON)) for body in (
        b"{", b"}", b"\xff", b"{'a': 1}", b"nan", b'{"a":NaN}', b'{"a":1}{"b":2}', b'{"input_file_id":"\\ud800"}',
        b'{"a":1,}', b"\xef\xbb\xbf{}", b"input_file_id=file-x",
    )),
    (b"[" * 5000, said("The JSON body of your request has more than 130 levels.")),
    *((body, said(NOT_OBJECT)) for body in (b"[]", b'"text"', b"1", b"null", b"true", b'[{"endpoint":"x"}]')),
    *((body, missing("endpoint")) for body in (b"", b"{}", b" \n ", b'{"unknown":1}')),
    (b" " * ((8 << 20) + 1), said("The request is too large: the maximum is 8388608 bytes.", status=413)),
]  # fmt: skip


SECONDS_TOP = 1 << 53
QUERIES: list[tuple[str, str, Fault]] = [
    *(
        (path, f"limit={text}", fault)
        for path, top in (("/files", 10_000), ("/batches", 100))
        for text, fault in (
            ("0", low("limit", 1, 0)), ("-5", low("limit", 1, -5)), (str(top + 1), high("limit", top, top + 1)),
            ("x", kind("limit", NUMBER, TEXT)), ("1.5", kind("limit", NUMBER, TEXT)),
            ("%20", kind("limit", NUMBER, TEXT)), ("9" * 30, high("limit", top, int("9" * 30))),
        )
    ),
    *((path, "order=up", value("order", "up", "'asc' and 'desc'")) for path in ("/files", "/batches")),
    *((path, "order=DESC", value("order", "DESC", "'asc' and 'desc'")) for path in ("/files", "/batches")),
    *((path, "after=none", cursor("none")) for path in ("/files", "/batches")),
    *((path, "after=%00%27%22", cursor("\0'\"")) for path in ("/files", "/batches")),
    ("/files", "after=" + "x" * 300, cursor("x" * 200 + "…")),
    ("/batches", "status=done", value("status", "done", STATES)),
    ("/batches", "status=Completed", value("status", "Completed", STATES)),
    ("/batches", "created_after=now", kind("created_after", NUMBER, TEXT)),
    ("/batches", "created_after=-1", low("created_after", 0, -1)),
    ("/batches", f"created_before={SECONDS_TOP + 1}", high("created_before", SECONDS_TOP, SECONDS_TOP + 1)),
    ("/batches", "metadata[k]=" + "v" * 513, long("metadata.k", 512, 513)),
    ("/batches", f"metadata[{'k' * 65}]=v", long("metadata." + "k" * 65, 64, 65)),
    ("/batches", "&".join(f"metadata[{n}]=v" for n in range(17)), many("metadata", 16, 17)),
]  # fmt: skip

WELL_FORMED = "batch_" + "0" * 32
ROUTES: list[tuple[str, str, Fault]] = [
    ("GET", "/files/file-none", no_file("file-none")),
    ("DELETE", "/files/file-none", no_file("file-none")),
    ("GET", "/files/file-none/content", no_file("file-none")),
    ("GET", "/files/" + "x" * 300, no_file("x" * 200 + "…")),
    ("GET", "/files/..%2f..%2fetc", said("Invalid URL (GET /v1/files/../../etc)", status=404)),
    ("GET", "/batches/batch_x", no_batch("batch_x")),
    ("GET", f"/batches/{WELL_FORMED}", no_batch(WELL_FORMED)),
    ("POST", "/batches/batch_x/cancel", no_batch("batch_x")),
    ("GET", "/batches/%00", no_batch("\0")),
    ("POST", "/uploads/upload_x/parts", no_upload("upload_x")),
    ("POST", "/uploads/upload_x/cancel", no_upload("upload_x")),
    (
        "GET",
        "/models/gpt-4",
        said("The model 'gpt-4' does not exist", param="model", code="model_not_found", status=404),
    ),
    ("GET", "/nothing/here", said("Invalid URL (GET /v1/nothing/here)", status=404)),
    ("GET", "/batches/", said("Invalid URL (GET /v1/batches/)", status=404)),
    (
        "POST",
        "/chat/completions",
        said(
            "Invalid URL (POST /v1/chat/completions). Tidemill runs batches (/v1/batches); "
            "send single calls to the inference server itself.",
            status=404,
        ),
    ),
    ("PUT", "/files", said("Invalid method for URL (PUT /v1/files)", status=405)),
    ("PATCH", "/batches/x", said("Invalid method for URL (PATCH /v1/batches/x)", status=405)),
    ("DELETE", "/batches", said("Invalid method for URL (DELETE /v1/batches)", status=405)),
    ("GET", "/uploads", said("Invalid method for URL (GET /v1/uploads)", status=405)),
]

KEYS: list[tuple[str | None, Fault]] = [
    *((header, said(NO_KEY, status=401)) for header in (
        None, "", "Bearer", "Bearer ", "Basic key-of-p", "key-of-p",
    )),
    ("Bearer x", said("Incorrect API key provided: ***. Ask the operator of this server for a key.",
                      code="invalid_api_key", status=401)),
    ("Bearer sk-wrong-key-0123456789",
     said("Incorrect API key provided: sk-wr***89. Ask the operator of this server for a key.",
          code="invalid_api_key", status=401)),
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory):
    async with open_client(tmp_path_factory.mktemp("bad-inputs")) as client:
        yield client


in_one_loop = pytest.mark.asyncio(loop_scope="module")


@in_one_loop
@pytest.mark.parametrize(("change", "expected"), rows(BATCHES))
async def test_a_batch(client, change, expected):
    """A field of a create."""
    assert shown(await client.post("/batches", json=GOOD_BATCH | change)) == expected


@in_one_loop
@pytest.mark.parametrize(("body", "expected"), rows(BODIES))
async def test_a_body(client, body, expected):
    """Text that is not a JSON object."""
    assert shown(await client.post("/batches", content=body)) == expected


@in_one_loop
@pytest.mark.parametrize(("path", "query", "expected"), rows(QUERIES))
async def test_a_query(client, path, query, expected):
    """Of a list."""
    assert shown(await client.get(f"{path}?{query}")) == expected


@in_one_loop
@pytest.mark.parametrize(("method", "path", "expected"), rows(ROUTES))
async def test_a_route(client, method, path, expected):
    """Missing objects, and impossible actions on existing ones."""
    assert shown(await client.request(method, path)) == expected


@in_one_loop
@pytest.mark.parametrize(("header", "expected"), rows(KEYS))
async def test_a_key(client, header, expected):
    """None, or a wrong one; the answer names the kind of key, and Tidemill."""
    request = client.build_request("GET", "/batches")
    del request.headers["authorization"]
    if header is not None:
        request.headers["authorization"] = header
    answer = await client.send(request)
    assert shown(answer) == expected
    assert answer.headers["www-authenticate"] == access.CHALLENGE


def test_no_row_stands_twice():
    """A copied row tests nothing."""
    for table in (BATCHES, BODIES, QUERIES, ROUTES, KEYS):
        assert len({json.dumps(row, default=repr) for row in table}) == len(table)

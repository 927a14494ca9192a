"""Bad requests, each with the exact answer: status, code, param and message.

They go through the whole app, on a folder and without a broker.
"""

import json
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.dependencies import open_dependencies
from support.faults import (
    FLOAT,
    LIST,
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
    value,
)

from tidemill.api.app import create_app

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
GOOD_LINE = b'{"custom_id":"a"}\n'
PURPOSES = "'assistants', 'batch', 'fine-tune', 'vision', 'user_data', and 'evals'"
STATES = (
    "'validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', and 'cancelled'"
)
ENDPOINTS_SAID = "'/v1/chat/completions', '/v1/completions', '/v1/embeddings', and '/v1/responses'"
NOT_JSONL = "Invalid file format for Batch API. Must be .jsonl"
NOT_UTF8 = "Invalid file for Batch API. Must be utf-8 encoded"
NOT_JSON = "We could not parse the JSON body of your request."
NOT_OBJECT = "The JSON body of your request must be an object."
NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using "
    "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
)
FORM = "Could not read the upload: "
LOW, HIGH = 3600, 2_592_000

GOOD_BATCH = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"}
WRONG_TEXTS = ((1, NUMBER), (1.5, FLOAT), (True, TRUE), ([], LIST), ({}, OBJECT))
EXPIRY = "output_expires_after"

BATCHES: list[tuple[dict[str, Any], Fault]] = [
    *(({name: None}, missing(name)) for name in GOOD_BATCH),
    *(({name: wrong}, kind(name, TEXT, got)) for name in GOOD_BATCH for wrong, got in WRONG_TEXTS),
    *(
        ({"endpoint": endpoint}, value("endpoint", endpoint, ENDPOINTS_SAID))
        for endpoint in (
            "", "/v1/invalid/endpoint", "v1/embeddings", "/v1/embeddings/", "/V1/EMBEDDINGS", "/v1/moderations",
            "/v1/images/generations", "chat", " /v1/embeddings", "/v1/embeddings\n",
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
        b'{"a":1,}', b"\xef\xbb\xbf{}", b"input_file_id=file-x", b"[" * 5000,
    )),
    *((body, said(NOT_OBJECT)) for body in (b"[]", b'"text"', b"1", b"null", b"true", b'[{"endpoint":"x"}]')),
    *((body, missing("endpoint")) for body in (b"", b"{}", b" \n ", b'{"unknown":1}')),
    (b" " * ((1 << 20) + 1), said("The request is too large: the maximum is 1048576 bytes.", status=413)),
]  # fmt: skip

GOOD_FORM = {"purpose": "batch"}
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"

FORMS: list[tuple[dict[str, str], bytes | None, Fault]] = [
    *((GOOD_FORM, content, said(NOT_JSONL)) for content in (
        b"", b"\n", b" \r\n\t\n", b"\xef\xbb\xbf", b"not json\n", b"{", b"id,name\n1,x\n", b"PK\x03\x04 zip",
        b"%PDF-1.7",
        b"{'custom_id': 'a'}\n", b"[1,2", b"\x00\x00", b"NaN\n", b'{"a":1}{"b":2}\n', b'\n\n{"a":\n1}',
        b"<html></html>",
    )),
    *((GOOD_FORM, content, said(NOT_UTF8)) for content in (
        b"\xff\xfe{\x00}\x00", b'{"a":"\xe4"}', b"\x1f\x8b\x08\x00 gzip", b"\x89PNG\r\n", b"\n\n\xc3\n",
        b"\xed\xa0\x80",
    )),
    ({}, GOOD_LINE, missing("purpose")),
    ({"purpose": ""}, GOOD_LINE, missing("purpose")),
    *(({"purpose": purpose}, GOOD_LINE, value("purpose", purpose, PURPOSES)) for purpose in (
        "batch_output", "Batch", "batch ", "fine_tune", "x", "assistants_output", "ä", "null",
    )),
    (GOOD_FORM, None, missing("file")),
    ({"purpose": "x" * 1025}, GOOD_LINE, said(f"{FORM}a field has more than 1024 bytes.")),
    (GOOD_FORM | {"other": "x" * 1025}, GOOD_LINE, said(f"{FORM}a field has more than 1024 bytes.")),
    (GOOD_FORM | {f"f{n}": "" for n in range(20)}, GOOD_LINE, said(f"{FORM}the form has more than 16 parts.")),
    (GOOD_FORM | {ANCHOR: "created_at"}, GOOD_LINE, missing(SECONDS)),
    (GOOD_FORM | {SECONDS: "3600"}, GOOD_LINE, missing(ANCHOR)),
    (GOOD_FORM | {ANCHOR: "", SECONDS: "3600"}, GOOD_LINE, missing(ANCHOR)),
    (GOOD_FORM | {ANCHOR: "created_at", SECONDS: ""}, GOOD_LINE, missing(SECONDS)),
    (GOOD_FORM | {ANCHOR: "now", SECONDS: "3600"}, GOOD_LINE, value(ANCHOR, "now", "'created_at'")),
    *(
        (GOOD_FORM | {ANCHOR: "created_at", SECONDS: text}, GOOD_LINE, fault)
        for text, fault in (
            ("3599", low(SECONDS, LOW, 3599)), ("-1", low(SECONDS, LOW, -1)), ("0", low(SECONDS, LOW, 0)),
            ("2592001", high(SECONDS, HIGH, 2_592_001)), ("x", kind(SECONDS, NUMBER, TEXT)),
            ("3600.0", kind(SECONDS, NUMBER, TEXT)), ("1e4", kind(SECONDS, NUMBER, TEXT)),
            ("9" * 40, kind(SECONDS, NUMBER, TEXT)), ("٣٦٠٠", kind(SECONDS, NUMBER, TEXT)),
        )
    ),
]  # fmt: skip

MULTIPART = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
RAW_FORMS: list[tuple[str | None, bytes, str]] = [
    (None, PART, "the request must be multipart/form-data"),
    ("application/json", b"{}", "the request must be multipart/form-data"),
    ("text/plain", PART, "the request must be multipart/form-data"),
    ("multipart/form-data", PART, "the multipart boundary is missing or too long"),
    ("multipart/form-data; boundary=", PART, "the multipart boundary is missing or too long"),
    (f"multipart/form-data; boundary={'b' * 201}", PART, "the multipart boundary is missing or too long"),
    (MULTIPART, b"", "the multipart body ends before its closing boundary"),
    (MULTIPART, PART, "the multipart body ends before its closing boundary"),
    (MULTIPART, PART + GOOD_LINE + b"\r\n--", "the multipart body ends before its closing boundary"),
    (MULTIPART, b"nonsense", "the multipart body is malformed"),
    (MULTIPART, b"--c\r\n", "the multipart body is malformed"),
    (MULTIPART, b"--b\r\nX: " + b"y" * 9000, "the multipart body is malformed"),
    (MULTIPART, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", "a part of the form has no name"),
]

SECONDS_TOP = 1 << 53
QUERIES: list[tuple[str, str, Fault]] = [
    *(
        (path, f"limit={text}", fault)
        for path, top in (("/files", 10_000), ("/batches", 100))
        for text, fault in (
            ("0", low("limit", 1, 0)), ("-5", low("limit", 1, -5)), (str(top + 1), high("limit", top, top + 1)),
            ("x", kind("limit", NUMBER, TEXT)), ("1.5", kind("limit", NUMBER, TEXT)),
            ("%20", kind("limit", NUMBER, TEXT)), ("9" * 30, kind("limit", NUMBER, TEXT)),
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

GOOD_UPLOAD = {"filename": "f", "purpose": "batch", "bytes": 1, "mime_type": "text/plain"}
UPLOADS: list[tuple[dict[str, Any], Fault]] = [
    *(({name: None}, missing(name)) for name in GOOD_UPLOAD),
    ({"filename": 1}, kind("filename", TEXT, NUMBER)),
    ({"filename": "f" * 1025}, long("filename", 1024, 1025)),
    ({"mime_type": []}, kind("mime_type", TEXT, LIST)),
    ({"mime_type": "m" * 256}, long("mime_type", 255, 256)),
    ({"purpose": "batch_output"}, value("purpose", "batch_output", PURPOSES)),
    ({"bytes": 0}, low("bytes", 1, 0)),
    ({"bytes": -1}, low("bytes", 1, -1)),
    ({"bytes": (8 << 30) + 1}, high("bytes", 8 << 30, (8 << 30) + 1)),
    *(({"bytes": wrong}, kind("bytes", NUMBER, got)) for wrong, got in (("1", TEXT), (1.0, FLOAT), (True, TRUE))),
    ({"expires_after": 3600}, kind("expires_after", OBJECT, NUMBER)),
    ({"expires_after": {"anchor": "created_at"}}, missing("expires_after.seconds")),
]  # fmt: skip


def completion(message: str, param: str = "part_ids", code: str | None = "invalid_value") -> Fault:
    return said(message, param=param, code=code)


NO_MD5 = completion("Invalid 'md5': it must be 32 hexadecimal digits.", "md5")
COMPLETIONS: list[tuple[dict[str, Any], Fault]] = [
    ({}, missing("part_ids")),
    ({"part_ids": None}, missing("part_ids")),
    ({"part_ids": "part_x"}, kind("part_ids", "an array of strings", TEXT)),
    ({"part_ids": {}}, kind("part_ids", "an array of strings", OBJECT)),
    ({"part_ids": []}, completion("Invalid 'part_ids': at least one part is needed.", code="empty_array")),
    ({"part_ids": ["a", 1]}, kind("part_ids[1]", TEXT, NUMBER)),
    ({"part_ids": ["a", "a"]}, completion("Invalid 'part_ids': a part is named twice.")),
    ({"part_ids": ["a", None]}, kind("part_ids[1]", TEXT, NULL)),
    ({"part_ids": [str(n) for n in range(10_001)]}, completion(
        "Invalid 'part_ids': array too long. Expected an array with maximum length 10000, "
        "but got an array with length 10001 instead.", code="array_above_max_length",
    )),
    ({"part_ids": ["a"], "md5": 1}, kind("md5", TEXT, NUMBER)),
    *(({"part_ids": ["a"], "md5": md5}, NO_MD5) for md5 in ("", "0" * 31, "g" * 32, "0" * 33)),
    ({"part_ids": ["part_none"]}, completion("No such part of the upload: 'part_none'.")),
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory):
    """A client of one app for the whole table, as the project `p`."""
    async with open_dependencies(tmp_path_factory.mktemp("bad")) as deps:
        transport = httpx.ASGITransport(create_app(deps))
        headers = {"authorization": "Bearer key-of-p"}
        async with httpx.AsyncClient(transport=transport, base_url="http://api/v1", headers=headers) as client:
            yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upload_path(client):
    """An upload that takes parts."""
    made = (await client.post("/uploads", json=GOOD_UPLOAD)).raise_for_status()
    return f"/uploads/{made.json()['id']}"


def shown(answer: httpx.Response) -> Fault:
    """What is answered, after a look at the envelope."""
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"].startswith("req_")
    return answer.status_code, error["code"], error["param"], error["message"]


in_one_loop = pytest.mark.asyncio(loop_scope="module")


@in_one_loop
@pytest.mark.parametrize(("change", "expected"), rows(BATCHES))
async def test_a_batch(client, change, expected):
    """A field of a create."""
    assert shown(await client.post("/batches", json=GOOD_BATCH | change)) == expected


@in_one_loop
@pytest.mark.parametrize(("body", "expected"), rows(BODIES))
async def test_a_body(client, body, expected):
    """What is no JSON object."""
    assert shown(await client.post("/batches", content=body)) == expected


@in_one_loop
@pytest.mark.parametrize(("fields", "content", "expected"), rows(FORMS))
async def test_a_file(client, fields, content, expected):
    """A form's fields and its file."""
    files = {"other": ("x", b"x")} if content is None else {"file": ("in.jsonl", content)}
    status, param, code, message = shown(await client.post("/files", data=fields, files=files))
    if expected[3] in {NOT_JSONL, NOT_UTF8}:
        # Where it breaks and why follows.
        message, _, place = message.partition(":")
        assert place
    assert (status, param, code, message) == expected


@in_one_loop
@pytest.mark.parametrize(("content_type", "body", "expected"), rows(RAW_FORMS))
async def test_a_form(client, content_type, body, expected):
    """What is no form."""
    headers = {} if content_type is None else {"content-type": content_type}
    assert shown(await client.post("/files", content=body, headers=headers)) == said(f"{FORM}{expected}.")


@in_one_loop
@pytest.mark.parametrize(("path", "query", "expected"), rows(QUERIES))
async def test_a_query(client, path, query, expected):
    """Of a list."""
    assert shown(await client.get(f"{path}?{query}")) == expected


@in_one_loop
@pytest.mark.parametrize(("method", "path", "expected"), rows(ROUTES))
async def test_a_route(client, method, path, expected):
    """What is not there, and what cannot be done with what is."""
    assert shown(await client.request(method, path)) == expected


@in_one_loop
@pytest.mark.parametrize(("header", "expected"), rows(KEYS))
async def test_a_key(client, header, expected):
    """None, or a wrong one."""
    request = client.build_request("GET", "/batches")
    del request.headers["authorization"]
    if header is not None:
        request.headers["authorization"] = header
    assert shown(await client.send(request)) == expected


@in_one_loop
@pytest.mark.parametrize(("change", "expected"), rows(UPLOADS))
async def test_an_upload(client, change, expected):
    """A field of the beginning of an upload in parts."""
    assert shown(await client.post("/uploads", json=GOOD_UPLOAD | change)) == expected


@in_one_loop
@pytest.mark.parametrize(("body", "expected"), rows(COMPLETIONS))
async def test_a_completion(client, upload_path, body, expected):
    """A field of its end."""
    assert shown(await client.post(f"{upload_path}/complete", json=body)) == expected


def test_the_table_is_large():
    """A hundred and fifty and more, all of them different."""
    tables = (
        BATCHES,
        BODIES,
        FORMS,
        RAW_FORMS,
        QUERIES,
        ROUTES,
        KEYS,
        UPLOADS,
        COMPLETIONS,
    )
    assert sum(len(table) for table in tables) >= 150
    for table in tables:
        assert len({json.dumps(row, default=repr) for row in table}) == len(table)

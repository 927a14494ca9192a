"""Bad uploads, of files and in parts, each with the exact answer: status, code, param and message."""

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
    PURPOSES,
    TEXT,
    TRUE,
    Fault,
    high,
    kind,
    long,
    low,
    missing,
    rows,
    said,
    shown,
    value,
)

GOOD_LINE = b'{"custom_id":"a"}\n'
NOT_JSONL = "Invalid file format for Batch API. Must be .jsonl"
NOT_UTF8 = "Invalid file for Batch API. Must be utf-8 encoded"
FORM = "Could not read the upload: "
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
            ("9" * 40, high(SECONDS, HIGH, int("9" * 40))), ("٣٦٠٠", kind(SECONDS, NUMBER, TEXT)),
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
    async with open_client(tmp_path_factory.mktemp("bad-uploads")) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upload_path(client):
    """An upload that takes parts."""
    made = (await client.post("/uploads", json=GOOD_UPLOAD)).raise_for_status()
    return f"/uploads/{made.json()['id']}"


in_one_loop = pytest.mark.asyncio(loop_scope="module")


@in_one_loop
@pytest.mark.parametrize(("fields", "content", "expected"), rows(FORMS))
async def test_a_file(client, fields, content, expected):
    """A form's fields and its file."""
    files = {"other": ("x", b"x")} if content is None else {"file": ("in.jsonl", content)}
    status, param, code, message = shown(await client.post("/files", data=fields, files=files))
    if expected[3] in {NOT_JSONL, NOT_UTF8}:
        # The place and the reason follow.
        message, _, place = message.partition(":")
        assert place
    assert (status, param, code, message) == expected


@in_one_loop
@pytest.mark.parametrize(("content_type", "body", "expected"), rows(RAW_FORMS))
async def test_a_form(client, content_type, body, expected):
    """Bodies that are not forms."""
    headers = {} if content_type is None else {"content-type": content_type}
    assert shown(await client.post("/files", content=body, headers=headers)) == said(f"{FORM}{expected}.")


@in_one_loop
@pytest.mark.parametrize("name", ["file", "data"])
async def test_a_second_file(client, upload_path, name):
    """Of a file, and of a part."""
    path = "/files" if name == "file" else f"{upload_path}/parts"
    files = [(name, ("f", GOOD_LINE))] * 2
    answer = await client.post(path, data=GOOD_FORM if name == "file" else {}, files=files)
    assert shown(answer) == said(f"The form has more than one '{name}'.", param=name, code="invalid_value")


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


def test_no_row_stands_twice():
    """A copied row tests nothing."""
    for table in (FORMS, RAW_FORMS, UPLOADS, COMPLETIONS):
        assert len({json.dumps(row, default=repr) for row in table}) == len(table)

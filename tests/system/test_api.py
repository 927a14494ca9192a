"""The stage `api` on a real broker and a folder: files, and what holds for every route."""

import hashlib
import http.client
import json
import re
import socket
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from support.api import KEY
from support.api_use import LINE, MODELS, UPLOAD_BYTES_MAX, fault, new_batch, publish, stored
from support.backend import Backend
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.schemas.resources.batch import Status

pytestmark = pytest.mark.kafka


def test_the_life_of_a_file(sdk):
    """Upload, retrieve, list, download, delete, with the SDK."""
    file = sdk.files.create(file=("in.jsonl", LINE * 3), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.status) == (
        len(LINE) * 3,
        "in.jsonl",
        "batch",
        "processed",
    )
    assert file.expires_at - file.created_at == 30 * 86_400
    assert file._request_id.startswith("req_")
    assert sdk.files.retrieve(file.id) == file
    assert file.id in [found.id for found in sdk.files.list(purpose="batch")]
    assert sdk.files.content(file.id).read() == LINE * 3
    assert sdk.files.wait_for_processing(file.id).id == file.id
    assert sdk.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object") as caught:
        sdk.files.retrieve(file.id)
    assert caught.value.param == "id"
    with pytest.raises(openai.NotFoundError):
        sdk.files.content(file.id)


def test_azures_client_and_head(api, plain):
    """Its key has its own header, its paths are aliases; `HEAD` has no body on the wire."""
    with openai.AzureOpenAI(azure_endpoint=api.root, api_key=KEY, api_version="2024-10-21") as azure:
        file = azure.files.create(file=LINE * 3, purpose="batch", extra_headers={"x-request-id": "mine-1"})
        assert file._request_id == "mine-1"
        assert new_batch(azure).id == azure.batches.list(limit=1).data[0].id
    for _ in range(2):
        # The connection is kept, so a body would be taken for the next answer.
        head = plain.head(f"/files/{file.id}/content")
        assert (head.status_code, head.headers["content-length"]) == (200, str(3 * len(LINE)))
    assert plain.get("/files/file-x", headers={"x-request-id": "lost-1"}).headers["x-request-id"] == "lost-1"
    wait_until(lambda: re.search(r"404 for GET.*\"lost-1\"", api.log), what="a line in the log")


def test_uploads_of_every_kind(sdk, tmp_path):
    """A path, bytes without a name, an expiry of one's own, a BOM, CRLF, no final newline, another purpose."""
    path = tmp_path / 'größe "1".jsonl'
    path.write_bytes(b"\xef\xbb\xbf" + LINE.replace(b"\n", b"\r\n"))
    assert sdk.files.create(file=path, purpose="batch").bytes == path.stat().st_size
    assert sdk.files.create(file=LINE.strip(), purpose="batch").filename == "upload"
    file = sdk.files.create(file=LINE, purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at - file.created_at == 3600
    assert sdk.files.create(file=b"anything", purpose="user_data").expires_at is None


def test_a_file_before_its_purpose_and_without_a_length(plain):
    """As Node sends it: the file first, chunked."""
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n',
        *[LINE] * 1000,
        b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n',
    ]
    kind = {"content-type": "multipart/form-data; boundary=b"}
    answer = plain.post("/files", content=iter(parts), headers=kind)
    assert (answer.status_code, answer.json()["bytes"]) == (200, len(LINE) * 1000)
    headers = {"accept-encoding": "identity"}
    content = plain.get(f"/files/{answer.json()['id']}/content", headers=headers)
    assert content.headers["etag"] == f'"{hashlib.sha256(LINE * 1000).hexdigest()}"'
    assert content.content == LINE * 1000


@pytest.mark.parametrize(
    ("fields", "content", "expected", "message"),
    [
        ({"purpose": "batch"}, b"", (400, None, None), "Must be .jsonl"),
        ({"purpose": "batch"}, b"not json\n", (400, None, None), "Must be .jsonl"),
        ({"purpose": "batch"}, '{"a":"ä"}'.encode("latin-1"), (400, None, None), "Must be utf-8 encoded"),
        ({}, LINE, (400, "purpose", "missing_required_parameter"), "'purpose'"),
        ({"purpose": "batch_output"}, LINE, (400, "purpose", "invalid_value"), "batch_output"),
        ({"purpose": "batch"}, None, (400, "file", "missing_required_parameter"), "'file'"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            LINE, (400, "expires_after[seconds]", "integer_below_min_value"), "3600",
        ),
        ({"purpose": "x" * 2000}, LINE, (400, None, None), "bytes"),
        ({"purpose": "batch"}, LINE * (UPLOAD_BYTES_MAX // len(LINE) + 1), (413, "file", None), "too large"),
    ],
    ids=["empty", "text", "latin-1", "no purpose", "purpose", "no file", "expiry", "long field", "size"],
)  # fmt: skip
def test_invalid_uploads(api, plain, fields, content, expected, message):  # noqa: PLR0917
    """Each gets its error, and leaves nothing in the store for long."""
    before = stored(api)
    files = {"file": ("in.jsonl", content)} if content is not None else {"other": ("x", b"x")}
    answer = plain.post("/files", data=fields, files=files)
    assert fault(answer) == expected
    assert message in answer.json()["error"]["message"]
    wait_until(lambda: stored(api) == before, "the partial file to go")


def test_a_too_large_upload_of_unknown_length_is_read_to_its_end(api, plain):
    """A client that is still sending gets the 413, not a broken connection."""
    before = stored(api)

    def parts():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(12):
            yield b"x" * (1 << 20)

    answer = plain.post("/files", content=parts(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert fault(answer)[0] == 413
    wait_until(lambda: stored(api) == before, "the partial file to go")


def test_a_broken_upload_leaves_nothing(api, plain):
    """The connection closes in the middle of the file."""
    before, total = stored(api), len(plain.get("/files").json()["data"])
    address = urlsplit(api.url)
    connection = http.client.HTTPConnection(address.hostname, address.port)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("authorization", f"Bearer {KEY}")
    connection.putheader("content-type", "multipart/form-data; boundary=b")
    connection.putheader("content-length", str(3 << 20))
    connection.endheaders()
    connection.send(b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + LINE * 20_000)
    wait_until(lambda: stored(api) != before, "a partial file")
    connection.close()
    wait_until(lambda: stored(api) == before, "the partial file to go")
    assert len(plain.get("/files").json()["data"]) == total


@pytest.mark.parametrize(
    "body", [b"", b"--b\r\n", b"--b\r\n\r\n\r\n--b--", b"nonsense", b"--b\r\nX: " + b"y" * 9000]
)
def test_a_malformed_form_is_a_400(plain, body):
    """Never a 500."""
    answer = plain.post("/files", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert fault(answer)[0] == 400
    assert fault(plain.post("/files", content=body))[0] == 400


def test_ranges_of_a_file(sdk, plain):
    """One range is served; one beyond the file is a 416; a known version a 304."""
    file = sdk.files.create(file=('na"me\r\n.jsonl', LINE * 2), purpose="batch")
    path = f"/files/{file.id}/content"
    whole = plain.get(path)
    assert whole.headers["content-length"] == str(len(LINE) * 2)
    assert whole.headers["content-disposition"].startswith("attachment; ")
    part = plain.get(path, headers={"range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, (LINE * 2)[5:10])
    assert part.headers["content-range"] == f"bytes 5-9/{len(LINE) * 2}"
    assert plain.get(path, headers={"range": "bytes=-3"}).content == LINE[-3:]
    assert plain.get(path, headers={"range": "bytes=5-9", "if-range": '"other"'}).status_code == 200
    beyond = plain.get(path, headers={"range": "bytes=999999-"})
    assert (fault(beyond)[0], beyond.headers["content-range"]) == (416, f"bytes */{len(LINE) * 2}")
    assert plain.get(path, headers={"if-none-match": whole.headers["etag"]}).status_code == 304


def test_lists_page_by_page(sdk, plain):
    """Both directions, a cursor that was deleted, limits, and the shape of the last page."""
    # Other modules use the same broker.
    for left in sdk.files.list(purpose="evals"):
        sdk.files.delete(left.id)
    ids = [sdk.files.create(file=LINE, purpose="evals").id for _ in range(5)]
    listed = [file.id for file in sdk.files.list(purpose="evals", limit=2)]
    assert sorted(listed) == sorted(ids)
    assert [file.id for file in sdk.files.list(purpose="evals", limit=1, order="asc")] == listed[::-1]
    walked = []
    for file in sdk.files.list(purpose="evals", limit=2):
        sdk.files.delete(file.id)
        walked.append(file.id)
    assert walked == listed
    assert plain.get("/files", params={"purpose": "evals"}).json() == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip
    for limit, code in (
        ("0", "integer_below_min_value"),
        ("10001", "integer_above_max_value"),
        ("x", "invalid_type"),
    ):
        assert fault(plain.get("/files", params={"limit": limit})) == (400, "limit", code)
    assert fault(plain.get("/batches", params={"limit": 101})) == (400, "limit", "integer_above_max_value")
    assert fault(plain.get("/files", params={"order": "up"})) == (400, "order", "invalid_value")
    assert fault(plain.get("/files", params={"after": "file-none"})) == (400, "after", "invalid_value")


def test_unknown_objects_routes_and_methods(plain):
    """In OpenAI's words."""
    answer = plain.get("/batches/batch_x")
    assert fault(answer) == (404, None, None)
    assert answer.json()["error"]["message"] == "No batch found with id 'batch_x'."
    assert fault(plain.post("/batches/batch_x/cancel")) == (404, None, None)
    answer = plain.get("/nothing/here")
    assert fault(answer) == (404, None, None)
    assert answer.json()["error"]["message"] == "Invalid URL (GET /v1/nothing/here)"
    assert fault(plain.put("/batches")) == (405, None, None)
    assert fault(plain.get("/models/gpt-4")) == (404, "model", "model_not_found")
    assert fault(plain.delete("/files/file-x%00%ff")) == (404, "id", None)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nneedle-6 x\r\n\r\n"])
def test_invalid_http_gets_an_error_body(api, sent):
    """With a request id."""
    address = urlsplit(api.url)
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(sent)
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id: req_" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_models(sdk):
    """The configured ones, by any name."""
    assert set(MODELS) <= {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve("Qwen/Qwen3-8B").object == "model"


def test_requests_without_a_valid_key(api):
    """They get nothing but health checks."""
    stranger = openai.OpenAI(base_url=api.url, api_key="sk-wrong-key-0123456789", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as caught:
        stranger.files.list()
    assert caught.value.code == "invalid_api_key"
    assert "wrong-key" not in str(caught.value)
    with httpx.Client(base_url=api.root, timeout=WAIT_SECONDS_MAX) as client:
        for path in ("/v1/files", "/v1/batches", "/v1/models"):
            assert fault(client.get(path)) == (401, None, None)
        assert fault(client.get("/v1/files", headers={"authorization": "Basic x"})) == (401, None, None)
        assert client.get("/livez").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == 200


def test_objects_of_another_project_do_not_exist(api, sdk, plain):
    """They are neither read, nor listed, nor cancelled."""
    batch = new_batch(sdk).model_copy(update={"id": "batch_" + "f" * 32, "metadata": {"of": "other"}})
    publish(api, batch, project="other")
    marker = new_batch(sdk)
    publish(api, marker.model_copy(update={"status": Status.IN_PROGRESS}))
    wait_until(lambda: sdk.batches.retrieve(marker.id).status == "in_progress", "the later record")
    assert fault(plain.get(f"/batches/{batch.id}"))[0] == 404
    assert fault(plain.post(f"/batches/{batch.id}/cancel"))[0] == 404
    assert batch.id not in [found.id for found in sdk.batches.list(limit=100)]
    assert fault(plain.get("/batches", params={"after": batch.id}))[0] == 400


def test_an_empty_body_of_type_json_is_accepted(sdk, plain):
    """The Python SDK sends it with cancel and delete."""
    kind = {"content-type": "application/json", "content-length": "0"}
    assert plain.post(f"/batches/{new_batch(sdk).id}/cancel", headers=kind).json()["status"] == "cancelling"


def test_the_process_log_has_no_text_of_users(api, plain):
    """Of any request."""
    for path in ("/files/needle-1", "/needle-2", "/batches?after=needle-3"):
        plain.get(path, headers={"authorization": "Bearer needle-4"})
    plain.post("/batches", content=json.dumps({"needle-5": "x"}).encode())
    plain.post(
        "/files", content=b"--b\r\nne\x00edle-6: x", headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert "needle" not in api.log
    assert KEY not in api.log


def test_a_model_that_a_server_lists_is_admitted(plain):
    """By the pattern of its settings, within seconds; clients see it."""
    with Backend() as server:
        server.lists = ("lora-of-this-test", "base")
        body = {"settings": {"url": server.url, "models": ["lora-of-*"]}}
        wait_until(lambda: plain.put("/admin/servers/listing", json=body).status_code == 200)
        try:
            found = "/admin/models/lora-of-this-test"
            wait_until(lambda: plain.get(found).status_code == 200, what="the model")
            model = plain.get(found).json()
            assert (model["author"], model["settings"]) == ("discovery", {"servers": ["listing"]})
            assert "lora-of-this-test" in [one["id"] for one in plain.get("/models").json()["data"]]
        finally:
            plain.delete("/admin/models/lora-of-this-test")
            plain.delete("/admin/servers/listing")

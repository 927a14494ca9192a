"""Uploads in parts on a real broker and two api processes: with the SDK and plain HTTP."""

import asyncio
import hashlib
import os

import openai
import pytest
from support.api import KEY, Api
from support.waiting import wait_until

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_topics

pytestmark = pytest.mark.kafka

ASSEMBLED_BYTES_MAX = 4 << 20
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'
CONTENT = LINE * 3000


@pytest.fixture(scope="module")
def apis(kafka, tmp_path_factory):
    """Two api processes of one installation."""
    asyncio.run(ensure_topics(Settings(), kafka))
    folder = tmp_path_factory.mktemp("uploads")
    with (
        Api(folder, kafka, assembled_bytes_max=ASSEMBLED_BYTES_MAX) as one,
        Api(folder, kafka, assembled_bytes_max=ASSEMBLED_BYTES_MAX) as other,
    ):
        yield one, other


@pytest.fixture(scope="module")
def api(apis):
    """The first of them."""
    return apis[0]


@pytest.fixture
def clients(apis):
    """The official client, once for each process."""
    with (
        openai.OpenAI(base_url=apis[0].url, api_key=KEY, max_retries=0) as one,
        openai.OpenAI(base_url=apis[1].url, api_key=KEY, max_retries=0) as other,
    ):
        yield one, other


@pytest.fixture
def sdk(clients):
    """The client of the first process."""
    return clients[0]


def begun(sdk: openai.OpenAI, size: int = len(CONTENT), purpose: str = "batch", **fields: object):
    """A new upload."""
    return sdk.uploads.create(
        filename="in.jsonl", purpose=purpose, bytes=size, mime_type="application/jsonl", **fields
    )


def parts_stored(api: Api, upload_id: str) -> int:
    """How many parts of an upload the store has."""
    return len(list((api.data / "store" / "uploads" / upload_id).glob("part_*")))


def refused(call, *args, **options) -> openai.BadRequestError:
    """The error that a call is answered with."""
    with pytest.raises(openai.BadRequestError) as caught:
        call(*args, **options)
    return caught.value


def test_the_sdk_uploads_a_file_in_parts(sdk, tmp_path):
    """From a path and from memory; the result is an ordinary file."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(CONTENT)
    md5 = hashlib.md5(CONTENT).hexdigest()
    upload = sdk.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="batch", part_size=100_000, md5=md5
    )
    assert (upload.status, upload.file.bytes, upload.file.filename) == ("completed", len(CONTENT), "in.jsonl")
    assert upload.expires_at - upload.created_at == 3600
    assert upload.file.expires_at - upload.file.created_at == 30 * 86_400
    assert sdk.files.content(upload.file.id).read() == CONTENT
    assert sdk.files.retrieve(upload.file.id) == upload.file
    other = sdk.uploads.upload_file_chunked(
        file=b"anything", filename="x", bytes=8, mime_type="text/plain", purpose="user_data"
    )
    assert other.file.expires_at is None


def test_parts_in_any_order_through_any_process(clients):
    """Begun, filled and completed through different ones; a repetition returns the same file."""
    one, other = clients
    upload = begun(one, expires_after={"anchor": "created_at", "seconds": 3600})
    last = other.uploads.parts.create(upload.id, data=CONTENT[1000:])
    first = one.uploads.parts.create(upload.id, data=CONTENT[:1000])
    assert (first.upload_id, first.object) == (upload.id, "upload.part")
    done = other.uploads.complete(upload.id, part_ids=[first.id, last.id])
    assert other.files.content(done.file.id).read() == CONTENT
    assert done.file.expires_at - done.file.created_at == 3600
    assert other.uploads.complete(upload.id, part_ids=[first.id, last.id]) == done
    again = wait_until(lambda: one.uploads.complete(upload.id, part_ids=[first.id, last.id]))
    assert again.file.id == done.file.id
    assert "not pending" in refused(other.uploads.complete, upload.id, part_ids=[last.id, first.id]).message
    assert "'completed'" in refused(other.uploads.parts.create, upload.id, data=b"x").message
    assert "'completed'" in refused(other.uploads.cancel, upload.id).message
    assert [file.id for file in other.files.list()].count(done.file.id) == 1


def test_an_upload_must_be_as_declared(sdk):
    """Its size, hash, parts and content; after each error it is still open."""
    upload = begun(sdk)
    part = sdk.uploads.parts.create(upload.id, data=CONTENT)
    extra = sdk.uploads.parts.create(upload.id, data=b"x")
    assert refused(sdk.uploads.complete, upload.id, part_ids=[part.id, extra.id]).param == "part_ids"
    assert refused(sdk.uploads.complete, upload.id, part_ids=[part.id], md5="0" * 32).param == "md5"
    assert refused(sdk.uploads.complete, upload.id, part_ids=[part.id], md5="0").param == "md5"
    assert refused(sdk.uploads.complete, upload.id, part_ids=[part.id, "part_none"]).param == "part_ids"
    assert refused(sdk.uploads.complete, upload.id, part_ids=[part.id, part.id]).param == "part_ids"
    assert refused(sdk.uploads.complete, upload.id, part_ids=[]).param == "part_ids"
    assert sdk.uploads.complete(upload.id, part_ids=[part.id]).status == "completed"
    wrong = begun(sdk, size=4)
    part = sdk.uploads.parts.create(wrong.id, data=b"nope")
    assert "Must be .jsonl" in refused(sdk.uploads.complete, wrong.id, part_ids=[part.id]).message
    error = refused(begun, sdk, size=ASSEMBLED_BYTES_MAX + 1)
    assert (error.param, error.code) == ("bytes", "integer_above_max_value")
    with pytest.raises(openai.NotFoundError):
        sdk.uploads.parts.create("upload_none", data=b"x")


def test_a_cancelled_upload_leaves_nothing(api, sdk):
    """Its parts are deleted, it takes no more, and a second cancel gets the same answer."""
    upload = begun(sdk, size=5)
    part = sdk.uploads.parts.create(upload.id, data=b"12345")
    assert parts_stored(api, upload.id) == 1
    cancelled = sdk.uploads.cancel(upload.id)
    assert cancelled.status == "cancelled"
    assert sdk.uploads.cancel(upload.id) == cancelled
    assert "'cancelled'" in refused(sdk.uploads.parts.create, upload.id, data=b"x").message
    assert "'cancelled'" in refused(sdk.uploads.complete, upload.id, part_ids=[part.id]).message
    # A sweep comes with each start.
    api.stop()
    api.start()
    wait_until(lambda: parts_stored(api, upload.id) == 0, "the parts to go")


def test_an_upload_survives_a_restart(api, sdk):
    """It can be completed afterwards."""
    upload = begun(sdk)
    first = sdk.uploads.parts.create(upload.id, data=CONTENT[:7])
    api.stop()
    api.start()
    last = sdk.uploads.parts.create(upload.id, data=CONTENT[7:])
    assert sdk.uploads.complete(upload.id, part_ids=[first.id, last.id]).file.bytes == len(CONTENT)


def test_a_too_large_part_is_read_to_its_end(api):
    """The client, which sends without a length, gets a 413 and not a broken connection."""
    with api.client() as plain:
        begin = {"filename": "x", "purpose": "user_data", "bytes": 9, "mime_type": "text/plain"}
        upload_id = plain.post("/uploads", json=begin).json()["id"]
        block = os.urandom(1 << 20)

        def body():
            yield b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
            for _ in range(65):
                yield block
            yield b"\r\n--b--\r\n"

        kind = {"content-type": "multipart/form-data; boundary=b"}
        answer = plain.post(f"/uploads/{upload_id}/parts", content=body(), headers=kind)
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "data")
    assert parts_stored(api, upload_id) == 0

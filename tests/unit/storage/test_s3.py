"""What the answers of an S3 server mean, and uploads whose answers are lost, without a server."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from botocore.exceptions import ClientError

from tidemill.schemas.ports import NotFound, once
from tidemill.storage import s3
from tidemill.storage.buckets import SHA256, BucketStore
from tidemill.storage.s3 import PART_BYTES, S3Store
from tidemill.storage.s3_errors import NoUpload, RangeError, Refused, Unavailable, failures

NOW = datetime.now(UTC).replace(microsecond=0)
DATE = NOW.strftime("%a, %d %b %Y %H:%M:%S GMT")
BUSY_ANSWERS = 6


def refusal(code: str, status: int) -> ClientError:
    """An error of the client library."""
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Any")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("NoSuchKey", 404, NotFound),
        ("404", 404, NotFound),
        ("InvalidRange", 416, RangeError),
        ("NoSuchUpload", 404, NoUpload),
        ("RequestTimeout", 400, Unavailable),
        ("RequestTimeTooSkewed", 403, Unavailable),
        ("408", 408, Unavailable),
        ("OperationAborted", 409, Unavailable),
        ("ConditionalRequestConflict", 409, Unavailable),
        ("TooManyRequests", 429, Unavailable),
        ("SlowDown", 429, Unavailable),
        ("429", 429, Unavailable),
        ("", 429, Unavailable),
        ("SlowDown", 503, Unavailable),
        ("InternalError", 500, Unavailable),
        ("AccessDenied", 403, Refused),
        ("403", 403, Refused),
        ("SignatureDoesNotMatch", 403, Refused),
        ("NoSuchBucket", 404, Refused),
        ("InvalidRequest", 400, Refused),
        ("BucketAlreadyExists", 409, Refused),
        ("PreconditionFailed", 412, Refused),
        ("NotImplemented", 501, Refused),
    ],
)
def test_a_refusal_that_passes_is_no_refusal(code: str, status: int, kind: type[Exception]) -> None:
    """Callers give up soon on what a server refuses, and wait for one that is busy."""
    with pytest.raises(kind) as caught, failures("key"):
        raise refusal(code, status)
    assert isinstance(caught.value, Refused) == (kind is Refused)


async def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers 429 some times, then with the object."""
    calls = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls <= BUSY_ANSWERS:
            return web.Response(status=429, text="<Error><Code>TooManyRequests</Code></Error>")
        return web.Response(body=b"content", headers={"etag": '"e"'})

    monkeypatch.setattr(s3, "ATTEMPTS_MAX", 1)
    app = web.Application()
    app.router.add_get("/b/key", answer)
    async with TestServer(app) as server:
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
        store = S3Store(bucket="b", prefix="", connection={"endpoint_url": str(server.make_url("")), **keys})
        for _ in range(BUSY_ANSWERS):
            with pytest.raises(Unavailable, match="TooManyRequests"):
                await anext(store.read("key"))
        assert b"".join([chunk async for chunk in store.read("key")]) == b"content"
        await store.close()


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")])
async def test_a_server_without_conditional_writes_takes_a_plain_one(status: int, code: str) -> None:
    """There the last of several calls at the same moment counts."""
    written: list[bytes] = []

    async def answer(request: web.Request) -> web.Response:
        if "if-none-match" in request.headers:
            return web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>")
        written.append(await request.read())
        return web.Response(headers={"etag": '"e"'})

    app = web.Application()
    app.router.add_put("/b/key", answer)
    async with TestServer(app) as server:
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
        store = S3Store(bucket="b", prefix="", connection={"endpoint_url": str(server.make_url("")), **keys})
        assert await store.create("key", b"content")
        assert written == [b"content"]
        await store.close()


class Server:
    """A client of a server that completes an upload, and loses the answer."""

    def __init__(self, **found: Any) -> None:
        self.found = found
        self.aborted: list[str] = []
        self.pages: list[dict[str, Any]] = [{}]

    async def create_multipart_upload(self, **_: Any) -> dict[str, Any]:
        """Begin an upload."""
        return {"UploadId": "new", "ResponseMetadata": {"HTTPHeaders": {"date": DATE}}}

    async def upload_part(self, **_: Any) -> dict[str, Any]:
        """Take a part."""
        return {"ETag": '"part"'}

    async def complete_multipart_upload(self, **_: Any) -> dict[str, Any]:
        """Answer as to a request that came before."""
        raise refusal("NoSuchUpload", 404)

    async def head_object(self, **_: Any) -> dict[str, Any]:
        """The object that is there."""
        if not self.found:
            raise refusal("404", 404)
        return self.found

    async def put_object(self, **_: Any) -> None:
        """Take a short object."""

    async def abort_multipart_upload(self, *, UploadId: str, **_: Any) -> None:  # noqa: N803 - the library's name
        """Abort an upload, which another process may have aborted."""
        self.aborted.append(UploadId)
        raise refusal("NoSuchUpload", 404)

    def get_paginator(self, name: str) -> "Server":
        """The pages of the uploads."""
        assert name == "list_multipart_uploads"
        return self

    async def paginate(self, **_: Any) -> Any:
        """Each page."""
        for page in self.pages:
            yield page


SIZE = PART_BYTES + 5
WHOLE = {"LastModified": NOW, "ContentLength": SIZE, "Metadata": {SHA256: "digest"}}


def bucket(server: Server) -> BucketStore:
    """A bucket at this server."""
    store = BucketStore(bucket="b", prefix="")
    store._client = server
    return store


async def test_an_upload_is_complete_whose_answer_is_lost() -> None:
    """The client's second request finds no upload; the object is there."""
    server = Server(**WHOLE)
    await bucket(server).put("key", once(bytes(SIZE)), "digest")
    assert server.aborted == []


@pytest.mark.parametrize(
    "other",
    [
        None,
        {"LastModified": NOW - timedelta(seconds=1)},
        {"ContentLength": SIZE - 1},
        {"Metadata": {SHA256: "another"}},
    ],
)
async def test_another_object_is_none_of_the_upload(other: dict[str, Any] | None) -> None:
    """One that was there before, or that another process wrote."""
    server = Server() if other is None else Server(**WHOLE | other)
    with pytest.raises(NoUpload):
        await bucket(server).put("key", once(bytes(SIZE)), "digest")


async def test_uploads_of_the_same_object_are_aborted() -> None:
    """Those on later pages, too, and none of an object with a longer key."""
    server = Server()
    server.pages = [
        {"Uploads": [{"Key": "key", "UploadId": "first"}, {"Key": "key.other", "UploadId": "longer"}]},
        {"Uploads": [{"Key": "key", "UploadId": "second"}]},
    ]
    await bucket(server).put("key", once(b"short"), "digest")
    assert server.aborted == ["first", "second"]

"""A stand-in of the batch service, for tests of the client alone: real HTTP, and its replies are set by hand."""

import hashlib
import itertools
from collections.abc import Callable
from typing import Any, Self

import orjson
from aiohttp import web

KEY = "sk-client-test"
REJECTED = {"object": "list", "data": [{"code": "invalid_file", "message": "It is too large.", "line": None}]}

Answer = Callable[[dict[str, Any]], str]


def receipt_of(content: bytes | None) -> dict[str, Any] | None:
    """The entry of a file in a receipt."""
    if content is None:
        return None
    digest = hashlib.sha256(content).hexdigest()
    return {"lines": content.count(b"\n"), "bytes": len(content), "sha256": digest}


class Service:
    """One batch service with one batch; an asynchronous context manager.

    Attributes:
        files: Contents by file id; the upload is `file-in`.
        states: Changes of the batch from one read to the next; the last one stays.
        breaks: Number of downloads that still break off, each after `break_bytes`.
        down: Number of reads still to answer with `down_status`, `down_headers` and `down_body`.
        lost: Number of batches still to create or delete without an answer.
        is_closing: Whether it rejects every request for a batch after a lost answer.
        full: Number of creates still to refuse for lack of quota.
        refusal: Status and message of the answer to each upload; None accepts it.
        uploads: Number of uploads.
        damaged: Ids of files whose stored bytes are damaged.
        limits: The answer to `GET /limits`; None where the service has no such route.
        cut_uploads: Number of uploads that still break off without an answer.
        is_deleted: Whether the batch of every idempotency key is deleted.
        keys: The idempotency keys of requests.
        tokens: Number of producers' tokens created.
        report: The errors by code; None if the service has no such route.
        ids: The ids in the list of batches.
        rows: Fields that all of them share.
        listed: Fields of each by its id; they win.
        asked: The query of the last list.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.states: list[dict[str, Any]] = [{"status": "completed"}]
        self.breaks = 0
        self.break_bytes = 100
        self.down = 0
        self.down_status = 503
        self.down_body = "{}"
        self.down_headers: dict[str, str] = {}
        self.lost = 0
        self.is_closing = False
        self.is_deleted = False
        self.full = 0
        self.refusal: tuple[int, str] | None = None
        self.uploads = 0
        self.damaged: set[str] = set()
        self.limits: Any = None
        self.cut_uploads = 0
        self.keys: set[str] = set()
        self.ranges = True
        self.created: list[dict[str, Any]] = []
        self.looks = 0
        self.cancels = 0
        self.tokens = 0
        self.report: dict[str, Any] | None = None
        self.ids = [f"batch_{number}" for number in range(7)]
        self.asked: dict[str, str] = {}
        self.rows: dict[str, Any] = {}
        self.listed: dict[str, dict[str, Any]] = {}
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_get("/v1/limits", self._limits)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{id}", self._batch)
        app.router.add_delete("/v1/batches/{id}", self._delete)
        app.router.add_get("/v1/batches/{id}/errors", self._errors)
        app.router.add_post("/v1/batches/{id}/rerun", self._create)
        app.router.add_post("/v1/batches/{id}/cancel", self._cancel)
        app.router.add_post("/v1/intake/tokens", self._token)
        app.router.add_get("/v1/queues", self._queues)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def finish(self, output: bytes | None, errors: bytes | None = None, **fields: Any) -> None:
        """End the batch with these files and their receipt."""
        if output is not None:
            self.files["file-out"] = output
        if errors is not None:
            self.files["file-err"] = errors
        receipts = {"output": receipt_of(output), "errors": receipt_of(errors)}
        lines = sum(file["lines"] for file in receipts.values() if file)
        receipt = {"lines": lines, **receipts, "missing": 0, "double": 0}
        self.states = [
            {
                "status": "completed",
                "output_file_id": None if output is None else "file-out",
                "error_file_id": None if errors is None else "file-err",
                "tidemill": {"receipt": receipt},
                **fields,
            }
        ]

    def batch(self, **fields: Any) -> dict[str, Any]:
        """The batch as the service shows it."""
        shape = {"id": "batch_1", "object": "batch", "endpoint": "/v1/embeddings", "input_file_id": "file-in"}
        return {**shape, "completion_window": "24h", "created_at": 1, "expires_at": 86_401, **fields}

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        assert form["purpose"] == "batch"
        assert isinstance(file, web.FileField)
        self.uploads += 1
        if self.refusal is not None:
            status, message = self.refusal
            headers = {"x-should-retry": "false"} if status == 429 else {"retry-after": "60"}
            error = {"message": message, "type": "server_error", "code": "storage_full"}
            return web.json_response({"error": error}, status=status, headers=headers)
        self.files["file-in"] = file.file.read()
        if self.cut_uploads and request.transport:
            self.cut_uploads -= 1
            request.transport.abort()
        return web.json_response({"id": "file-in", "object": "file", "filename": file.filename})

    async def _limits(self, request: web.Request) -> web.Response:
        del request
        return web.json_response(self.limits, status=404 if self.limits is None else 200)

    async def _create(self, request: web.Request) -> web.Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            error = {"message": "Incorrect API key provided.", "type": "invalid_request_error"}
            return web.json_response({"error": error}, status=401)
        if self.is_deleted:
            error = {"message": "It is deleted.", "type": "invalid_request_error", "code": "batch_deleted"}
            return web.json_response({"error": error}, status=409)
        if self.full:
            self.full -= 1
            error = {"message": "The project has 9 batches.", "type": "insufficient_quota"}
            return web.json_response({"error": error}, status=429)
        self.created.append(await request.json())
        self.keys.add(request.headers["idempotency-key"])
        if self.lost and request.transport:
            self.lost -= 1
            self.is_deleted = self.is_closing
            request.transport.abort()
        return web.json_response(self.batch(status="validating"))

    async def _batch(self, request: web.Request) -> web.Response:
        del request
        if self.down:
            self.down -= 1
            return web.Response(text=self.down_body, status=self.down_status, headers=self.down_headers)
        self.looks += 1
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return web.json_response(self.batch(**state))

    async def _delete(self, request: web.Request) -> web.Response:
        """Every batch that was created has the one input; a deleted one leaves the list."""
        self.ids = [name for name in self.ids if name != request.match_info["id"]]
        answer = {"id": request.match_info["id"], "object": "batch", "deleted": True}
        if request.query.get("input") == "true":
            is_shared, was_there = len(self.created) > 1, "file-in" in self.files
            answer["input_file"] = "shared" if is_shared else "deleted" if was_there else "gone"
            if not is_shared:
                self.files.pop("file-in", None)
        if self.lost and request.transport:
            self.lost -= 1
            request.transport.abort()
        return web.json_response(answer)

    async def _errors(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({} if self.report is None else self.report, status=200 if self.report else 404)

    async def _list(self, request: web.Request) -> web.Response:
        self.asked = dict(request.query)
        limit = int(request.query["limit"])
        after = request.query.get("after")
        ids = self.ids[self.ids.index(after) + 1 :] if after else self.ids
        page = list(itertools.islice(ids, limit))
        common = self.batch(status="completed") | self.rows
        data = [common | self.listed.get(name, {}) | {"id": name} for name in page]
        last = {"last_id": page[-1]} if page else {}
        return web.json_response({"object": "list", "data": data, "has_more": len(page) < len(ids)} | last)

    async def _queues(self, request: web.Request) -> web.Response:
        del request
        row = {"stage": "processors", "status": "in_progress", "model": "embedder", "batches": 2, "lines": 17_000}
        data = [row | {"oldest_at": 1, "lines_per_second": 41.0, "lag_seconds": 414.6}]
        rates = {"lines_per_second_in": 160.2, "lines_per_second_out": 41.3}
        return web.json_response({"object": "queues", **rates, "data": data})

    async def _cancel(self, request: web.Request) -> web.Response:
        del request
        self.cancels += 1
        return web.json_response(self.batch(status="cancelling"))

    async def _token(self, request: web.Request) -> web.Response:
        assert await request.json() == {"stream": "crawl"}
        if self.down:
            self.down -= 1
            return web.json_response({}, status=self.down_status, headers=self.down_headers)
        self.tokens += 1
        return web.json_response({"token": f"token-{self.tokens}", "created_at": 5_000, "expires_at": 5_100})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["id"] in self.damaged:
            error = {"message": "The stored file is damaged.", "type": "server_error", "code": "file_damaged"}
            return web.json_response({"error": error}, status=500, headers={"x-should-retry": "false"})
        content = self.files[request.match_info["id"]]
        start = 0
        if self.ranges and (wanted := request.headers.get("range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(content) - start
        await response.prepare(request)
        if self.breaks:
            self.breaks -= 1
            await response.write(content[start : start + self.break_bytes])
            assert request.transport
            # Close instead of aborting: the written bytes still arrive, and then the stream ends too soon.
            request.transport.close()
            return response
        await response.write(content[start:])
        return response


class Batches(Service):
    """A service that answers the lines of each batch by a rule, and rejects those that `rejects` names."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Answer = str
        self.inputs: list[list[dict[str, Any]]] = []
        self.rejects: set[int] = set()
        self.is_held = False
        """Whether no batch ends."""
        self.drops: set[str] = set()
        """Ids of lines that get no result."""

    async def _create(self, request: web.Request) -> web.Response:
        lines = self.files["file-in"].splitlines()
        if (answer := await super()._create(request)).status >= 400:
            return answer
        self.inputs.append([orjson.loads(line) for line in lines])
        return web.json_response(self.batch(status="validating", id=f"batch_{len(self.inputs) - 1}"))

    async def _batch(self, request: web.Request) -> web.Response:
        if self.down:
            return await super()._batch(request)
        number = int(request.match_info["id"].removeprefix("batch_"))
        if number in self.rejects:
            return web.json_response(self.batch(id=f"batch_{number}", status="failed", errors=REJECTED))
        if self.is_held:
            return web.json_response(self.batch(id=f"batch_{number}", status="in_progress"))
        output = b"".join(
            self._result(line) for line in self.inputs[number] if line["custom_id"] not in self.drops
        )
        self.files[f"out-{number}"] = output
        receipt = {"lines": len(self.inputs[number]), "output": receipt_of(output), "errors": None}
        count = len(self.inputs[number])
        return web.json_response(
            self.batch(
                id=f"batch_{number}",
                status="completed",
                output_file_id=f"out-{number}",
                request_counts={"total": count, "completed": count, "failed": 0},
                usage={"input_tokens": 9 * count, "output_tokens": count, "total_tokens": 10 * count},
                tidemill={"receipt": {**receipt, "missing": 0, "double": 0}},
            )
        )

    def _result(self, line: dict[str, Any]) -> bytes:
        reply = {"choices": [{"message": {"content": self.answer(line)}}], "usage": {"prompt_tokens": 9}}
        extras = {"attempts": 1, "input_tokens": 9, "output_tokens": 0}
        response = {"status_code": 200, "request_id": "r", "body": reply}
        found = {
            "id": "r",
            "custom_id": line["custom_id"],
            "response": response,
            "error": None,
            "tidemill": extras,
        }
        return orjson.dumps(found) + b"\n"


def request_lines(count: int) -> bytes:
    """An input of `count` embedding requests."""
    lines = (
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}
        for n in range(count)
    )
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


def result_lines(*ids: str) -> bytes:
    """An output of one line for each id."""
    return b"".join(
        orjson.dumps({"id": f"batch_req_{name}", "custom_id": name, "response": {}, "error": None}) + b"\n"
        for name in ids
    )

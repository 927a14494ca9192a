"""Every free field of every route at its bound, above it, and with a million: accepted or refused as OpenAI does.

The requests are generated from the OpenAPI document (`support/corpus.py`), so they cover new fields.
"""

from pathlib import Path
from typing import Annotated

import httpx
import pytest
import pytest_asyncio
from fastapi import APIRouter, Depends
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from starlette.routing import Mount
from support import corpus
from support.corpus import LINE, MILLION, UNNAMED, check
from support.dependencies import ADMIN, NOW, batch_of, open_dependencies
from support.faults import long

from tidemill import api
from tidemill.api import errors
from tidemill.api.app import create_app
from tidemill.api.dependencies import Authentication, JsonBody, current, current_settings, current_view
from tidemill.api.openapi import Route, describe
from tidemill.api.requests.paging import PAGE_BYTES_MAX
from tidemill.api.requests.parts import Part, PathId, Query
from tidemill.api.requests.reading import Body, Parameters
from tidemill.api.routes.admin import servers
from tidemill.configuration.settings import Settings
from tidemill.schemas.bounds import FILENAME_CHARS_MAX, NUMBER_MAX, RECORD_BYTES_EXTRA, RECORD_BYTES_MAX
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import RequestCounts, Status

BATCH = "batch_" + "0" * 32
MODELS = {"m": {"backends": [{"url": "http://127.0.0.1:9/v1"}]}}
SETTINGS = Settings(models=MODELS, assembled_bytes_max=NUMBER_MAX)
HOOK = {"name": "n", "url": "https://example.com/", "event_types": ["batch.failed"]}
in_one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deps(tmp_path_factory):
    """Dependencies on a folder, with one model."""
    async with open_dependencies(tmp_path_factory.mktemp("corpus"), settings=SETTINGS) as deps:
        yield deps


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(deps):
    """A client that may do everything."""
    transport = httpx.ASGITransport(create_app(deps), raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {ADMIN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def known(deps, client):
    """Ids of existing objects, by the names of fields."""
    file = (await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("f", LINE)})).json()
    upload = {"filename": "f", "purpose": "batch", "bytes": 1, "mime_type": "text/plain"}
    batch = batch_of(
        BATCH, input_file_id=file["id"], status=Status.COMPLETED, completed_at=NOW, model="m",
        request_counts=RequestCounts(total=1, completed=1),
    )  # fmt: skip
    deps.view.put_batch(BatchRecord(project="default", batch=batch))
    await client.post("/v1/webhook_endpoints/callback/rotate_secret")
    return {
        "input_file_id": file["id"],
        "file_id": file["id"],
        "batch_id": BATCH,
        "batch": BATCH,
        "rerun_of": BATCH,
        "upload_id": (await client.post("/v1/uploads", json=upload)).json()["id"],
        "key_id": (await client.post("/v1/admin/keys", json={"name": "k"})).json()["id"],
        "endpoint_path": "embeddings",
        "endpoint_id": (await client.post("/v1/webhook_endpoints", json=HOOK)).json()["id"],
        "url": HOOK["url"],
        "output_uri": None,
        "output_format": None,
        "callback_url": HOOK["url"] + "y" * 2_000,
        "model": "m",
        "from": "0",
        "with": BATCH,
        "completion_window": "24h",
    }


@pytest.fixture(scope="module")
def description(deps):
    """The OpenAPI document."""
    return describe(create_app(deps))


async def asked(client, description, known, field, value, *, largest=False):
    """The answer to a request with one field changed."""
    method, path, options = corpus.build(description, known, field, value, largest=largest)
    return await client.request(method, path, **options)


@in_one_loop
async def test_every_field_is_bounded(description):
    """By its schema: a new field without a bound fails here."""
    assert corpus.unbounded(description) == []
    found = list(corpus.fields(description))
    assert len(found) >= 90
    assert {field.where for field in found} == {"path", "query", "header", "json", "form"}


@in_one_loop
async def test_a_field_without_a_bound_is_found(deps):
    """Of each kind, and at any depth."""

    class Inner(BaseModel):
        free: str
        count: int
        names: list[str]
        pairs: dict[str, str]

    class New(Body):
        inner: Inner | None = None

    app = create_app(deps)
    router = APIRouter(prefix="/v1/new", route_class=Route)

    class Search(Parameters):
        search: str | None = None

    new_id = PathId("new_id", errors.no_batch)

    @router.post("/{new_id}")
    async def new(
        new_id: Annotated[str, Depends(new_id)],
        query: Annotated[Search, Depends(Query(Search))],
        body: Annotated[New, Depends(JsonBody(New))],
    ) -> None:
        """Do something new."""

    app.include_router(router)
    found = {each.removeprefix("POST /v1/new/{new_id} ") for each in corpus.unbounded(describe(app))}
    assert found == {
        "path new_id", "query search", "json inner.free", "json inner.count", "json inner.names",
        "json inner.names[0]", "json inner.pairs", "json inner.pairs.k",
    }  # fmt: skip


@in_one_loop
async def test_every_field_at_its_bound_and_above(deps, client, description, known):
    """Each alone, in an otherwise valid request; no record exceeds the log's bound."""
    count = 0
    for field in corpus.fields(description):
        for cell in corpus.cells(field):
            # A cell may revoke or delete an object of the next one.
            fresh = known
            if field.operation.startswith("DELETE /v1/files"):
                form = {"data": {"purpose": "batch"}, "files": {"file": ("f", LINE)}}
                fresh = known | {"file_id": (await client.post("/v1/files", **form)).json()["id"]}
            if field.operation.startswith("DELETE /v1/webhook_endpoints"):
                fresh = known | {
                    "endpoint_id": (await client.post("/v1/webhook_endpoints", json=HOOK)).json()["id"]
                }
            answer = await asked(client, description, fresh, field, cell.value)
            check(answer, cell)
            count += 1
    assert count >= 250
    assert records_fit(deps)


@in_one_loop
async def test_all_fields_at_their_bounds_together(deps, client, description, known):
    """In characters that take the most room in JSON: each accepted request fits into its records."""
    bodies = {field.operation: field for field in corpus.fields(description) if field.where == "json"}
    taken = []
    for operation, field in bodies.items():
        method, path = operation.lower().split(maxsplit=1)
        schema = description["paths"][path][method]["requestBody"]["content"]["application/json"]
        value = corpus.most(schema["schema"], known)[field.place[0]]
        whole = corpus.Field(operation=operation, where="json", place=field.place[:1], schema={})
        answer = await asked(client, description, known, whole, value, largest=True)
        assert answer.status_code < 500, (operation, answer.text)
        taken += [operation] if answer.status_code == 200 else []
    assert {"POST /v1/batches", "POST /v1/admin/keys"} <= set(taken)
    assert max(len(value or b"") for _, _, value in deps.log.records) > 50_000
    assert records_fit(deps)


def records_fit(deps) -> bool:
    """Whether each record fits into the log."""
    return all(len(value or b"") <= RECORD_BYTES_MAX - RECORD_BYTES_EXTRA for _, _, value in deps.log.records)


@in_one_loop
async def test_a_too_large_record_is_refused(deps, client, known):
    """If a field ever had too wide a bound, nothing is created, and the next request works."""
    batch = {"input_file_id": known["input_file_id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    large = batch | {"metadata": {"k": "v" * 500}}
    before = len(deps.log.records)
    deps.log.record_bytes_max = RECORD_BYTES_EXTRA + 1_000
    try:
        answer = await client.post("/v1/batches", json=large)
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "invalid_request_error")
        assert len(deps.log.records) == before
    finally:
        deps.log.record_bytes_max = RECORD_BYTES_MAX
    assert (await client.post("/v1/batches", json=large)).status_code == 200


LONG = long("file", FILENAME_CHARS_MAX, FILENAME_CHARS_MAX + 1)[3]


@in_one_loop
@pytest.mark.parametrize(
    ("filename", "status", "code", "message"),
    [
        ("f" * FILENAME_CHARS_MAX, 200, None, None),
        ("f" * (FILENAME_CHARS_MAX + 1), 400, "string_above_max_length", LONG),
        ("f" * MILLION, 400, None, f"{UNNAMED[0]}the multipart body is malformed."),
    ],
    ids=["bound", "above", "a million"],
)
async def test_bounds_of_filenames(client, *, filename, status, code, message):
    """They are in the head of a part, which has its own bound."""
    answer = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": (filename, LINE)})
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["filename"] == filename
    else:
        assert (answer.json()["error"]["code"], answer.json()["error"]["message"]) == (code, message)


@in_one_loop
async def test_unknown_fields_and_parameters(deps, client, known):
    """They are ignored without effect, or refused."""
    huge = "x" * 900_000
    batch = {"input_file_id": known["input_file_id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    before = len(deps.log.records)
    for extra in ({huge: 1}, {"other": huge}, {"other": [[[huge]]]}, {"other": {huge: huge[:10]}}):
        assert (await client.post("/v1/batches", json=batch | extra)).status_code == 200
    long = huge[: corpus.LINE_CHARS // 2]
    assert (await client.get("/v1/batches", params={long: long})).status_code == 200
    assert (await client.get("/v1/batches", params={f"status[{long}]": "x"})).status_code == 400
    for name in ("x-request-id", "user-agent", "x-stainless-retry-count", "openai-project", "authorization"):
        answer = await client.get("/v1/batches", headers={name: huge})
        assert answer.status_code == (401 if name == "authorization" else 200)
        assert len(str(answer.headers)) + len(answer.content) < PAGE_BYTES_MAX
        assert huge[:1000] not in answer.text + str(answer.headers)
    for length in ("9" * 5000, "-1", "x"):
        headers = {"content-length": length, "content-type": "multipart/form-data; boundary=b"}
        answer = await client.post("/v1/files", content=b"--b--", headers=headers)
        assert answer.status_code in {400, 413}
    for form in ({huge: "x"}, {"other": huge}, {f"f{n}": "x" for n in range(1000)}):
        answer = await client.post("/v1/files", data={"purpose": "batch"} | form, files={"file": ("f", LINE)})
        assert answer.status_code == 400
    for path in (f"/v1/{long}", f"/{long}", f"/v1/batches/{BATCH}/{long}", f"/dashboard/{long}"):
        answer = await client.get(path)
        assert (answer.status_code, len(answer.content) < 1000) == (404, True)
    assert all(b"xxxx" not in (value or b"") for _, _, value in deps.log.records[before:])


RAW = {
    "query_params": {"requests/parts.py"},
    # The log names the batch of a request.
    "path_params": {"middleware.py", "requests/parts.py"},
    # Beside the models: the caller, and the framing of the body, which no route describes.
    ".headers.get(": {"access/sessions.py", "dependencies.py", "uploads/form_reader.py"},
    ".stream()": {"dependencies.py", "uploads/form_reader.py"},
    ".json()": set(),
    ".body()": set(),
    "request.form(": set(),
    ".cookies": {"access/sessions.py"},
    "orjson.loads": {
        "access/provider.py",
        "batches/comparison.py",
        "batches/result_search.py",
        "batches/token_estimate.py",
        "requests/inline.py",
        "requests/reading.py",
        "routes/usage.py",
        "view/throughput.py",
    },
}
"""Where the api reads a request, or JSON, without FastAPI."""


def test_requests_are_read_through_models(deps):
    """Every route reads its request through parts, and FastAPI reads none of it, so no field escapes its model."""
    folder = Path(api.__path__[0])
    texts = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.py")}
    for name, modules in RAW.items():
        assert {path for path, text in texts.items() if name in text} == modules, name
    seen = set()
    for context in iter_route_contexts(create_app(deps).routes):
        route = context.original_route
        if not isinstance(route, Route):
            assert isinstance(route, Mount) or not context.include_in_schema
            continue
        found = route.dependant
        assert [*found.path_params, *found.query_params, *found.header_params, *found.body_params] == []
        parts = [each.call for each in found.dependencies if isinstance(each.call, Part)]
        others = {each.call for each in found.dependencies if not isinstance(each.call, Part)}
        assert others <= {current, current_view, current_settings, servers._kind}
        # The api reads more of a request only with a valid key.
        assert all(isinstance(part, Authentication) for part in parts[:1]), context.path
        assert {name for part in parts for name in named(part, "path")} == set(route.param_convertors)
        seen |= {type(part) for part in parts}
    assert {kind.__name__ for kind in seen} == {
        "Authentication", "Query", "Headers", "PathId", "JsonBody", "StoringBody", "FormBody", "RequestsBody",
        "_Headers", "Matching",
    }  # fmt: skip


def named(part, where):
    """The parameters of a kind that a part of a request has."""
    return [found["name"] for found in part.described().get("parameters", ()) if found["in"] == where]

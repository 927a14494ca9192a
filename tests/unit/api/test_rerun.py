"""Reruns: which lines of an ended batch, byte for byte, each once."""

from array import array
from dataclasses import replace

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dependencies import NOW, READER, batch_of, client_of, open_dependencies, with_settings

from tidemill.api.reruns.input_file import rewrite_line
from tidemill.api.reruns.selection import Kind, Selection
from tidemill.configuration.settings import Settings
from tidemill.schemas import ids
from tidemill.schemas.jsonl import line as lines
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchCreated, BatchRecord, FileRecord
from tidemill.schemas.log.part import encode_index, file_key, index_key
from tidemill.schemas.resources.batch import Batch, Extras, FileReceipt, Receipt, Status
from tidemill.schemas.resources.file import File

CHAT = "/v1/chat/completions"
BACKENDS = [{"url": "http://127.0.0.1:9/v1"}]
OLD = "batch_" + "0" * 32
FATES = ["ok", "429", "ok", "context", "expired", "cancelled", "ok", "429"]
"""The outcome of each line of the old batch."""


def request_line(number: int) -> bytes:
    """A line whose text says more than its value: spaces, a long number, an escape."""
    return (
        b'{"custom_id": "r%d", "method": "POST", "url": "%b", '
        b'"body": {"model": "%b", "seed": 12345678901234567890123, "t": 1.0, "messages": [{"text": "\\u00e4"}]}}'
        % (number, CHAT.encode(), b"n" if number % 4 == 3 else b"m")
    )


def error_line(index: int, fate: str) -> bytes:
    """The line of the error file."""
    custom_id = b'"r%d"' % index
    if fate == "refused":
        return lines.unanswered(OLD, index, b"null", code="invalid_json_line", message="no")
    if fate in {"expired", "cancelled"}:
        code, message = lines.EXPIRED if fate == "expired" else lines.CANCELLED
        return lines.unanswered(OLD, index, custom_id, code=code, message=message)
    status, code = (429, "slow_down") if fate == "429" else (400, "context_length_exceeded")
    body = orjson.dumps({"error": {"message": "no", "code": code}})
    return lines.answered(OLD, index, custom_id, status=status, request_id="r", body=body)


async def once(data: bytes):
    """One chunk."""
    yield data


@pytest.fixture
async def deps(tmp_path):
    """Dependencies with the models `m` and `n`, and `e` for embeddings only."""
    models = {name: {"backends": BACKENDS} for name in "mn"}
    models["e"] = {"backends": BACKENDS, "endpoints": ["/v1/embeddings"]}
    async with open_dependencies(tmp_path) as deps:
        yield with_settings(deps, Settings(models=models))


@pytest.fixture
async def old(deps, client):
    """An ended batch with its input and its error file."""
    return await ended(deps, client, FATES)


async def test_a_reader_may_plan_a_rerun(client, old):
    """But not create it."""
    reading = {"authorization": f"Bearer {READER}"}
    plan, refused = [await rerun(client, old, reading, dry_run=dry) for dry in (True, False)]
    assert (plan.status_code, plan.json()["object"]) == (200, "rerun.plan")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")


async def ended(deps, client, fates, **extras):
    """An ended batch with a line of each kind."""
    content = b"\xef\xbb\xbf" + b"\n\n".join(map(request_line, range(len(fates))))
    form = {"data": {"purpose": "batch"}, "files": {"file": ("f", content)}}
    file_id = (await client.post("/files", **form)).json()["id"]
    failed = [(index, error_line(index, fate)) for index, fate in enumerate(fates) if fate != "ok"]
    error_id = ids.derived_file_id(OLD, "errors")
    record = FileRecord(
        project="p", file=File(id=error_id, bytes=1, created_at=NOW, filename="e", purpose="batch_output"),
        key=f"files/{error_id}", sha256="",
    )  # fmt: skip
    await deps.store.write(record.key, once(b"".join(text for _, text in failed)))
    indices, sizes = array("I", [index for index, _ in failed]), array("I", [len(text) for _, text in failed])
    models, usage = (array("I", [0] * columns * len(failed)) for columns in (1, 4))
    columns = encode_index(indices, sizes, models, usage)
    await deps.store.write(index_key(f"files/{error_id}"), once(columns))
    deps.view.put_file(record, 0)
    receipt = Receipt(lines=len(fates), errors=FileReceipt(lines=len(failed), bytes=1, sha256=""))
    extras["name"] = "nightly"
    batch = batch_of(
        OLD, endpoint=CHAT, input_file_id=file_id, status=Status.COMPLETED, error_file_id=error_id,
        metadata={"team": "a"}, tidemill=Extras(receipt=receipt, **extras),
    )  # fmt: skip
    deps.view.put_batch(BatchRecord(project="p", batch=batch))
    return batch


def commands(deps) -> list[BatchCreated]:
    """The commands of creates."""
    return [codec.decode_command(value) for topic, _, value in deps.log.records if topic == topics.COMMANDS.name]


async def rerun(client, old, headers=None, **fields) -> httpx.Response:
    """Request a rerun."""
    return await client.post(f"/batches/{old.id}/rerun", json=fields, headers=headers or {})


async def content(client, batch) -> list[bytes]:
    """The lines of a batch's input."""
    answer = await client.get(f"/files/{batch['input_file_id']}/content")
    assert answer.status_code == 200, answer.text
    return answer.content.splitlines()


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [
        (None, [1, 3, 4, 5, 7]),
        ("unfinished", [1, 3, 4, 5, 7]),
        ("failed", [1, 3, 7]),
        ("expired", [4]),
        ("cancelled", [5]),
        ({"codes": [429]}, [1, 7]),
        ({"codes": ["context_length_exceeded", "batch_expired"]}, [3, 4]),
        ({"codes": ["429", "400", "slow_down"]}, [1, 3, 7]),
    ],
)
async def test_a_rerun_has_the_selected_lines(deps, client, old, wanted, indices):
    """Byte for byte; both batches link to each other."""
    fields = {} if wanted is None else {"lines": wanted}
    plan = (await rerun(client, old, dry_run=True, **fields)).json()
    assert (plan["object"], plan["lines"], plan["is_too_large"]) == ("rerun.plan", len(indices), False)
    assert deps.log.records[2:] == []
    new = (await rerun(client, old, **fields)).json()
    assert await content(client, new) == [request_line(index) for index in indices]
    assert new["tidemill"]["name"] == old.tidemill.name
    (command,) = commands(deps)
    assert (command.batch.id, command.input.key) == (new["id"], file_key(new["input_file_id"]))
    assert (new["status"], new["endpoint"], new["completion_window"]) == ("validating", CHAT, "24h")
    assert (new["metadata"], new["tidemill"]["rerun_of"]) == ({"team": "a"}, old.id)
    shown = (await client.get(f"/batches/{old.id}")).json()
    assert shown["tidemill"]["reruns"] == [new["id"]]
    listed = (await client.get("/batches", params={"status": "completed"})).json()["data"]
    assert [each["tidemill"]["reruns"] for each in listed] == [[new["id"]]]
    file = (await client.get(f"/files/{new['input_file_id']}")).json()
    assert (file["filename"], file["purpose"]) == (f"rerun-of-{old.id}.jsonl", "batch")


@pytest.mark.parametrize(
    ("model", "wanted", "indices"),
    [("m", "failed", [1]), ("n", "failed", [3, 7]), ("n", "unfinished", [3, 7]), ("n", "all", [3, 7])],
)
async def test_a_rerun_may_have_lines_of_one_model(client, old, model, wanted, indices):
    """Of a batch whose lines name several; with another model they all run on that."""
    new = (await rerun(client, old, lines=wanted, of_model=model)).json()
    assert await content(client, new) == [request_line(index) for index in indices]
    moved = (await rerun(client, old, lines=wanted, of_model=model, model="m" if model == "n" else "n")).json()
    assert moved["input_file_id"] != new["input_file_id"]
    assert len(await content(client, moved)) == len(indices)
    refused = await rerun(client, old, lines="expired", of_model="n")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_lines")


async def test_a_rerun_of_all_lines_reuses_the_input(client, old):
    """It writes no new file."""
    new = (await rerun(client, old, lines="all", metadata={}, completion_window="24h")).json()
    assert (new["input_file_id"], new["metadata"]) == (old.input_file_id, {})


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [
        ("all", [0, 2, 3]),
        ("unfinished", [2, 3]),
        ("failed", [2]),
        ({"codes": ["invalid_json_line"]}, [1]),
        ("expired", [3]),
    ],
)
async def test_a_rerun_leaves_out_invalid_lines_of_a_stream(deps, client, wanted, indices):
    """A file with one of them would fail; its error code selects it."""
    old = await ended(deps, client, ["ok", "refused", "429", "expired"], stream="crawl")
    new = (await rerun(client, old, lines=wanted)).json()
    assert await content(client, new) == [request_line(index) for index in indices]
    assert new["input_file_id"] != old.input_file_id
    report = (await client.get(f"/batches/{old.id}/errors")).json()
    assert (report["total"], report["unfinished"]) == (3, 2)
    (group,) = [group for group in report["data"] if group["code"] == "invalid_json_line"]
    assert group["samples"] == [{"index": 1, "custom_id": "", "message": "no"}]


@pytest.mark.parametrize(
    ("fates", "wanted", "said"),
    [
        (["refused"] * 2, "failed", "its 2 failed lines are not valid requests; append them corrected"),
        (["ok", "ok"], "unfinished", "the choice 'all' runs every valid line"),
    ],
)
async def test_a_rerun_without_lines_says_what_to_do(deps, client, fates, wanted, said):
    """The batch may count failed lines that can never run."""
    refused = (await rerun(client, await ended(deps, client, fates, stream="crawl"), lines=wanted)).json()
    assert (refused["error"]["code"], said in refused["error"]["message"]) == ("no_lines", True)


async def test_a_rerun_of_too_many_lines(deps, old):
    """The error comes before anything is written, and says what to do instead."""
    small = replace(deps, settings=deps.settings.model_copy(update={"file_lines_max": 2}))
    async with client_of(small) as other:
        answer = await rerun(other, old, lines="failed")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_lines")
    assert "3 lines, and a batch may have 2" in answer.json()["error"]["message"]
    assert not commands(deps)


async def test_a_rerun_on_another_model(client, old):
    """The body names it, and only whitespace between fields changes."""
    new = (await rerun(client, old, lines="all", model="n")).json()
    found = await content(client, new)
    assert found == [rewrite_line(request_line(index), model="n") for index in range(len(FATES))]
    assert b'"model":"n","seed":12345678901234567890123,"t":1.0,"messages":[{"text": "\\u00e4"}]' in found[0]


async def test_a_repeated_rerun_creates_one_batch(deps, client, old):
    """By its key, or as the SDK retries it; otherwise it is another batch of the same file."""
    keyed = [(await rerun(client, old, {"idempotency-key": "k"}, lines="failed")).json() for _ in range(2)]
    assert keyed[0] == keyed[1]
    conflict = await rerun(client, old, {"idempotency-key": "k"}, lines="expired")
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "idempotency_key_reused")
    first = (await rerun(client, old, lines="failed")).json()
    again = (await rerun(client, old, {"x-stainless-retry-count": "1"}, lines="failed")).json()
    assert first["id"] == again["id"] != keyed[0]["id"]
    assert first["input_file_id"] == keyed[0]["input_file_id"]
    assert len(commands(deps)) == 2
    assert len([None for topic, _, _ in deps.log.records if topic == topics.FILES.name]) == 2


async def test_a_rerun_of_deleted_files(deps, client, old):
    """A 409, and no batch."""
    await client.delete(f"/files/{old.error_file_id}")
    answer = await rerun(client, old, lines="failed")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_gone")
    assert (await rerun(client, old, lines="all", model="n")).status_code == 200
    await client.delete(f"/files/{old.input_file_id}")
    for fields in ({"lines": "all"}, {"lines": "failed"}):
        answer = await rerun(client, old, **fields)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_gone")
        assert answer.headers["x-should-retry"] == "false"
    assert len(commands(deps)) == 1


async def test_the_deleted_input_is_the_reason_if_the_schema_went_with_it(deps, client):
    """The input's key, which is destroyed with it, seals the schema, too."""
    old = await ended(deps, client, FATES, validated=True)
    await client.delete(f"/files/{old.input_file_id}")
    answer = await rerun(client, old, lines="failed")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_gone")


async def test_a_repeated_rerun_finds_its_batch_without_the_old_input(client, old):
    """The same command fetches the results of a rerun, however old its batch is."""
    made = (await rerun(client, old, {"idempotency-key": "k"}, lines="failed")).json()
    await client.delete(f"/files/{old.input_file_id}")
    assert (await rerun(client, old, {"idempotency-key": "k"}, lines="failed")).json() == made


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"dry_run": 1}, 400, "dry_run"),
        ({"lines": 5}, 400, "lines"),
        ({"lines": "some"}, 400, "lines"),
        ({"lines": "codes"}, 400, "lines"),
        ({"lines": {}}, 400, "lines.codes"),
        ({"lines": {"codes": []}}, 400, "lines.codes"),
        ({"lines": {"codes": "429"}}, 400, "lines.codes"),
        ({"lines": {"codes": [True]}}, 400, "lines.codes[0]"),
        ({"lines": {"codes": ["x"] * 101}}, 400, "lines.codes"),
        ({"lines": "all", "model": 5}, 400, "model"),
        ({"lines": "all", "model": "none"}, 404, "model"),
        ({"lines": "all", "model": "e"}, 400, "model"),
        ({"lines": "all", "completion_window": "1y"}, 400, "completion_window"),
        ({"lines": "all", "metadata": 5}, 400, "metadata"),
        ({"lines": {"codes": ["none"]}}, 409, None),
    ],
)
async def test_invalid_reruns(deps, client, old, *, fields, status, param):
    """The error names the invalid field."""
    answer = await rerun(client, old, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert commands(deps) == []


async def test_a_rerun_of_another_projects_batch(client, old):
    """A 404; a running batch is a 409."""
    answer = await rerun(client, old, {"authorization": "Bearer key-of-q"}, lines="all")
    assert answer.status_code == 404
    new = Batch.model_validate((await rerun(client, old, lines="all")).json())
    assert (await rerun(client, new, lines="all")).status_code == 409


async def test_a_create_may_name_the_batch_that_it_asks_again(client, old):
    """Both link to each other, as a rerun; it must be a batch of the project."""
    body = {"input_file_id": old.input_file_id, "endpoint": CHAT, "completion_window": "24h", "rerun_of": old.id}
    new = (await client.post("/batches", json=body)).json()
    assert new["tidemill"]["rerun_of"] == old.id
    assert (await client.get(f"/batches/{old.id}")).json()["tidemill"]["reruns"] == [new["id"]]
    for fields, headers in (({}, {"authorization": "Bearer key-of-q"}), ({"rerun_of": "batch_none"}, {})):
        answer = await client.post("/batches", json=body | fields, headers=headers)
        assert (answer.status_code, "No batch found" in answer.json()["error"]["message"]) == (404, True)


@pytest.mark.parametrize(("status", "receipt"), [(Status.EXPIRED, None), (Status.CANCELLED, Receipt(lines=0))])
async def test_a_rerun_of_a_batch_that_ended_before_validation(deps, client, old, status, receipt):
    """No line has run: all have the batch's fate, though no error file says so."""
    unseen = {"status": status, "error_file_id": None, "tidemill": Extras(receipt=receipt)}
    late = old.model_copy(update={"id": ids.new_batch_id(), **unseen})
    deps.view.put_batch(BatchRecord(project="p", batch=late))
    for fields in ({"lines": status.value}, {}, {"lines": {"codes": [f"batch_{status}"]}}):
        new = (await rerun(client, late, **fields)).json()
        assert len(await content(client, new)) == len(FATES)
    found = (await client.get(f"/batches/{late.id}/errors")).json()
    assert (found["total"], found["unfinished"]) == (0, deps.view.file("p", late.input_file_id).lines)
    for kind in {"failed", "expired", "cancelled"} - {status.value}:
        assert (await rerun(client, late, lines=kind)).status_code == 409


async def test_a_rerun_of_a_stream_that_was_cancelled_without_a_line(deps, client, old):
    """There is nothing to run."""
    fields = {
        "status": Status.CANCELLED, "in_progress_at": NOW, "error_file_id": None,
        "tidemill": Extras(stream="s", receipt=Receipt(lines=0)),
    }  # fmt: skip
    empty = old.model_copy(update={"id": ids.new_batch_id(), **fields})
    deps.view.put_batch(BatchRecord(project="p", batch=empty))
    assert (await rerun(client, empty)).json()["error"]["code"] == "no_lines"
    assert (await client.get(f"/batches/{empty.id}/errors")).json()["unfinished"] == 0


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    st.lists,
    max_leaves=5,
)


@given(body=st.dictionaries(st.text(), values), custom_id=st.text(min_size=1), model=st.text(min_size=1))
def test_a_rewritten_line_differs_only_in_the_given_fields(body, custom_id, model):
    """Text that is no line stays unchanged."""
    line = {"custom_id": "old", "method": "POST", "url": CHAT, "body": body}
    found = orjson.loads(rewrite_line(orjson.dumps(line), model=model, custom_id=custom_id))
    assert found == line | {"custom_id": custom_id, "body": body | {"model": model}}
    for broken in (b"{", b"[]", b'{"body": 5}', b"\xff"):
        assert rewrite_line(broken, model=model) == broken


@given(
    code=st.sampled_from(["batch_expired", "batch_cancelled", "x"]), status=st.none() | st.sampled_from([400, 429])
)
def test_each_failed_line_has_one_kind(code, status):
    """Failed, expired or cancelled; codes of a server do not count."""
    named = [
        kind for kind in (Kind.FAILED, Kind.EXPIRED, Kind.CANCELLED) if Selection(kind=kind).includes(code, status)
    ]
    assert len(named) == 1
    assert named == [Kind.FAILED] or status is None


@pytest.mark.parametrize("dedupe", [None, "none", "batch", "all"])
async def test_a_rerun_asks_equal_lines_once_as_its_batch_did(deps, client, dedupe):
    """Also if the batch said that it did not want to."""
    old = await ended(deps, client, FATES, dedupe=dedupe)
    await rerun(client, old, lines="failed")
    assert commands(deps)[-1].batch.tidemill.dedupe == dedupe


@pytest.mark.parametrize(("default", "window"), [("2h", "2h"), (None, "1h")])
async def test_a_rerun_has_a_window_that_exists(deps, old, default, window):
    """A window that the installation no longer has gives way to the usual one, at its discount."""
    prices = {"input_per_million": 1, "output_per_million": 1}
    models = {"m": {"backends": [{"url": "http://127.0.0.1:9/v1"}], "price": prices}}
    windows, life = {"1h": 0, "2h": 1}, 7_200
    settings = Settings(models=models, windows=windows, default_window=default, input_life_seconds=life)
    async with client_of(with_settings(deps, settings)) as client:
        plan = (await rerun(client, old, lines="all", dry_run=True)).json()
        other = {"1h": "2h", "2h": "1h"}[window]
        changed = (await rerun(client, old, lines="all", dry_run=True, completion_window=other)).json()
        new = (await rerun(client, old, lines="failed")).json()
    assert new["completion_window"] == window
    assert deps.view.file("p", new["input_file_id"]).file.expires_at == NOW + life
    assert (plan["cost"]["min"] == "0", changed["cost"]["min"] == "0") == (window == "2h", other == "2h")

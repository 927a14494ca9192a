"""Lists of large objects: a page has a bound in bytes, and a batch shows few of its errors."""

from support.dependencies import NOW, batch_of

from tidemill.api.requests import paging
from tidemill.api.requests.paging import PAGE_BYTES_MAX, Page, Row
from tidemill.api.view import sqlite
from tidemill.api.view.overlay import FAULTS_LISTED_MAX
from tidemill.schemas.log.messages import BatchRecord, FileRecord
from tidemill.schemas.resources.batch import (
    Batch,
    BatchError,
    BatchErrors,
    Extras,
    Progress,
    RequestCounts,
    Status,
)
from tidemill.schemas.resources.file import File
from tidemill.schemas.resources.waiting import Reason, Waiting

FAULTS = 1_000


def refused(number: int, faults: int = FAULTS) -> Batch:
    """A batch whose input has faults."""
    data = tuple(BatchError(code="invalid_json_line", message="m" * 200, line=n + 1) for n in range(faults))
    errors = BatchErrors(data=data)
    return batch_of(f"batch_{number:032x}", status=Status.FAILED, failed_at=NOW, errors=errors)


async def pages(client, path: str, **query) -> list[dict]:
    """Every page of a list, as an SDK reads them."""
    found, after = [], {}
    while not found or found[-1]["has_more"]:
        answer = (await client.get(path, params=query | after)).raise_for_status()
        assert len(answer.content) <= PAGE_BYTES_MAX + 1000
        found.append(answer.json())
        after = {"after": found[-1]["last_id"]}
    return found


async def test_a_page_takes_few_queries(deps, client):
    """Independent of the number of batches."""
    for number in range(100):
        deps.view.put_batch(BatchRecord(project="p", batch=refused(number, 1)))
    statements = []
    deps.view._database._connection.set_trace_callback(statements.append)
    assert len((await client.get("/batches", params={"limit": 100})).json()["data"]) == 100
    assert len(statements) <= 3


async def test_single_requests_have_a_list_of_their_own(deps, client):
    """However many there are, they do not hide the batches, and cost the list nothing."""
    for number in range(300):
        batch = refused(number, 0)
        extras = batch.tidemill.model_copy(update={"single": number % 100 > 0})
        deps.view.put_batch(BatchRecord(project="p", batch=batch.model_copy(update={"tidemill": extras})))
    own = [refused(number).id for number in (200, 100, 0)]
    for wanted in ({}, {"single": "false"}, {"status": "failed"}, {"endpoint": "/v1/embeddings"}):
        (page,) = await pages(client, "/batches", **wanted)
        assert [each["id"] for each in page["data"]] == own
    single = [each for page in await pages(client, "/batches", single="true", limit=100) for each in page["data"]]
    assert len(single) == 297
    assert all(each["tidemill"]["single"] for each in single)
    plans = []
    for condition in ("", " AND endpoint = 'e'", " AND status = 's'"):
        statement = f"SELECT id FROM batches WHERE project = 'p' AND single = 0{condition} ORDER BY created_at, id"
        plans += deps.view._database.read(f"EXPLAIN QUERY PLAN {statement}")
    assert all("INDEX batches_listed" in plan[-1] for plan in plans), plans


async def test_a_search_reads_a_bounded_part(deps, client, monkeypatch):
    """By id, name, metadata and model; the cursor of its page says how far it has come, and all pages have all."""
    monkeypatch.setattr(sqlite, "SCAN_ROWS_MAX", 7)
    for number in range(40):
        labels = {"team": "Ärzte 100%" if number % 10 == 3 else "docs", "note": "a_b"}
        batch = refused(number, 0).model_copy(update={"metadata": labels, "model": f"m{number % 2}"})
        deps.view.put_batch(BatchRecord(project="p" if number % 4 else "q", batch=batch))
    own = [number for number in range(39, -1, -1) if number % 4]
    for wanted, expected in (
        ({"search": "ÄRZTE"}, [number for number in own if number % 10 == 3]),
        ({"search": "100%"}, [number for number in own if number % 10 == 3]),
        ({"search": "%"}, [number for number in own if number % 10 == 3]),
        ({"search": "axb"}, []),
        ({"search": refused(7).id[:-1] + "x"}, []),
        ({"search": refused(17).id}, [17]),
        ({"search": refused(17).id[-6:]}, [17]),
        ({"search": f"…{refused(17).id[-8:]}"}, [17]),
        ({"search": refused(17).id[-5:]}, []),
        ({"search": "batch_"}, own),
        ({"search": refused(17).input_file_id}, own),
        ({"model": "m1", "search": "docs"}, [number for number in own if number % 2 and number % 10 != 3]),
        ({"model": "m"}, []),
        (
            {"model": "m1", "metadata[team]": "docs", "order": "asc"},
            [n for n in own[::-1] if n % 2 and n % 10 != 3],
        ),
    ):
        found = await pages(client, "/batches", limit=3, **wanted)
        assert [each["id"] for page in found for each in page["data"]] == [refused(n).id for n in expected], wanted
        assert all(len(page["data"]) <= 3 for page in found)
    assert (await client.get("/batches", params={"search": "x" * 129})).json()["error"]["param"] == "search"


def in_trouble(number: int) -> Batch:
    """Every tenth batch is in progress, and each of these has another trouble, or none."""
    if number % 10:
        return batch_of(f"batch_{number:032x}", status=Status.COMPLETED, completed_at=NOW)
    behind = Progress(percent=1.0, lines_per_second=1.0, slack_seconds=-1, observed_at=NOW)
    extras, failed = (
        (Extras(), 0),
        (Extras(waiting=(Waiting(reason=Reason.PAUSED, lines=1, message="m", since=NOW),)), 0),
        (Extras(progress=behind), 0),
        (Extras(), 1),
    )[number // 10 % 4]
    counts = RequestCounts(total=9, failed=failed)
    return batch_of(f"batch_{number:032x}", tidemill=extras, request_counts=counts, metadata={"team": "docs"})


async def test_batches_in_trouble_are_found(deps, client):
    """Page by page, also with other filters, by an index; a row leaves with its trouble."""
    for number in range(800):
        deps.view.put_batch(BatchRecord(project="p" if number % 200 else "q", batch=in_trouble(number)))
    own = [number for number in range(790, 0, -10) if number % 200]
    steps = []
    deps.view._database._connection.set_progress_handler(lambda: steps.append(1), 100)
    for place, trouble in enumerate(("stalled", "late", "failures"), 1):
        expected = [in_trouble(number).id for number in own if number // 10 % 4 == place]
        for more in ({}, {"status": "in_progress"}, {"metadata[team]": "docs"}, {"search": "batch_"}):
            found = await pages(client, "/batches", trouble=trouble, limit=7, **more)
            assert [each["id"] for page in found for each in page["data"]] == expected, (trouble, more)
        for more in ({"status": "completed"}, {"endpoint": "/v1/rerank"}, {"single": "true"}):
            steps.clear()
            assert await pages(client, "/batches", trouble=trouble, **more) == [
                {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
            ]
            assert len(steps) < 20, (trouble, more)
        ended = in_trouble(1).model_copy(update={"id": expected[0]})
        deps.view.put_batch(BatchRecord(project="p", batch=ended))
        (page, *_) = await pages(client, "/batches", trouble=trouble)
        assert page["data"][0]["id"] == expected[1]
    answer = await client.get("/batches", params={"trouble": "at_risk"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "trouble")


async def test_a_stalled_batch_becomes_late(deps, client):
    """While its slack falls, without a new record."""
    progress = Progress(percent=1.0, lines_per_second=0.0, slack_seconds=5, observed_at=NOW)
    deps.view.put_batch(BatchRecord(project="p", batch=batch_of("batch_1", tidemill=Extras(progress=progress))))
    for now, found in ((NOW + 5, 0), (NOW + 6, 1)):
        deps.view._clock = lambda now=now: now
        (page,) = await pages(client, "/batches", trouble="late")
        assert len(page["data"]) == found


async def test_lists_cut_the_errors_of_batches(deps, client):
    """They have the first errors and the number of others; the batch has them all."""
    for number in range(100):
        deps.view.put_batch(BatchRecord(project="p", batch=refused(number)))
    answer = await client.get("/batches", params={"limit": 100})
    shown = answer.json()["data"]
    assert len(shown) == 100
    assert len(answer.content) < 200_000
    for listed in shown:
        *first, more = listed["errors"]["data"]
        assert [fault["line"] for fault in first] == list(range(1, FAULTS_LISTED_MAX))
        assert more["code"] == "too_many_errors"
        assert f"{FAULTS - len(first)} more" in more["message"]
        assert listed["id"] in more["message"]
    whole = (await client.get(f"/batches/{shown[0]['id']}")).json()
    assert len(whole["errors"]["data"]) == FAULTS
    assert shown[0] == whole | {"errors": shown[0]["errors"]}


async def test_lists_show_few_errors_unchanged(deps, client):
    """So do batches without errors."""
    for number, faults in enumerate((0, 1, FAULTS_LISTED_MAX)):
        deps.view.put_batch(BatchRecord(project="p", batch=refused(number, faults)))
    shown = (await client.get("/batches")).json()["data"]
    assert shown == [(await client.get(f"/batches/{each['id']}")).json() for each in shown]
    assert [len(each["errors"]["data"]) for each in shown] == [FAULTS_LISTED_MAX, 1, 0]


async def test_pages_of_large_objects(deps, client):
    """They contain all objects, on more pages than the limit needs, each within its bound."""
    metadata = {f"{n:02}" + "k" * 62: "\x01" * 512 for n in range(16)}
    for number in range(90):
        batch = refused(number, 0).model_copy(update={"metadata": metadata})
        deps.view.put_batch(BatchRecord(project="p", batch=batch))
    for number in range(700):
        file = File(id=f"file-{number:022}", bytes=1, created_at=NOW, filename="\x01" * 1024, purpose="batch")
        record = FileRecord(project="p", file=file, key=file.id, sha256="0" * 64)
        deps.view.put_file(record, number)
    for path, limit, count in (("/batches", 100, 90), ("/files", 10_000, 700)):
        found = await pages(client, path, limit=limit)
        ids = [each["id"] for page in found for each in page["data"]]
        assert len(found) == 2
        assert len(set(ids)) == len(ids) == count


def test_a_page_has_at_least_one_object():
    """Otherwise a client could not page on."""
    rows = [Row(id=name, body=b"1" * (PAGE_BYTES_MAX + 1)) for name in "abc"]
    assert paging.fitting(iter(rows)) == rows[:2]
    assert b'"last_id":"a","has_more":true' in paging.write(Page(limit=10), rows[:2])


async def test_a_page_is_cut_by_what_it_shows(deps, client, monkeypatch):
    """A batch that was stored with a rate and an ETA is shown without them later, and with its reruns."""
    progress = Progress(
        percent=1.0, lines_per_second=12.345678, observed_at=NOW - 9, holds_until=NOW - 5,
        done_earliest_at=NOW - 2, done_latest_at=NOW - 1,
    )  # fmt: skip
    for number in range(3):
        fields = {"status": Status.IN_PROGRESS, "tidemill": Extras(progress=progress)}
        stored = refused(number, 0).model_copy(update=fields)
        deps.view.put_batch(BatchRecord(project="p", batch=stored))
    size = len(deps.view.batch("p", stored.id))
    assert size < len(stored.model_dump_json())
    monkeypatch.setattr(paging, "PAGE_BYTES_MAX", 2 * size)
    assert [len(page["data"]) for page in await pages(client, "/batches")] == [2, 1]
    fields = {"created_at": NOW - 1, "tidemill": Extras(rerun_of=stored.id)}
    deps.view.put_batch(BatchRecord(project="p", batch=refused(3, 0).model_copy(update=fields)))
    assert [len(page["data"]) for page in await pages(client, "/batches")] == [1, 2, 1]

"""Usage from the ledger: exact sums, pages without gaps, and no other project's entries."""

import asyncio
import threading
from decimal import Decimal
from itertools import product

import pytest
from support.dependencies import ADMIN, NOW, client_of

from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import LedgerRecord
from tidemill.schemas.resources.batch import InputTokensDetails, OutputTokensDetails, Status, Usage
from tidemill.schemas.resources.bill import Tariff, bill, day_of
from tidemill.schemas.resources.by_model import ModelResult

DAY = 86_400


def entry(
    number: int, project: str = "p", models: tuple[str | None, ...] = ("m",), at: int = NOW, tokens: int = 1
) -> LedgerRecord:
    """An entry of a batch with three lines; a million input tokens cost 0.1, output 0.3."""
    usage = Usage(
        input_tokens=10 * tokens, input_tokens_details=InputTokensDetails(cached_tokens=4 * tokens),
        output_tokens=tokens, output_tokens_details=OutputTokensDetails(reasoning_tokens=tokens),
        total_tokens=11 * tokens, images=2 * tokens, audio_seconds=60 * tokens,
    )  # fmt: skip
    tariff = Tariff(input_per_million="0.1", output_per_million="0.3", per_image="0.01", discount="0.5")
    return LedgerRecord(
        batch_id=f"batch_{number:032x}", project=project, endpoint="/v1/embeddings",
        status=Status.COMPLETED, ended_at=at, day=day_of(at),
        models=tuple(
            ModelResult(
                model=model, completed=3, failed=0, copies=1, usage=usage,
                bill=bill(usage.input_tokens, usage.output_tokens, tariff, images=2 * tokens),
            )
            for model in models
        ),
    )  # fmt: skip


def fold(deps, *entries: LedgerRecord) -> None:
    """Fold these entries."""
    deps.view.fold(
        topics.LEDGER.name, [(entry.batch_id, codec.encode(entry), place) for place, entry in enumerate(entries)]
    )


async def usage(client, **query: object) -> list[dict]:
    """The sums of a page."""
    answer = await client.get("/usage", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


async def test_one_sum_of_all_entries(deps, client):
    """Tokens and cost; a repeated entry counts once."""
    fold(deps, entry(1), entry(2, tokens=2), entry(1), entry(3, project="q"), entry(4, at=NOW - 31 * DAY))
    (found,) = await usage(client)
    assert found == {
        "object": "usage", "id": found["id"], "project": None, "model": None, "day": None, "batch_id": None,
        "batches": 2, "lines": 6, "copies": 2, "input_tokens": 30, "cached_tokens": 12, "output_tokens": 3,
        "reasoning_tokens": 3, "total_tokens": 33, "images": 6, "audio_seconds": 180,
        "cost": {"total": "0.03000195", "input": "0.0000015", "output": "0.00000045", "units": "0.03"},
    }  # fmt: skip


async def test_the_sum_of_no_batch(client):
    """Zeros, and no rows with groups."""
    (found,) = await usage(client)
    assert (found["batches"], found["cost"]) == (0, {"total": "0", "input": "0", "output": "0", "units": "0"})
    assert await usage(client, group_by="day") == []


async def test_sums_are_exact(deps, client):
    """A thousand times a tenth of a millionth: floats would be wrong."""
    fold(deps, *(entry(number, tokens=number) for number in range(1, 1001)))
    (found,) = await usage(client)
    tokens = sum(range(1, 1001))
    assert Decimal(found["cost"]["input"]) == Decimal(10 * tokens) * Decimal("0.1") / 2 / 1_000_000
    assert Decimal(found["cost"]["total"]) == sum(
        Decimal(found["cost"][of]) for of in ("input", "output", "units")
    )


async def test_sums_run_in_a_thread(deps, client, monkeypatch):
    """One at a time for a project, so that they delay no other request."""
    sums, threads, places = deps.view.ledger.sums, set(), []

    def watched(query):
        threads.add(threading.current_thread())
        places.append(deps.gates.sums._held.total())
        return sums(query)

    monkeypatch.setattr(deps.view.ledger, "sums", watched)
    answers = await asyncio.gather(*(client.get("/usage") for _ in range(6)))
    assert {answer.status_code for answer in answers} == {200}
    assert threading.main_thread() not in threads
    assert places == [1] * 6


async def test_groups_and_pages(deps, client):
    """By each set of dimensions; pages of one row add up to the whole."""
    entries = [
        entry(number, models=(model,), at=NOW - day * DAY)
        for number, (model, day) in enumerate(product(("a", "b/c", "=x", None), range(3)))
    ]
    fold(deps, *entries)
    for by, rows in (
        ("model", 4),
        ("day", 3),
        ("model,day", 12),
        ("day,model", 12),
        ("batch", 12),
        ("project", 1),
    ):
        whole = await usage(client, group_by=by)
        assert len(whole) == rows
        assert sum(found["batches"] for found in whole) == 12
        walked, after = [], None
        for _ in range(rows):
            (found,) = await usage(client, group_by=by, limit=1, **({"after": after} if after else {}))
            walked.append(found)
            after = found["id"]
        assert walked == whole
        assert await usage(client, group_by=by, after=after) == []
    assert [found["model"] for found in await usage(client, group_by="model")] == [None, "=x", "a", "b/c"]
    assert {found["batch_id"] for found in await usage(client, group_by="batch")} == {e.batch_id for e in entries}


async def test_a_batch_of_several_models_counts_once(deps, client):
    """For each model its own tokens; for all of them one batch."""
    fold(deps, entry(1, models=("a", "b")), entry(2, models=("b",)), entry(1, models=("a", "b")))
    sums = {found["model"]: found for found in await usage(client, group_by="model")}
    assert {model: (found["batches"], found["lines"]) for model, found in sums.items()} == {
        "a": (1, 3),
        "b": (2, 6),
    }
    for by in ("", "day", "project"):
        (found,) = await usage(client, group_by=by)
        assert (found["batches"], found["lines"], found["input_tokens"]) == (2, 9, 30)
    assert [found["batches"] for found in await usage(client, group_by="batch")] == [1, 1]


@pytest.mark.parametrize("models", [("n",), (None,), ("m", "n")])
async def test_a_late_record_of_a_former_owner_counts_nothing(deps, client, models):
    """Though it names other models; one of a later owner replaces all of it."""
    late = entry(1, models=models, tokens=9).model_copy(update={"owner": 3})
    fold(deps, entry(1).model_copy(update={"owner": 5}), late)
    (found,) = await usage(client)
    assert (found["batches"], found["lines"], found["input_tokens"]) == (1, 3, 10)
    fold(deps, late.model_copy(update={"owner": 6}))
    assert [row["input_tokens"] for row in await usage(client, group_by="model")] == [90] * len(models)


async def test_sums_of_a_time_range(deps, client):
    """The start is inclusive, the end exclusive."""
    fold(deps, entry(1, at=NOW), entry(2, at=NOW - 1), entry(3, at=NOW - 40 * DAY))
    for query, batches in (
        ({"start_time": NOW}, 1),
        ({"end_time": NOW}, 1),
        ({"start_time": 0}, 3),
        ({"start_time": NOW - 1, "end_time": NOW}, 1),
    ):
        assert (await usage(client, **query))[0]["batches"] == batches


async def test_usage_of_projects(deps, client):
    """A project sees its own; an operator any, or all."""
    fold(deps, entry(1), entry(2, project="q"), entry(3, project="default"))
    assert (await usage(client, project="p"))[0]["batches"] == 1
    for other in ("q", "*"):
        answer = await client.get("/usage", params={"project": other})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_permissions")
    async with client_of(deps, ADMIN) as admin:
        assert (await usage(admin))[0]["batches"] == 1
        assert (await usage(admin, project="q"))[0]["batches"] == 1
        rows = await usage(admin, project="*", group_by="project")
        assert [(row["project"], row["batches"]) for row in rows] == [("default", 1), ("p", 1), ("q", 1)]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"group_by": "secret"}, "group_by"),
        ({"start_time": "yesterday"}, "start_time"),
        ({"end_time": "-1"}, "end_time"),
        ({"limit": "0"}, "limit"),
        ({"after": "usage_x"}, "after"),
        ({"after": "usage_WyJhIl0", "group_by": ""}, "after"),
        ({"after": "usage_W10", "group_by": "day"}, "after"),
        ({"after": "ä"}, "after"),
    ],
)
async def test_invalid_queries(client, query, param):
    """The error names the invalid parameter."""
    answer = await client.get("/usage", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)

"""Two batches side by side: each line once, in bounded steps, of the caller's project alone."""

from collections import Counter

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.dependencies import batch_of
from support.ended_batches import put_ended

from tidemill.api.batches import comparison
from tidemill.schemas import ids
from tidemill.schemas.log.messages import BatchRecord

FIRST, SECOND = ("batch_" + digit * 32 for digit in "12")


def line(name: str, text: str | None) -> bytes:
    """A line of the output; without a text, of the error file."""
    body = {"id": f"chatcmpl-{name}-{text}", "created": 1, "choices": [{"index": 0, "message": {"content": text}}]}
    response = None if text is None else {"status_code": 200, "request_id": "r", "body": body}
    error = {"code": "expired", "message": "m"} if text is None else None
    return orjson.dumps({"id": name, "custom_id": name, "response": response, "error": error}) + b"\n"


async def put(deps, batch_id: str, fates: dict[str, str | None], **options: object) -> None:
    """An ended batch of lines by name: the text of the answer, or None for a failure."""
    lines = {index: line(name, text) for index, (name, text) in enumerate(fates.items())}
    failed = {index for index, text in enumerate(fates.values()) if text is None}
    await put_ended(
        deps, batch_id, {n: text for n, text in lines.items() if n not in failed},
        {n: text for n, text in lines.items() if n in failed}, **options,
    )  # fmt: skip


async def compared(client, first: str = FIRST, second: str = SECOND, **query: object) -> list[tuple[str, str]]:
    """The names and outcomes of all pages."""
    found, after = [], "-1_-1"
    for _ in range(1_000):
        params = {"with": second, "after": after, **query}
        page = (await client.get(f"/batches/{first}/compare", params=params)).raise_for_status().json()
        found += [(each["custom_id"], each["outcome"]) for each in page["data"]]
        if not page["has_more"]:
            return found
        assert page["next_after"] != after
        after = page["next_after"]
    raise AssertionError("the comparison does not end")


def expected(first: dict, second: dict) -> dict[str, str]:
    """The outcome of each name."""
    outcomes = {}
    for name in first | second:
        if name not in second or name not in first:
            outcomes[name] = "only_second" if name not in first else "only_first"
        elif None in {first[name], second[name]}:
            both = first[name] is second[name]
            outcomes[name] = "both_failed" if both else "first_failed" if first[name] is None else "second_failed"
        else:
            outcomes[name] = "same" if first[name] == second[name] else "different"
    return outcomes


FATES = st.dictionaries(st.integers(0, 40), st.sampled_from(["a", "b", None]), max_size=25)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=FATES, second=FATES, limit=st.integers(1, 30))
async def test_each_line_is_compared_once(deps, client, first, second, limit):
    """With any limit, whatever lines either batch has."""
    first, second = ({f"line-{n}": fates[n] for n in sorted(fates)} for fates in (first, second))
    # A batch never changes after its end, so the api caches its index.
    pair = [ids.new_batch_id() for _ in range(2)]
    await put(deps, pair[0], first)
    await put(deps, pair[1], second)
    found = await compared(client, *pair, limit=limit)
    assert len(found) == len(dict(found))
    assert dict(found) == expected(first, second)
    wanted = ("different", "first_failed")
    some = await compared(client, *pair, limit=limit, outcome=",".join(wanted))
    assert some == [one for one in found if one[1] in wanted]


@pytest.mark.parametrize("limit", [0, 7])
async def test_lines_are_counted_in_bounded_steps(deps, client, monkeypatch, limit):
    """Also those that are not shown; `limit` says how many of those that are wanted come."""
    monkeypatch.setattr(comparison, "WINDOW_LINES", 5)
    monkeypatch.setattr(comparison, "SCAN_LINES_MAX", 20)
    first = {f"line-{n}": None if n % 9 == 0 else "a" for n in range(100)}
    second = {f"line-{n}": "b" if n % 50 == 0 else "a" for n in range(100)}
    await put(deps, FIRST, first)
    await put(deps, SECOND, second)
    counts, after, shown = Counter(), "-1_-1", []
    while after is not None:
        params = {"with": SECOND, "after": after, "limit": limit, "outcome": "first_failed"}
        page = (await client.get(f"/batches/{FIRST}/compare", params=params)).json()
        assert len(page["data"]) <= limit
        assert 0 < sum(page["counts"].values()) <= 25
        counts.update(page["counts"])
        shown += page["data"]
        after = page["next_after"]
    assert counts == Counter(expected(first, second).values())
    assert len(shown) == (counts["first_failed"] if limit else 0)


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_rerun_is_compared_with_its_batch(deps, client, monkeypatch, is_first):
    """Though its lines are few, and far apart in the batch."""
    monkeypatch.setattr(comparison, "WINDOW_LINES", 5)
    whole = {f"line-{n}": None if n % 30 == 7 else "a" for n in range(100)}
    rerun = {name: "b" for name, text in whole.items() if text is None}
    await put(deps, SECOND if is_first else FIRST, whole)
    await put(deps, FIRST if is_first else SECOND, rerun, rerun_of=SECOND if is_first else FIRST)
    pair = (rerun, whole) if is_first else (whole, rerun)
    assert dict(await compared(client)) == expected(*pair)
    wanted = "second_failed" if is_first else "first_failed"
    assert [name for name, _ in await compared(client, outcome=wanted)] == list(rerun)


async def test_a_comparison_is_of_ended_batches_of_the_project(deps, client):
    """A running one is a 409, one of another project unknown; results are those of the files."""
    await put(deps, FIRST, {"a": "x"})
    await put(deps, SECOND, {"a": "y"}, project="q")
    for other in (SECOND, "batch_" + "9" * 32):
        answer = await client.get(f"/batches/{FIRST}/compare", params={"with": other})
        assert answer.status_code == 404
    running = batch_of("batch_" + "3" * 32)
    deps.view.put_batch(BatchRecord(project="p", batch=running))
    for pair in ((FIRST, running.id), (running.id, FIRST)):
        assert (await client.get(f"/batches/{pair[0]}/compare", params={"with": pair[1]})).status_code == 409
    (same,) = (await client.get(f"/batches/{FIRST}/compare", params={"with": FIRST})).json()["data"]
    results = (await client.get(f"/batches/{FIRST}/results")).json()["data"]
    assert (same["outcome"], [same["first"]], [same["second"]]) == ("same", results, results)


async def test_lines_without_a_custom_id_hide_no_others(deps, client):
    """Invalid lines of streams have none; each stands alone."""
    odd = line("x", None).replace(b'"custom_id":"x"', b'"custom_id":null')
    for batch_id in (FIRST, SECOND):
        await put_ended(deps, batch_id, {0: line("a", "1"), 3: line("b", "1")}, {1: odd, 2: odd})
    found = await compared(client)
    assert sorted(found) == sorted([("a", "same"), ("b", "same"), *2 * [("", "only_first"), ("", "only_second")]])


def calling(name: str, number: str) -> dict:
    """A choice that calls a tool."""
    call = {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": '{"id":7}'}}
    return {"index": 0, "message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}


@pytest.mark.parametrize(
    "body",
    [
        lambda name, number: {"id": number, "choices": [calling(name, number)]},
        lambda name, number: {
            "output": [{"type": "function_call", "id": number, "call_id": number, "name": name}]
        },
        lambda name, number: {"content": [{"type": "tool_use", "id": number, "name": name, "input": {"id": 7}}]},
        lambda name, number: {"content": [{"type": "x_result", "tool_use_id": number, "content": name}]},
    ],
)
def test_ids_of_tool_calls_make_no_difference(body):
    """Each reply has new ones; an id that the model wrote counts."""
    first, again, other = (
        comparison.answer(orjson.dumps({"response": {"body": body(*each)}}))
        for each in (("look", "a"), ("look", "b"), ("find", "b"))
    )
    assert first == again != other


def test_an_id_in_the_input_of_a_tool_counts():
    """It is part of the answer."""
    first, second = (
        comparison.answer(
            orjson.dumps({"response": {"body": {"content": [{"type": "tool_use", "input": {"id": n}}]}}})
        )
        for n in (7, 8)
    )
    assert first != second

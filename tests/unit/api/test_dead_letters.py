"""Dead letters over the API: bounded, without values in lists, for operators."""

import pytest
from support.dependencies import ADMIN, NOW, client_of

from tidemill.api.routes.admin import dead_letters as routes
from tidemill.schemas.log import codec, dead_letters, topics
from tidemill.schemas.ports import LogRecord


def letter(offset: int, value: bytes = b"x" * 3_000) -> LogRecord:
    """The record of a letter."""
    source = f"tidemill.outcomes/0/{offset}"
    headers = dead_letters.headers(source, [], key=b"\xffkey", stage="ingest", reason="broken <b>")
    return LogRecord(at_ms=1000 * (NOW + offset), value=value, headers=headers)


def mark(offset: int) -> LogRecord:
    """The mark that a letter was sent again."""
    headers = dead_letters.mark_headers(f"tidemill.outcomes/0/{offset}")
    return LogRecord(at_ms=1000 * (NOW + 100), value=b"", headers=headers)


@pytest.fixture
async def operator(deps):
    """A client with an operator's key."""
    async with client_of(deps, ADMIN, base="http://api/v1/admin") as client:
        yield client


async def test_letters_are_listed_newest_first(deps, operator, monkeypatch):
    """A record written twice is one letter; a foreign record is left out; an answer has the newest."""
    foreign = LogRecord(at_ms=0, value=b"", headers=())
    deps.history.topics[topics.DEAD.name] = [letter(1), letter(2), letter(2), foreign, mark(1), letter(3), mark(9)]
    found = (await operator.get("/dead_letters")).json()
    assert [one["id"] for one in found["data"]] == [f"tidemill.outcomes/0/{number}" for number in (3, 2, 1)]
    assert [one["requeued_at"] for one in found["data"]] == [None, None, NOW + 100]
    newest = found["data"][0]
    assert (newest["stage"], newest["reason"], newest["bytes"], newest["at"]) == (
        "ingest",
        "broken <b>",
        3_000,
        NOW + 3,
    )
    assert "value" not in newest
    assert (await operator.get("/dead_letters?limit=1")).json() == {
        "object": "list", "data": [newest], "has_more": True,
    }  # fmt: skip
    monkeypatch.setattr(routes, "LETTERS_MAX", 2)
    bounded = (await operator.get("/dead_letters?limit=1000")).json()
    assert (len(bounded["data"]), bounded["has_more"]) == (2, True)


async def test_a_letter_has_the_beginning_of_its_value(deps, operator):
    """As text, whatever its bytes."""
    deps.history.topics[topics.DEAD.name] = [letter(1), letter(2, b"\xff\x00" * 2_000), mark(2)]
    shown = (await operator.get("/dead_letters/tidemill.outcomes/0/2")).json()
    assert (shown["value"], shown["requeued_at"]) == ("\ufffd\x00" * 1_000, NOW + 100)
    missing = await operator.get("/dead_letters/tidemill.outcomes/0/3")
    assert (missing.status_code, missing.json()["error"]["message"]) == (
        404, "No dead letter found with id 'tidemill.outcomes/0/3'.",
    )  # fmt: skip


async def sent(operator, *numbers: int, **more: object) -> list[str]:
    """What became of letters that a request sends again."""
    ids = [f"tidemill.outcomes/0/{number}" for number in numbers]
    answer = await operator.post("/dead_letters/requeue", json={"ids": ids, **more})
    found = answer.raise_for_status().json()["data"]
    assert [one["id"] for one in found] == ids
    return [one["result"] for one in found]


async def test_letters_are_sent_again_once(deps, operator):
    """The record goes to its topic as it was, then a mark; a repeated request sends nothing, unless it insists."""
    deps.history.topics[topics.DEAD.name] = [letter(1, b"one"), letter(2), letter(2), letter(3), mark(3)]
    assert await sent(operator, 1, 3, 9) == ["sent", "sent_before", "not_found"]
    assert [(topic, value) for topic, _, value in deps.log.records] == [
        (topics.OUTCOMES.name, b"one"),
        (topics.DEAD.name, None),
    ]
    assert [action(one) for one in deps.log.trail] == [("dead_letter.requeue", "tidemill.outcomes/0/1")]
    deps.history.topics[topics.DEAD.name].append(mark(1))
    deps.log.records.clear()
    assert await sent(operator, 1) == ["sent_before"]
    assert not deps.log.records
    assert await sent(operator, 2, 1, again=True) == ["sent", "sent"]
    assert [value for topic, _, value in deps.log.records if topic == topics.OUTCOMES.name] == [
        b"one",
        b"x" * 3_000,
    ]


async def test_what_cannot_be_sent_again(deps, operator):
    """A forged letter reaches no other topic; one without its value is not sent; nothing is unbounded."""
    forged = dead_letters.headers("tidemill.keys/0/1", [], key=b"k", stage="ingest", reason="r")
    cut = [*letter(4).headers, (dead_letters.CUT, b"2000000")]
    deps.history.topics[topics.DEAD.name] = [
        LogRecord(at_ms=0, value=b"{}", headers=forged), LogRecord(at_ms=0, value=b"", headers=cut), letter(5),
    ]  # fmt: skip
    body = {"ids": ["tidemill.keys/0/1", "tidemill.outcomes/0/4"]}
    found = (await operator.post("/dead_letters/requeue", json=body)).json()["data"]
    assert [(one["result"], one["reason"]) for one in found] == [
        ("refused", "no records are sent to 'tidemill.keys' again"),
        ("too_large", None),
    ]
    assert not deps.log.records
    assert not deps.log.trail
    for wrong in ({"ids": []}, {"ids": ["x"] * 101}, {}, {"ids": ["x"], "all": True}):
        assert (await operator.post("/dead_letters/requeue", json=wrong)).status_code == 400
    deps.log.refused.add(topics.OUTCOMES.name)
    body = {"ids": ["tidemill.outcomes/0/5"]}
    assert (await operator.post("/dead_letters/requeue", json=body)).status_code == 503
    async with client_of(deps) as client:
        assert (await client.post("/admin/dead_letters/requeue", json=body)).status_code == 403


async def test_a_letter_of_the_intake_is_refused(deps, operator):
    """It is kept without its credential, so ingest would reject the record again; the answer says so."""
    letter_id = "tidemill.intake/0/7"
    headers = dead_letters.headers(letter_id, [], key=b"crawl", stage="ingest", reason="its key is not known")
    deps.history.topics[topics.DEAD.name] = [LogRecord(at_ms=0, value=b"{}", headers=headers)]
    answer = await operator.post("/dead_letters/requeue", json={"ids": [letter_id]})
    (found,) = answer.raise_for_status().json()["data"]
    assert (found["result"], found["requeued_at"]) == ("refused", None)
    assert "its producer has to send the lines again" in found["reason"]
    assert not deps.log.records


def action(record: bytes) -> tuple[str, str]:
    """The action of a record of the trail, and its target."""
    found = codec.decode_audit(record)
    return found.action, found.target

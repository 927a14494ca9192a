"""Replays: which lines, in which order, with which ids, each once."""

import hashlib
import re
import threading

import httpx
import orjson
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support.dependencies import ADMIN, READER, open_dependencies, with_settings

from tidemill.api.batches.token_estimate import TokenEstimate
from tidemill.api.reruns.log_range import edge
from tidemill.api.reruns.replay_spool import ReplaySpool, Sources, renamed
from tidemill.configuration.settings import Settings
from tidemill.schemas.bounds import CUSTOM_ID_CHARS_MAX
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import LineRef, RequestHead
from tidemill.schemas.ports import Edge, LogRecord

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
BACKENDS = [{"url": "http://127.0.0.1:9/v1"}]
REQUESTS, EXPRESS = topics.requests("m").name, topics.express("m").name
ALL_OF_M = {"model": "m", "from": "0"}


def line(name: str, url: str = CHAT, model: str = "m") -> bytes:
    """A line with an id of its own."""
    body = {"model": model, "messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 5}
    return orjson.dumps({"custom_id": name, "method": "POST", "url": url, "body": body})


def entry(
    batch: str, first: int, *lines: bytes, at: int = 1, project: str = "p", url: str = CHAT, ref=None
) -> LogRecord:
    """A record of requests, written at so many seconds."""
    head = RequestHead(batch_id=f"batch_{batch * 32}", project=project, first=first, deadline=9, url=url, ref=ref)
    return LogRecord(at_ms=at * 1000, value=b"\n".join(lines), headers=tuple(codec.request_headers(head)))


async def once(data: bytes):
    """One chunk."""
    yield data


@pytest.fixture
async def deps(tmp_path):
    """Dependencies with the models `m` and `n`; a batch may have six lines."""
    models = {name: {"backends": BACKENDS, "price": {"input_per_million": 1}} for name in "mn"}
    async with open_dependencies(tmp_path) as deps:
        yield with_settings(deps, Settings(models=models, file_lines_max=6, windows={"24h": 0.5, "1h": 0}))


async def replay(client, headers=None, **fields) -> httpx.Response:
    """Request a replay."""
    return await client.post("/replays", json=fields, headers=headers or {})


async def content(client, batch) -> list[bytes]:
    """The lines of a batch's input."""
    answer = await client.get(f"/files/{batch['input_file_id']}/content")
    assert answer.status_code == 200, answer.text
    return answer.content.splitlines()


async def test_a_replay_has_each_line_once_in_order(deps, client):
    """Whatever the order of the log; the batch with the oldest record comes first."""
    deps.history.topics[REQUESTS] = [
        entry("a", 2, line("a2"), line("a3"), at=5),
        entry("b", 0, line("b0"), at=2),
        entry("a", 0, line("a0"), line("a1"), at=5),
        entry("a", 1, line("a1"), line("a2"), at=6),
        entry("q", 0, line("q0"), project="q"),
    ]
    deps.history.topics[EXPRESS] = [entry("c", 0, line("c0"), at=4)]
    new = (await replay(client, source=ALL_OF_M | {"from": "1970-01-01T00:00:00Z"})).json()
    assert await content(client, new) == [line(name) for name in ("b0", "c0", "a0", "a1", "a2", "a3")]
    assert new["endpoint"] == CHAT
    assert new["tidemill"]["replay_range"] == {"model": "m", "start": "1970-01-01T00:00:00Z", "end": None}
    part = (await replay(client, source=ALL_OF_M | {"from": "1", "to": "3"})).json()
    assert await content(client, part) == [line(name) for name in ("b0", "a0", "a1")]
    timed = (await replay(client, source=ALL_OF_M | {"from": "1970-01-01T00:00:06"})).json()
    assert await content(client, timed) == [line("a1"), line("a2")]


async def test_equal_custom_ids_get_their_batch_as_suffix(deps, client):
    """If two batches share an id, every line gets the suffix."""
    deps.history.topics[REQUESTS] = [entry("a", 0, line("r0"), line("r1")), entry("b", 0, line("r0"), at=2)]
    new = (await replay(client, source=ALL_OF_M, model="n")).json()
    found = [orjson.loads(text) for text in await content(client, new)]
    endings = [f"@batch_{batch * 32}" for batch in "aab"]
    assert [each["custom_id"] for each in found] == [
        name + ending for name, ending in zip(["r0", "r1", "r0"], endings, strict=True)
    ]
    assert {each["body"]["model"] for each in found} == {"n"}


async def test_a_dry_run_counts_in_threads(deps, client, monkeypatch):
    """A long line takes milliseconds, in which other requests go on."""
    add, threads = TokenEstimate.add, set()

    def counted(estimate, text):
        threads.add(threading.current_thread())
        add(estimate, text)

    monkeypatch.setattr(TokenEstimate, "add", counted)
    deps.history.topics[REQUESTS] = [entry("a", 0, line("a0"), line("a1")), entry("a", 2, line("a2"))]
    plan = (await replay(client, source=ALL_OF_M, dry_run=True)).json()
    assert plan["lines"] == 3
    assert threads
    assert threading.main_thread() not in threads


async def test_a_dry_run_creates_nothing(deps, client):
    """It estimates also more lines than a batch may have; the role `read` suffices."""
    deps.history.topics[REQUESTS] = [entry("a", n, line(f"a{n}")) for n in range(8)] * 2 + [
        entry("b", 0, line("b0"))
    ]
    reading = {"authorization": f"Bearer {READER}"}
    plan = (await replay(client, reading, source=ALL_OF_M, dry_run=True)).json()
    assert (await replay(client, reading, source=ALL_OF_M)).status_code == 403
    assert deps.log.trail == []
    assert (plan["object"], plan["lines"], plan["batches"], plan["is_too_large"]) == ("replay.plan", 9, 2, True)
    assert (plan["input_tokens"], plan["output_tokens_max"]) == (9 * 14, 45)
    assert plan["cost"]["min"] == "0.000063"
    soon = (await replay(client, reading, source=ALL_OF_M, dry_run=True, completion_window="1h")).json()
    assert soon["cost"]["min"] == "0.000126"
    on_n = (await replay(client, source=ALL_OF_M | {"to": "2"}, model="n", dry_run=True)).json()
    assert ([model["model"] for model in on_n["models"]], on_n["lines"], on_n["is_too_large"]) == (["n"], 2, False)
    assert deps.log.records == []
    refused = await replay(client, source=ALL_OF_M)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "range_too_large")
    assert deps.log.records == []


async def test_a_range_with_several_endpoints(deps, client):
    """A batch has one, so the request must name it."""
    deps.history.topics[REQUESTS] = [
        entry("a", 0, line("a0")), entry("b", 0, line("b0", EMBEDDINGS), url=EMBEDDINGS)
    ]  # fmt: skip
    answer = await replay(client, source=ALL_OF_M)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "source.endpoint")
    new = (await replay(client, source=ALL_OF_M | {"endpoint": EMBEDDINGS})).json()
    assert (new["endpoint"], await content(client, new)) == (EMBEDDINGS, [line("b0", EMBEDDINGS)])


async def test_large_lines_come_from_their_input_file(deps, client):
    """A deleted file is an error."""
    await deps.store.write("files/f", once(b"before" + line("a0") + b"after"))
    ref = LineRef(key="files/f", offset=6, length=len(line("a0")))
    deps.history.topics[REQUESTS] = [entry("a", 0, ref=ref)]
    new = (await replay(client, source=ALL_OF_M)).json()
    assert await content(client, new) == [line("a0")]
    await deps.store.delete("files/f")
    plan = (await replay(client, source=ALL_OF_M, dry_run=True)).json()
    assert (plan["lines"], plan["lost_lines"]) == (0, 1)
    gone = await replay(client, source=ALL_OF_M)
    assert (gone.status_code, gone.json()["error"]["code"]) == (409, "file_gone")


async def test_a_replay_has_lines_of_its_project(deps, client):
    """An operator may name another project, or all; the batch is the operator's."""
    deps.history.topics[REQUESTS] = [entry("a", 0, line("a0")), entry("b", 0, line("b0"), project="q", at=2)]
    for project in ("q", "*"):
        answer = await replay(client, source=ALL_OF_M | {"project": project})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_permissions")
    mine = (await replay(client, source=ALL_OF_M | {"project": "p"}, dry_run=True)).json()
    assert mine["lines"] == 1
    admin = {"authorization": f"Bearer {ADMIN}"}
    every = (await replay(client, admin, source=ALL_OF_M | {"project": "*"}, dry_run=True)).json()
    assert (every["lines"], every["batches"]) == (2, 2)
    theirs = (await replay(client, admin, source=ALL_OF_M | {"project": "q"})).json()
    assert (await client.get(f"/batches/{theirs['id']}", headers=admin)).status_code == 200
    assert (await client.get(f"/batches/{theirs['id']}")).status_code == 404
    none = await replay(client, admin, source=ALL_OF_M)
    assert (none.status_code, none.json()["error"]["code"]) == (409, "no_lines")


async def test_an_idempotency_key_creates_one_replay(deps, client):
    """Also if the log has grown or dropped the lines; another request with the key is refused."""
    deps.history.topics[REQUESTS] = [entry("a", 0, line("a0"))]
    key = {"idempotency-key": "k"}
    first = (await replay(client, key, source=ALL_OF_M)).json()
    deps.history.topics[REQUESTS].append(entry("a", 1, line("a1")))
    assert (await replay(client, key, source=ALL_OF_M)).json() == first
    deps.history.topics.clear()
    assert (await replay(client, key, source=ALL_OF_M)).json() == first
    other = await replay(client, key, source=ALL_OF_M | {"to": "1"})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert len((await client.get("/batches")).json()["data"]) == 1


async def test_the_second_of_two_replays_leaves_no_file(deps, client):
    """Another process has claimed the key first."""
    deps.history.topics[REQUESTS] = [entry("a", 0, line("a0"))]
    sent = deps.log.send

    async def late(topic, key, value, *, headers=()):
        if topic == topics.CLAIMS.name:
            claim = codec.decode_claim(value)
            batch = claim.command.batch.model_copy(update={"input_file_id": "file-theirs"})
            command = claim.command.model_copy(update={"batch": batch})
            await sent(topic, key, codec.encode(claim.model_copy(update={"command": command})))
        return await sent(topic, key, value, headers=headers)

    deps.log.send = late
    made = (await replay(client, {"idempotency-key": "k"}, source=ALL_OF_M)).json()
    assert made["input_file_id"] == "file-theirs"
    assert (await client.get("/files")).json()["data"] == []


async def test_a_replay_of_an_unknown_model(deps, client):
    """The error does not blame retention; lines of a removed model still run."""
    for dry in (True, False):
        wrong = await replay(client, source={"model": "nomodel", "from": "0"}, dry_run=dry)
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")
    none = (await replay(client, source=ALL_OF_M)).json()["error"]
    assert (none["code"], "keeps them for 7 days" in none["message"]) == ("no_lines", True)
    deps.history.topics[topics.requests("former").name] = [entry("a", 0, line("a0"))]
    former = await replay(client, source={"model": "former", "from": "0"}, dry_run=True)
    assert former.json()["lines"] == 1


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "source"),
        ({"source": 5}, 400, "source"),
        ({"source": {}}, 400, "source.model"),
        ({"source": {"batch": "b"}}, 400, "source.model"),
        ({"source": {"model": "m"}}, 400, "source.from"),
        ({"source": {"model": "m", "from": "yesterday"}}, 400, "source.from"),
        ({"source": ALL_OF_M | {"to": "9" * 30}}, 400, "source.to"),
        ({"source": ALL_OF_M | {"endpoint": "/v1/x"}}, 400, "source.endpoint"),
        ({"source": ALL_OF_M | {"project": "a b"}}, 400, "source.project"),
        ({"source": ALL_OF_M, "dry_run": 1}, 400, "dry_run"),
        ({"source": ALL_OF_M, "model": "none"}, 404, "model"),
        ({"source": ALL_OF_M, "completion_window": "1y"}, 400, "completion_window"),
    ],
)
async def test_invalid_replays(deps, client, *, fields, status, param):
    """The error names the invalid field."""
    deps.history.topics[REQUESTS] = [entry("a", 0, line("a0"))]
    answer = await replay(client, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert deps.log.records == []


names = st.text(min_size=1, max_size=3) | st.text(min_size=500, max_size=512)
owners = st.sampled_from([f"batch_{hashlib.sha256(each).hexdigest()[:32]}" for each in (b"a", b"b")])


@given(pairs=st.sets(st.tuples(names, owners), min_size=1, max_size=20))
@settings(deadline=None)
def test_renamed_ids_are_unique_and_short(pairs):
    """For two lines of different batches or ids."""
    found = {renamed(*pair) for pair in pairs}
    assert len(found) == len(pairs)
    assert max(map(len, found)) <= CUSTOM_ID_CHARS_MAX


@given(lines=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=40))
def test_a_spool_returns_each_line_once(lines):
    """Batch by batch in the order of their first records, and in order within."""
    sources = Sources()
    with ReplaySpool() as spool:
        for at, (batch, index) in enumerate(lines):
            if (source := sources.add(f"b{batch}", index, at)) is not None:
                spool.put(source.number, index, b'{"custom_id":"%d-%d"}' % (batch, index))
        found = b"".join(spool.chunks(sources, None)).splitlines()
    order = list(dict.fromkeys(batch for batch, _ in lines))
    expected = sorted(set(lines), key=lambda each: (order.index(each[0]), each[1]))
    assert found == [b'{"custom_id":"%d-%d"}' % each for each in expected]
    assert sources.lines == len(expected)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0", Edge(offset=0)),
        ("42", Edge(offset=42)),
        ("1970-01-01T00:00:01", Edge(at_ms=1000)),
        ("1970-01-01T01:00:01.5+01:00", Edge(at_ms=1500)),
        ("1970-01-02", Edge(at_ms=86_400_000)),
    ],
)
def test_parse_edges(text, found):
    """Offsets and times; without a zone a time is UTC."""
    assert edge(text) == found


@given(text=st.text())
@example("1970-01-01x00:00")
@example("\u0664\u0662")
def test_malformed_edges_are_refused(text):
    """Any other text."""
    assume(re.fullmatch(r"[0-9TWZ:,.+ -]*", text) is None)
    with pytest.raises(ValueError, match="expected an offset"):
        edge(text)

"""Equal lines: the stage publishes the first of each, and lists the others."""

import asyncio
import itertools
import json
import sqlite3
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.catalog import fixed_catalog

from tidemill.configuration.projects import Limits
from tidemill.configuration.settings import Settings
from tidemill.ingest.files.sqlite import EqualLines
from tidemill.ingest.files.stage import FileIngest
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl import copies
from tidemill.schemas.jsonl.lines import Line
from tidemill.schemas.log.messages import Accepted, BatchCreated, InputRef
from tidemill.schemas.log.part import copies_key, verdict_key
from tidemill.schemas.ports import once
from tidemill.schemas.resources.batch import Batch, Extras, Status
from tidemill.schemas.resources.by_model import ModelLines
from tidemill.storage.directory import DirectoryStore

NOW = 1_800_000_000
CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}


def line(number, body):
    """An input line with this body, an object or its text."""
    text = body if isinstance(body, str) else json.dumps(body)
    return f'{{"custom_id":"id-{number}","method":"POST","url":"{CHAT}","body":{text}}}\n'.encode()


def copies_of(bodies, *, endpoint=CHAT, is_forced=False):
    """The indices of the lines that are copies, each with that of its original."""
    with EqualLines(endpoint, is_forced=is_forced) as equal:
        equal.add([Line(n, 0, line(n, body).rstrip()) for n, body in enumerate(bodies)])
        equal.copies(b"")

        async def listed():
            return b"".join([chunk async for chunk in equal.encoded()])

        found = [copies.decode(row) for row in asyncio.run(listed()).splitlines()]
    assert all(bytes(copy.custom_id) == b'"id-%d"' % copy.index for copy in found)
    return {copy.index: copy.original for copy in found}


@pytest.mark.parametrize(
    ("other", "is_equal"),
    [
        (BODY, True),
        (dict(reversed(BODY.items())), True),
        (json.dumps(BODY).replace(", ", " ,\t").replace('"temperature": 0', '"temperature":0'), False),
        (BODY | {"model": "also-m"}, False),
        (BODY | {"seed": 1}, False),
        (BODY | {"seed": (1 << 64) + 1}, False),
        (BODY | {"messages": [{"content": "Hi", "role": "user"}]}, False),
        (BODY | {"temperature": 0.0}, False),
    ],
)
def test_equal_lines_have_the_same_fields_in_any_order_with_the_same_texts(other, is_equal):
    """Inside a field the order counts, and each digit of a number."""
    assert copies_of([BODY, other]) == ({1: 0} if is_equal else {})
    assert copies_of([BODY | {"seed": 1 << 64}, BODY | {"seed": (1 << 64) + 1}]) == {}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("temperature", [None, 0, 0.0, -0.0, 0.5, 1, False, "0", [0]])
def test_only_answers_that_are_deterministic_are_shared(endpoint, temperature):
    """Generated ones at temperature 0, all others; of any line if the batch asks for it."""
    generated = {CHAT, "/v1/completions", "/v1/responses", "/v1/messages"}
    computed = {"/v1/embeddings", "/v1/moderations", "/v1/rerank", "/v1/score", "/v1/classify", "/v1/pooling"}
    is_greedy = type(temperature) is not bool and temperature in (0, 0.0)
    is_shared = endpoint in computed or (endpoint in generated and is_greedy)
    body = {"model": "m"} | ({} if temperature is None else {"temperature": temperature})
    assert copies_of([body, body], endpoint=endpoint) == ({1: 0} if is_shared else {})
    assert copies_of([body, body], endpoint=endpoint, is_forced=True) == {1: 0}


@pytest.mark.parametrize("temperature", ["1e999", "-1e999", "9" * 5_000])
def test_a_temperature_that_no_float_holds_shares_no_answer(temperature):
    """The server may make any number of it, so its answers may differ."""
    body = f'{{"model":"m","temperature":{temperature}}}'
    assert copies_of([body, body]) == {}
    assert copies_of([body, body], is_forced=True) == {1: 0}


class World:
    """A stage, and what it sends."""

    def __init__(self, folder):
        self.store = DirectoryStore(folder)
        self.facts, self.records, self.begun = [], [], None
        backend = {"backends": [{"url": "http://127.0.0.1:9/v1"}]}
        given = Settings(models={"m": backend, "n": backend}, limits=Limits(models_per_batch_max=2))
        catalog = fixed_catalog(given.servers, given.models)
        self.stage = FileIngest(given, catalog=catalog, store=self.store, requests=self, clock=lambda: NOW)

    async def begin(self, batch_id, project):
        assert self.begun or not await self.listed()
        self.begun = (batch_id, project)

    async def send_fact(self, fact):
        assert len(await self.listed()) == fact.copies
        self.facts.append(fact)

    async def publish(self, records):
        self.records.extend([(record.model, record) async for record in records])

    async def listed(self):
        """The list of copies in the store; empty if there is none."""
        keys = [key async for key in self.store.keys(copies_key("batch_1"))]
        chunks = [chunk for key in keys for chunk in [chunk async for chunk in self.store.read(key)]]
        return [copies.decode(row) for row in b"".join(chunks).splitlines()]


def command_of(size):
    """The command for a batch whose equal lines are to be asked once."""
    batch = Batch(
        id="batch_1",
        endpoint=CHAT,
        input_file_id="file-x",
        completion_window="24h",
        status=Status.VALIDATING,
        created_at=NOW,
        expires_at=NOW + 86_400,
        tidemill=Extras(dedupe="batch"),
    )
    return BatchCreated(project="default", batch=batch, input=InputRef(key="files/x", bytes=size))


@settings(deadline=None, max_examples=40)
@given(contents=st.lists(st.integers(0, 9), min_size=1, max_size=400), models=st.sampled_from([["m"], ["m", "n"]]))
def test_the_first_of_equal_lines_is_published_and_the_others_are_listed(tmp_path_factory, contents, models):
    """Any number of any bodies, of one model or several; the same again after a crash, down to the bytes."""
    names = [models[content % len(models)] for content in contents]
    texts = [
        line(n, BODY | {"model": name, "user": str(content)})
        for n, (name, content) in enumerate(zip(names, contents, strict=True))
    ]
    first = [contents.index(content) for content in contents]

    async def publish():
        world = World(tmp_path_factory.mktemp("store"))
        command = command_of(await world.store.write("files/x", once(*texts)))
        await world.stage.handle(command)
        check(world, texts, names, first)
        rows = [(row.original, row.index) for row in await world.listed()]
        assert rows == sorted((original, n) for n, original in enumerate(first) if n != original)
        records, world.records = world.records, []
        for key in (copies_key("batch_1"), verdict_key("batch_1")):
            await world.store.delete(key)
        await world.stage.handle(command)
        assert world.records == records
        assert [(row.original, row.index) for row in await world.listed()] == rows

    asyncio.run(publish())


def check(world, texts, names, first):
    """The fact counts the copies of each model, and each other line is in a record of its model."""
    asked = {n for n, original in enumerate(first) if n == original}
    (fact,) = world.facts
    assert world.begun == ("batch_1", "default")
    assert fact.copies == len(texts) - len(asked)
    if (named := list(dict.fromkeys(names))) == [fact.model]:
        assert fact == Accepted(batch_id="batch_1", total=len(texts), model=named[0], copies=fact.copies, at=NOW)
    else:
        assert fact.models == tuple(
            ModelLines(
                model=model,
                lines=names.count(model),
                copies=sum(n not in asked for n, name in enumerate(names) if name == model),
            )
            for model in named
        )
    published = {}
    for model, record in world.records:
        lines = record.value.split(b"\n")
        published |= dict(zip(record.head.places(len(lines)), zip(lines, itertools.repeat(model)), strict=True))
    assert published == {n: (texts[n].rstrip(), names[n]) for n in asked}


def test_the_end_waits_for_a_thread_that_adds_lines():
    """A task that is cancelled leaves the context while its thread goes on."""
    steps, started, go = [], threading.Event(), threading.Event()
    equal = EqualLines(CHAT, is_forced=True)

    def lines():
        for number in range(3):
            yield Line(number, 0, line(number, BODY).rstrip())
            started.set()
            go.wait()
        steps.append("added")

    def end():
        with equal:
            pass
        steps.append("closed")

    adds, ends = threading.Thread(target=equal.add, args=(lines(),)), threading.Thread(target=end)
    adds.start()
    started.wait()
    ends.start()
    ends.join(0.05)
    go.set()
    for thread in (adds, ends):
        thread.join()
    assert steps == ["added", "closed"]


def test_a_full_disk_is_an_error_that_passes():
    """So the stage tries again, in place of a rejection."""
    with pytest.raises(OSError, match="disk"), EqualLines(CHAT, is_forced=True):
        raise sqlite3.OperationalError("database or disk is full")

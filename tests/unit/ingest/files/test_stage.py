"""The stage on a store in a folder; facts and requests are collected instead of sent."""

import asyncio
import functools
import json

import pytest
from support.file_stage import MESSAGES, NOW, URL, Here, created, input_lines
from support.waiting import until

from tidemill import retrying
from tidemill.configuration.catalog import Entry
from tidemill.configuration.projects import Limits
from tidemill.ingest.files import stage as module
from tidemill.ingest.files.packing import SLICE_LINES
from tidemill.ingest.files.validation import LONG_LINE_BYTES
from tidemill.ingest.files.verdict import INTERNAL_FAULT
from tidemill.schemas.log.messages import Accepted, CancelRequested, Rejected
from tidemill.schemas.log.part import schema_key
from tidemill.schemas.ports import READ_BYTES
from tidemill.schemas.resources.by_model import ModelLines
from tidemill.storage.directory import DirectoryStore


@pytest.fixture
def here(tmp_path):
    """A stage."""
    return Here(DirectoryStore(tmp_path))


async def test_a_file_is_accepted_and_published(here):
    """`Accepted` comes first; the lines are unchanged, in the topic of their model."""
    data = input_lines(100)
    await here.stage.handle(await here.batch("batch_1", data))
    assert here.requests.facts == [Accepted(batch_id="batch_1", total=100, model="m", at=NOW)]
    assert here.requests.lines("batch_1") == data
    assert {model for model, _ in here.requests.records} == {"m"}
    head = here.requests.records[0][1].head
    assert (head.project, head.deadline, head.url, head.first) == ("default", NOW + 86_400, URL, 0)


async def test_lines_go_to_the_topics_of_their_models(tmp_path):
    """Where the project may: the fact counts each model's lines, and aliases are models."""
    here = Here(DirectoryStore(tmp_path), limits=Limits(models_per_batch_max=2))
    data = input_lines(500, "n", "m", "n", "also-n", "m")
    await here.stage.handle(await here.batch("batch_1", data))
    of = (ModelLines(model="n", lines=300), ModelLines(model="m", lines=200))
    assert here.requests.facts == [Accepted(batch_id="batch_1", total=500, models=of, at=NOW)]
    lines = {}
    for model, record in here.requests.records:
        texts = record.value.split(b"\n")
        for index, text in zip(record.head.places(len(texts)), texts, strict=True):
            assert (json.loads(text)["body"]["model"] == "m") is (model == "m")
            lines[index] = text
    assert b"".join(lines[index] + b"\n" for index in range(500)) == data


@pytest.mark.parametrize(
    ("most", "lines", "words"),
    [
        (1, [2, 3, 6, 7], "this one began with 'm'"),
        (2, [3, 7], "requests for 2 models (limit: models_per_batch_max)"),
    ],
)
async def test_one_model_too_many_fails_the_batch(tmp_path, most, lines, words):
    """Each line that names it is listed."""
    here = Here(DirectoryStore(tmp_path), limits=Limits(models_per_batch_max=most))
    await here.stage.handle(await here.batch("batch_1", input_lines(7, "m", "n", "third", "m")))
    (rejected,) = here.requests.facts
    assert [(error.line, error.code, error.param) for error in rejected.errors] == [
        (line, "mismatched_model", "body.model") for line in lines
    ]
    assert all(words in error.message for error in rejected.errors)
    assert here.requests.records == []


async def test_a_faulty_file_is_rejected_whole(here):
    """The fact has all faults, and no line is published."""
    await here.stage.handle(await here.batch("batch_1", input_lines(40) + b"x\n\n{}\n" + input_lines(1)))
    (rejected,) = here.requests.facts
    assert isinstance(rejected, Rejected)
    assert [(error.line, error.code) for error in rejected.errors] == [
        (41, "invalid_json_line"),
        (43, "missing_required_parameter"),
        (44, "duplicate_custom_id"),
    ]
    assert here.requests.records == []


@pytest.mark.parametrize("models_max", [1, 2])
async def test_an_invalid_request_for_messages_fails_alone(tmp_path, models_max):
    """Whatever is wrong with it: the first one names a model that no valid one names, unless there may be two."""
    here = Here(DirectoryStore(tmp_path), limits=Limits(models_per_batch_max=models_max))

    def line(number, model="m", **body):
        body = {"model": model, "messages": [], "max_tokens": 1, **body}
        return json.dumps({"custom_id": str(number), "method": "POST", "url": MESSAGES, "body": body}).encode()

    lines = [line(0, "n", max_tokens="x"), *map(line, range(1, 600)), line(600, "gone"), line(5), b"x" * 70_000]
    lines += [line(603, "n"), line(604)]
    await here.stage.handle(await here.batch("batch_1", b"\n\n".join(lines), MESSAGES))
    (accepted,) = here.requests.facts
    assert (accepted.total, [one.lines for one in accepted.models]) == (605, [604, 1] if models_max > 1 else [])
    codes = {index: found["error"]["code"] for index, found in here.requests.refused.items()}
    assert codes.pop(603, "mismatched_model") == "mismatched_model"
    assert codes == {
        0: "invalid_type",
        600: "model_not_found",
        601: "duplicate_custom_id",
        602: "invalid_json_line",
    }
    assert {here.requests.refused[index]["custom_id"] for index in codes} == {"0", "600", "5", None}
    published = {
        index: (model, text)
        for model, record in here.requests.records
        for texts in [record.value.split(b"\n")]
        for index, text in zip(record.head.places(len(texts)), texts, strict=True)
    }
    assert published.keys() == set(range(605)) - here.requests.refused.keys()
    assert all(text == lines[index] for index, (_, text) in published.items())
    assert {model for index, (model, _) in published.items() if index != 603} == {"m"}
    assert (603 in published) is (models_max > 1)


async def test_a_file_without_a_valid_request_for_messages_is_rejected(here):
    """Its errors are listed, as on any endpoint."""
    await here.stage.handle(await here.batch("batch_1", b"x\ny", MESSAGES))
    (rejected,) = here.requests.facts
    assert [error.code for error in rejected.errors] == ["invalid_json_line"] * 2


@pytest.mark.parametrize("key", [None, "files/gone"])
async def test_a_missing_file_is_rejected(here, key):
    """Whether it never existed or was deleted."""
    await here.stage.handle(created("batch_1", key, 10))
    (rejected,) = here.requests.facts
    assert isinstance(rejected, Rejected)
    assert rejected.errors[0].message.startswith("Cannot find file file-x, or organization default does not have")


async def test_too_large_a_file_is_not_read(tmp_path):
    """The first lines give the model; the stage reads one chunk."""
    here = Here(DirectoryStore(tmp_path), file_bytes_max=3 * READ_BYTES)
    await here.stage.handle(await here.batch("batch_1", input_lines(40_000)))
    (rejected,) = here.requests.facts
    assert isinstance(rejected, Rejected)
    most = 3 * READ_BYTES
    assert rejected.errors[0].message == f"The batch input file is larger than the {most} maximum for the m model"


async def test_a_file_with_too_many_lines_is_rejected(tmp_path):
    """The fact has one error, of the file."""
    here = Here(DirectoryStore(tmp_path), file_lines_max=99)
    await here.stage.handle(await here.batch("batch_1", input_lines(100)))
    (rejected,) = here.requests.facts
    assert isinstance(rejected, Rejected)
    assert [error.code for error in rejected.errors] == ["too_many_tasks"]


@pytest.mark.parametrize("how", ["expired", "cancelled", "rejected", "published"])
async def test_the_schema_is_stored_whatever_becomes_of_the_batch(here, how):
    """A rerun of the batch needs it; it is sealed like what the store has of the lines."""
    command = await here.batch("batch_1", b"" if how == "rejected" else input_lines(3))
    command = command.model_copy(update={"answer_schema": "{}"})
    if how == "expired":
        here.now = command.batch.expires_at + 1.0
    handling = asyncio.create_task(here.stage.handle(command))
    await asyncio.sleep(0)
    if how == "cancelled":
        await here.stage.handle(CancelRequested(batch_id="batch_1", at=NOW))
    await handling
    assert bool(here.requests.records) is (how == "published")
    assert b"".join([chunk async for chunk in here.store.read(schema_key("batch_1"))]) == b"{}"
    assert here.requests.begun == {"batch_1"}


async def test_a_failure_of_store_or_log_is_retried(here, monkeypatch):
    """The command is done only once they work again."""
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 0.001)
    here.requests.failures = 3
    data = input_lines(10)
    await here.stage.handle(await here.batch("batch_1", data))
    assert len(here.requests.facts) == 1
    assert here.requests.lines("batch_1") == data


async def test_a_model_that_was_just_added_is_known(here, monkeypatch):
    """The stage reads the catalog to its end before it rejects a batch; a removed model is unknown."""
    entry = Entry(settings={"servers": ["127.0.0.1:9"]}, author="k", at=1)

    async def catch_up(*, removed):
        value = entry.model_copy(update={"removed": removed}).model_dump_json().encode()
        here.catalog.apply("model/new", value, here.catalog.contents.revision + 1)

    command = await here.batch("batch_1", input_lines(3, "new"))
    for removed, kind in ((False, Accepted), (True, Accepted), (True, Rejected)):
        monkeypatch.setattr(here.catalog, "catch_up", functools.partial(catch_up, removed=removed))
        await here.stage.handle(command)
        assert isinstance(here.requests.facts[-1], kind)
        if removed:
            await here.catalog.catch_up()


async def test_no_work_after_the_deadline(here):
    """A batch that is over is not checked."""
    command = await here.batch("batch_1", input_lines(10))
    here.now = NOW + 86_400
    await here.stage.handle(command)
    assert (here.requests.facts, here.requests.records) == ([], [])


async def test_a_cancelled_batch_stops(here):
    """A cancellation stops the publishing of a file."""
    wait: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    here.requests.gate = lambda record: wait if record.head.first >= 64 else None
    handling = asyncio.create_task(here.stage.handle(await here.batch("batch_1", input_lines(20_000))))
    await until(lambda: here.requests.records and here.requests.records[-1][1].head.first >= 64)
    await here.stage.handle(CancelRequested(batch_id="batch_1", at=NOW))
    await here.stage.handle(CancelRequested(batch_id="batch_unknown", at=NOW))
    wait.set_result(None)
    await handling
    assert 0 < len(here.requests.lines("batch_1").splitlines()) < 1_000


async def test_the_check_of_a_long_line_leaves_half_of_the_time_to_others(here, pauses):
    """It pauses as long as it works; short lines need no pause."""
    short = input_lines(3)
    await here.stage.handle(await here.batch("batch_1", short))
    assert not any(pauses)
    long = short.splitlines()[0].replace(b"[]", b"[" + b"[]," * LONG_LINE_BYTES + b"[]]")
    await here.stage.handle(await here.batch("batch_2", long))
    assert any(pauses)


async def test_a_batch_cancelled_before_the_check_has_its_number_of_lines(here):
    """No line is published, so that each ends as a cancelled one."""
    handling = asyncio.create_task(here.stage.handle(await here.batch("batch_1", input_lines(300))))
    await asyncio.sleep(0)
    await here.stage.handle(CancelRequested(batch_id="batch_1", at=NOW))
    await handling
    assert here.requests.facts == [Accepted(batch_id="batch_1", total=300, model="m", at=NOW)]
    assert here.requests.records == []


async def test_a_command_that_comes_again_publishes_the_same(here):
    """The records and keys are equal."""
    command = await here.batch("batch_1", input_lines(3_000))
    await here.stage.handle(command)
    first = list(here.requests.records)
    here.requests.records.clear()
    await here.stage.handle(command)
    assert here.requests.records == first


async def test_small_batches_pass_big_ones(here, monkeypatch):
    """A small file is checked at once, however many big ones wait."""
    monkeypatch.setattr(module, "BIG_BYTES_MIN", 10_000)
    wait: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    here.requests.gate = lambda record: wait if record.head.batch_id.startswith("batch_big") else None
    big = [await here.batch(f"batch_big{number}", input_lines(200)) for number in range(5)]
    handling = [asyncio.create_task(here.stage.handle(command)) for command in big]
    await until(lambda: len(here.requests.records) == module.BIG_AT_ONCE_MAX)
    small = await here.batch("batch_small", input_lines(3))
    await here.stage.handle(small)
    assert here.requests.lines("batch_small") == input_lines(3)
    wait.set_result(None)
    await asyncio.gather(*handling)
    assert all(here.requests.lines(command.batch.id) == input_lines(200) for command in big)


async def test_a_fault_of_the_check_itself_rejects_the_batch(here, monkeypatch):
    """The error is the server's; it neither stops the stage nor comes again."""
    monkeypatch.setattr(module.Checker, "check", {}.__getitem__)
    await here.stage.handle(await here.batch("batch_1", input_lines(1)))
    (rejected,) = here.requests.facts
    assert isinstance(rejected, Rejected)
    assert rejected.errors == (INTERNAL_FAULT,)


async def test_a_big_file_lets_others_run(here):
    """The event loop runs other tasks many times while a file is checked and published."""
    turns = 0
    done = asyncio.Event()

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await here.stage.handle(await here.batch("batch_1", input_lines(20_000)))
    done.set()
    await counting
    assert turns > 2 * 20_000 / SLICE_LINES

"""Ingest dies while it publishes a batch, and models or limits change before the command comes again."""

import asyncio
import json

import pytest
from support.catalog import fixed_catalog

from tidemill.configuration.projects import Limits
from tidemill.configuration.settings import Settings
from tidemill.ingest.files.stage import FileIngest
from tidemill.schemas import endpoints
from tidemill.schemas.jsonl import copies
from tidemill.schemas.log.messages import Accepted, BatchCreated, InputRef, Rejected
from tidemill.schemas.log.part import copies_key, verdict_key
from tidemill.schemas.log.topics import EXPRESS_LINES_MAX
from tidemill.schemas.ports import NotFound, once
from tidemill.schemas.resources.batch import Batch, Extras, Status
from tidemill.storage.directory import DirectoryStore
from tidemill.storage.s3_errors import Refused

NOW = 1_800_000_000
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
SERVED = {"backends": [{"url": "http://127.0.0.1:9/v1"}], "endpoints": [CHAT, MESSAGES]}


def line(number, model, text="", url=CHAT):
    body = {"model": model, "max_tokens": 5, "temperature": 0, "messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": f"id-{number}", "method": "POST", "url": url, "body": body}).encode() + b"\n"


class Attempts:
    """Attempts of ingest at one batch, each by a process of its own."""

    def __init__(self, folder, *lines, url=CHAT):
        self.store, self.lines, self.url = DirectoryStore(folder), lines, url
        self.facts, self.published, self.refused, self.is_dying = [], {}, {}, False
        self.failures = 0
        """Publications that fail before one succeeds, or the process dies."""

    async def attempt(self, models, *, dies=False, **settings):
        """Handle the command with these models (a mapping gives their aliases) and settings."""
        self.is_dying = dies
        aliases = models if isinstance(models, dict) else dict.fromkeys(models, ())
        settings = {"limits": Limits(models_per_batch_max=2)} | settings
        given = Settings(
            models={model: SERVED | {"aliases": list(aliases[model])} for model in aliases}, **settings
        )
        catalog = fixed_catalog(given.servers, given.models)
        stage = FileIngest(given, catalog=catalog, store=self.store, requests=self, clock=lambda: NOW)
        size = await self.store.write("files/x", once(*self.lines))
        batch = Batch(
            id="batch_1", endpoint=self.url, input_file_id="file-x", completion_window="24h",
            status=Status.VALIDATING, created_at=NOW, expires_at=NOW + 86_400, tidemill=Extras(dedupe="batch"),
        )  # fmt: skip
        command = BatchCreated(project="default", batch=batch, input=InputRef(key="files/x", bytes=size))
        try:
            await stage.handle(command)
        except asyncio.CancelledError:
            assert dies
        else:
            assert not dies

    async def begin(self, batch_id, project):
        del batch_id, project

    async def send_fact(self, fact):
        self.facts.append(fact)

    async def refuse(self, batch_id, marks, value, *, model):
        del batch_id, model
        self._die()
        self.refused |= dict(zip((mark.index for mark in marks), map(json.loads, value.splitlines()), strict=True))

    async def publish(self, records):
        async for record in records:
            self._die()
            count = record.value.count(b"\n") + 1 if record.value else 1
            self.published |= dict.fromkeys(record.head.places(count), record.model)

    def _die(self):
        if self.failures:
            self.failures -= 1
            raise OSError
        if self.is_dying:
            raise asyncio.CancelledError

    async def check(self):
        """The log has each line that `Accepted` counts, with the model that it names; the others are copies."""
        first, again = self.facts
        assert isinstance(first, Accepted)
        assert again == first
        content = b"".join(
            [chunk async for chunk in self.store.read(copies_key("batch_1"))] if first.copies else []
        )
        copied = [copies.decode(row).index for row in content.splitlines()]
        assert sorted([*self.published, *self.refused, *copied]) == list(range(first.total))
        assert len(copied) == first.copies


EQUAL = (("m", "a"), ("m", "a"), ("m", "a"), ("n", "b"), ("m", "c"))


@pytest.mark.parametrize("copied", [True, False])
async def test_faults_and_copies_stay_those_of_the_verdict(tmp_path, copied):
    """A model of Anthropic's face was removed, or added: its lines keep their result."""
    lines = [line(number, model, text, MESSAGES) for number, (model, text) in enumerate(EQUAL)]
    attempts = Attempts(tmp_path, *lines, url=MESSAGES)
    both, one = ["m", "n"], ["m"]
    await attempts.attempt(both if copied else one, dies=True)
    await attempts.attempt(one if copied else both)
    await attempts.check()
    assert attempts.facts[0].copies == (2 if copied else 0)
    if not copied:
        (refused,) = attempts.refused.values()
        assert (refused["custom_id"], refused["error"]["code"]) == ("id-3", "invalid_request")


@pytest.mark.parametrize(
    "changed",
    [
        {"limits": Limits(models_per_batch_max=1)},
        {"file_lines_max": 99},
        {"file_bytes_max": 9},
        {"line_bytes_max": 1 << 16},
    ],
)
async def test_a_lower_limit_stops_no_batch_that_runs(tmp_path, changed):
    """Results would ignore the rejection, and wait for the other lines until the deadline."""
    lines = [line(number, "mn"[number % 2]) for number in range(200)]
    attempts = Attempts(tmp_path, *lines, line(200, "m", "x" * (1 << 17)))
    await attempts.attempt("mn", dies=True)
    await attempts.attempt("mn", **changed)
    await attempts.check()


class TwoOwners(DirectoryStore):
    """The store of an owner that looks for a verdict just before another one keeps it."""

    is_blind = True

    async def read(self, key, *edges):
        if key == verdict_key("batch_1") and self.is_blind:
            self.is_blind = False
            raise NotFound(key)
        async for chunk in super().read(key, *edges):
            yield chunk


@pytest.mark.parametrize(
    ("url", "first", "second"),
    [(MESSAGES, "mn", "m"), (MESSAGES, "m", "mn"), (CHAT, "mn", "m"), (CHAT, "m", "mn")],
)
async def test_two_owners_have_one_verdict(tmp_path, url, first, second):
    """Else one would publish by another verdict than the one that results has: a line that is neither is lost.

    For Anthropic's face a removed model is a fault of its lines, and for the others one of the whole file.
    """
    attempts = Attempts(tmp_path, *(line(number, *of, url) for number, of in enumerate(EQUAL)), url=url)
    fails = url == CHAT and first == "m"
    await attempts.attempt(first, dies=not fails)
    attempts.store = TwoOwners(tmp_path)
    await attempts.attempt(second)
    if fails:
        rejected, again = attempts.facts
        assert isinstance(rejected, Rejected)
        assert again == rejected
    else:
        await attempts.check()


async def test_an_alias_that_moves_takes_no_line_along(tmp_path):
    """All lines run on the model that the log names."""
    lines = [line(number, "a", str(number)) for number in range(EXPRESS_LINES_MAX + 1)]
    attempts = Attempts(tmp_path, *lines)
    await attempts.attempt({"m": ("a",), "n": ()}, dies=True)
    await attempts.attempt({"m": (), "n": ("a",)})
    await attempts.check()
    assert set(attempts.published.values()) == {"m"}


async def test_a_small_plain_batch_costs_no_write(tmp_path):
    """Of one model, without faults and copies."""
    attempts = Attempts(tmp_path, *(line(number, "m", str(number)) for number in range(EXPRESS_LINES_MAX)))
    await attempts.attempt("mn")
    assert not [key async for key in attempts.store.keys(verdict_key("batch_1"))]


async def test_the_verdict_on_a_small_plain_batch_is_kept_if_its_publication_fails(tmp_path):
    """It may fail for hours, and models may change meanwhile."""
    attempts = Attempts(tmp_path, line(0, "m", "a"), line(1, "m", "b"))
    attempts.failures = 1
    await attempts.attempt("mn", dies=True)
    await attempts.attempt("n")
    await attempts.check()


async def test_a_store_without_the_right_to_list_has_no_verdict(tmp_path):
    """S3 then refuses a missing key, in place of saying that it is missing."""
    attempts = Attempts(tmp_path, line(1, "m"))

    class Secretive(DirectoryStore):
        async def read(self, key, *edges):
            try:
                async for chunk in super().read(key, *edges):
                    yield chunk
            except NotFound as error:
                raise Refused("AccessDenied") from error

    attempts.store = Secretive(tmp_path)
    await attempts.attempt(["m"])
    assert [type(fact) for fact in attempts.facts] == [Accepted]
    assert attempts.published.keys() == {0}


async def test_a_damaged_verdict_is_made_again(tmp_path, caplog):
    """The batch goes on."""
    attempts = Attempts(tmp_path, *(line(number, "mn"[number % 2]) for number in range(2)))
    await attempts.attempt("mn", dies=True)
    await attempts.store.write(verdict_key("batch_1"), once(b"{"))
    await attempts.attempt("mn")
    await attempts.check()
    assert "is damaged" in caplog.text


async def test_a_removed_endpoint_is_named(tmp_path):
    """Its batch was created while the settings had it."""
    mine = "/v1/mine"
    attempts = Attempts(tmp_path, line(0, "m", url=mine), url=mine)
    assert mine not in endpoints.ENDPOINTS
    await attempts.attempt("m")
    (rejected,) = attempts.facts
    assert isinstance(rejected, Rejected)
    (error,) = rejected.errors
    assert (error.code, error.line) == ("invalid_url", 1)
    assert error.message == "The endpoint '/v1/mine' was removed from the settings."

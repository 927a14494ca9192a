"""`tidemill doctor` against a whole service."""

import asyncio
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
from support.backend import Backend
from support.catalog import change
from support.waiting import WAIT_SECONDS_MAX

from tidemill.kafka.producer import Log
from tidemill.schemas.log import topics
from tidemill.storage.owner import KEY

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]


def doctor(stack, *arguments, **environ):
    """Exit code and output."""
    command = [sys.executable, "-m", "tidemill", "doctor", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        env={**stack._environ(), **environ},
    )
    return done.returncode, done.stdout + done.stderr


def test_a_healthy_service(stack):
    """Each check has its line."""
    code, words = doctor(stack, "--data", str(stack.data))
    assert code == 0, words
    for what in ("kafka", "topics", "keys", "clock", "store", "disk of"):
        assert f"ok    {what}" in words or f"warn  {what}" in words, words
    assert words.splitlines()[-1].endswith("0 fail")


def test_an_unsigned_record_of_keys(stack):
    """It is counted, and has no effect."""
    asyncio.run(write(stack.cluster(), topics.KEYS.name, "key_forged", b"{}"))
    code, words = doctor(stack, "--data", str(stack.data))
    assert code == 0, words
    assert re.search(
        r"warn  keys: \d+ of \d+ records? (is|are) not signed by the api and (has|have) no effect", words
    )


async def write(kafka, topic, key, value):
    log = Log(kafka)
    await log.send(topic, key, value)
    await log.stop()


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "no object `owner`"), (b'{"identity":"x/y","files":0}', "another log"), (b"", None)],
)
def test_a_store_that_is_not_the_logs(stack, tmp_path, content, text):
    """It is not mounted, or another installation's; an empty object gives it to this log."""
    asyncio.run(write(stack.cluster(), topics.FILES.name, "file-gone", None))
    store = tmp_path / "store"
    store.mkdir()
    if content is not None:
        (store / KEY).write_bytes(content)
    code, words = doctor(stack, "--data", str(stack.data), TIDEMILL_STORE=store.as_uri())
    assert (code == 1, "-> give this" in words or "-> mount" in words) == (text is not None,) * 2, words
    assert text is None or text in words


def test_a_store_whose_folder_is_gone(stack, tmp_path):
    """Its disk is not mounted, so the api takes nothing; a log without files has no store yet."""
    asyncio.run(write(stack.cluster(), topics.FILES.name, "file-gone", None))
    code, words = doctor(stack, "--data", str(stack.data), TIDEMILL_STORE=(tmp_path / "store").as_uri())
    assert code == 1, words
    assert f"fail  store: {tmp_path}/store does not exist: the store has no object `owner`" in words
    assert "-> mount or restore it" in words
    assert not list(tmp_path.iterdir())


def test_a_broker_that_does_not_answer(stack, tmp_path):
    """Only this check fails, with a remedy; the checks without Kafka run."""
    code, words = doctor(stack, TIDEMILL_KAFKA="127.0.0.1:1", TIDEMILL_DATA=str(tmp_path))
    assert code == 1
    assert "fail  kafka: 127.0.0.1:1 does not answer" in words
    assert "-> check the address" in words
    assert re.search(r", 1 fail$", words, re.MULTILINE)
    assert "Unable connect" not in words
    assert f"warn  store: {tmp_path}/store does not exist yet" in words
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in words


def test_a_backend_that_does_not_answer(stack, tmp_path):
    """A warning: lines wait for it."""
    with added(stack, "http://127.0.0.1:1/v1"):
        code, words = doctor(stack, **of_the_service(stack), TIDEMILL_DATA=str(tmp_path))
    assert code == 0, words
    assert "warn  server s (http://127.0.0.1:1/v1): GET /models: Connection refused" in words


def test_a_backend_that_lacks_an_endpoint(stack, tmp_path):
    """Batches for this endpoint could only fail."""
    with Backend() as server:
        server.lists = ("m",)
        server.lacks = frozenset({"/v1/embeddings"})
        with added(stack, server.url):
            code, words = doctor(stack, **of_the_service(stack), TIDEMILL_DATA=str(tmp_path))
    assert code == 0, words
    assert f"({server.url}): serves m, but not at /v1/embeddings" in words
    assert 'endpoints = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]' in words


def of_the_service(stack):
    """Its Kafka and its store, for a command in another folder."""
    return {**stack.way_in("operator"), "TIDEMILL_STORE": (stack.data / "store").as_uri()}


@contextmanager
def added(stack, url):
    """A server and a model of the service, for as long as the block lasts."""
    settings = {"server/s": {"url": url}, "model/m": {"servers": ["s"]}}
    asyncio.run(change(stack.cluster(), settings))
    try:
        yield
    finally:
        asyncio.run(change(stack.cluster(), dict.fromkeys(settings)))

"""The lines of the log: one an event, with ids, and without words that may quote a user."""

import json
import logging
import sys

import pytest
from pydantic import BaseModel, ValidationError

from tidemill.configuration.connections import Logs
from tidemill.configuration.settings import SettingsError
from tidemill.runtime.heartbeat import Dead
from tidemill.runtime.watchdog import Symptom
from tidemill.schemas import ids
from tidemill.schemas.log.codec import DecodeError
from tidemill.telemetry import context, logs

BATCH = ids.new_batch_id()
WORDS = "hu" + "sh"
"""In pieces: a traceback shows the source."""
FORGED = "a\nb\r\x1b[31m\u2028c\u202ed\x85e"


def record(text, *args, name="tidemill.x", error=None, **fields):
    exc_info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord(name, logging.WARNING, __file__, 1, text, args, exc_info)
    made.__dict__.update(fields)
    return made


def as_json(made):
    (line,) = logs.Json("results").format(made).splitlines()
    return json.loads(line)


def raised(work):
    with pytest.raises((DecodeError, KeyError, ValueError)) as caught:
        work()
    return caught.value


class Body(BaseModel):
    """Its errors quote what is wrong."""

    model: int


def test_a_line_has_ids_and_fields_of_the_list_only():
    """Those of the present work, of the arguments and of the record."""
    with context.bound(batch_id="batch_x", request_id="req_1", trace_id=""):
        line = as_json(record("%d lines", 3, status=404, args_of_a_library="hush"))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning", "stage": "results", "logger": "tidemill.x", "message": "3 lines",
        "batch_id": "batch_x", "request_id": "req_1", "status": 404,
    }  # fmt: skip
    with context.bound(batch_id="batch_x"):
        assert as_json(record("%s is published", BATCH))["batch_id"] == BATCH
    assert "batch_id" not in as_json(record("ready"))


def test_people_read_the_same_on_one_line():
    """The ids follow the message."""
    with context.bound(request_id="req_1"):
        line = logs.Text("api").format(record("404 for %s", "/v1", status=404))
    assert line.split(" ", 1)[1] == "WARNING api tidemill.x: 404 for /v1 request_id=req_1 status=404"


@pytest.mark.parametrize("make", [logs.Json, logs.Text])
def test_no_text_begins_a_line_of_its_own(make):
    """Nor moves the cursor, colours a terminal, or changes the direction of writing."""
    error = raised(lambda: (_ for _ in ()).throw(DecodeError(FORGED)))
    for made in (record(f"odd {FORGED}"), record("odd %s", FORGED), record("odd", batch_id=FORGED)):
        line = make("api").format(made)
        assert len(line.splitlines()) == 1
        assert not set("\x1b\x85\u2028") & set(line)
    assert not set("\x1b\x85\u2028") & set(make("api").format(record("odd", error=error)))


@pytest.mark.parametrize("make", [logs.Json, logs.Text])
def test_errors_of_the_installation_keep_their_words(make):
    """An operator reads there why a process has ended."""
    assert f"Dead: {Symptom.POLL_ENDED}" in make("api").format(record("%s", Dead(Symptom.POLL_ENDED)))
    assert "SettingsError: kafka: wrong" in make("api").format(record("%s", SettingsError("kafka: wrong")))


@pytest.mark.parametrize("make", [logs.Json, logs.Text])
def test_tracebacks_and_arguments_show_no_words_of_errors(make):
    """Only kinds and places, also of causes; the words of the system and of our own errors stay."""

    def caused():
        try:
            Body.model_validate({"model": WORDS})
        except ValidationError as error:
            raise KeyError(WORDS) from error

    line = make("api").format(record("a call failed: %s", ValueError(WORDS), error=raised(caused)))
    assert WORDS not in line
    assert "a call failed: ValueError" in line
    assert "KeyError" in line
    assert "because of ValidationError" in line
    assert "test_logs.py" in line
    error = OSError(28, "No space left on device", "/hush")
    assert "OSError: No space left on device" in make("api").format(record("%s", error))
    assert "hush" not in make("api").format(record("%s", error, error=error))


def test_the_loop_shows_no_tasks():
    """Their description has the words of an error."""
    made = record("Task exception was never retrieved\nfuture: <Task ValueError('hush')>", name="asyncio")
    assert as_json(made)["message"] == "Task exception was never retrieved"


def test_a_chain_of_errors_is_bounded():
    """And so is a message."""

    def chained(depth):
        if not depth:
            raise ValueError
        try:
            chained(depth - 1)
        except ValueError as error:
            raise ValueError from error

    text = logs.Text("api").format(record("x" * 100_000, error=raised(lambda: chained(50))))
    assert text.count("because of") == logs.CAUSES_MAX - 1
    assert text.count('File "') <= logs.CAUSES_MAX * logs.FRAMES_MAX
    assert text.count("x" * 1000) <= logs.MESSAGE_CHARS_MAX // 1000


@pytest.mark.parametrize(
    ("form", "is_terminal", "is_json"),
    [("auto", False, True), ("auto", True, False), ("json", True, True), ("text", False, False)],
)
def test_a_terminal_gets_text(monkeypatch, capsys, form, is_terminal, is_json):
    """Everything else JSON, unless the settings say otherwise; libraries stay at warnings."""
    root, ours = logging.getLogger(), logging.getLogger("tidemill")
    before = root.handlers[:], root.level, ours.level, sys.excepthook
    monkeypatch.setattr("threading.excepthook", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    try:
        logs.set_up("api", Logs(format=form, level="debug"))
        logging.getLogger("botocore.endpoint").debug("hush")
        logging.getLogger("tidemill.y").debug("a line")
        sys.excepthook(ValueError, ValueError("hush"), None)
    finally:
        root.handlers[:], level, our_level, sys.excepthook = before
        root.setLevel(level)
        ours.setLevel(our_level)
        logging.captureWarnings(capture=False)
    said = capsys.readouterr().err
    assert "hush" not in said
    assert [line.startswith("{") for line in said.splitlines() if line[0] != " "] == [is_json] * 2

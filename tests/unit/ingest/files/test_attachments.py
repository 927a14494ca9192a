"""Files that lines name: those in the line, uploaded ones, and every way to name none."""

import base64

import pytest
from support.checking import fault, line, rules

from tidemill.ingest.files import attachments as module
from tidemill.ingest.files import validation
from tidemill.ingest.files.validation import Checker
from tidemill.ingest.files.verdict import Failed, Passed
from tidemill.schemas import ids
from tidemill.schemas.jsonl import attachments
from tidemill.schemas.jsonl.attachments import BYTES_MAX, FILES_MAX
from tidemill.schemas.jsonl.lines import Splitter
from tidemill.schemas.log.part import file_key
from tidemill.storage.directory import DirectoryStore

AUDIO, EDITS = "/v1/audio/transcriptions", "/v1/images/edits"
WAV, PNG = b"RIFF\x00\x00\x00\x00WAVEfmt ", b"\x89PNG\r\n\x1a\n"
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
SOUND = "data:audio/wav;base64," + base64.b64encode(WAV).decode()
NEITHER = "expected a data URL or the id of an uploaded file; no address is fetched"
FORM = "expected a data URL or a file id, or an object with one as file_id or image_url"
PROJECT = "p"


def of(path):
    """The rules of a batch of the project."""
    return rules(path, project=PROJECT)


@pytest.fixture(params=[False, True], ids=["short", "long"])
def _any_length(request, monkeypatch):
    """A long line is checked without decoding its values."""
    if request.param:
        monkeypatch.setattr(validation, "LONG_LINE_BYTES", 0)


@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("image", "https://example.com/a.png", NEITHER),
        ("image", "http://127.0.0.1/", NEITHER),
        ("image", "file:///etc/passwd", NEITHER),
        ("image", "", NEITHER),
        ("image", "../../files/x", NEITHER),
        ("mask", {"image_url": "https://example.com/a.png"}, NEITHER),
        ("image", "data:image/png,x", "expected a data URL of the form data:TYPE;base64,DATA"),
        ("image", "data:image/png;base64,?", "its data URL is not valid base64"),
        ("image", "data:audio/wav;base64,eA==", "expected a file of the type image/…, but got audio/wav"),
        ("image", [], f"expected 1 to {FILES_MAX} files, but got 0"),
        ("image", [URL] * (FILES_MAX + 1), f"expected 1 to {FILES_MAX} files, but got {FILES_MAX + 1}"),
        ("mask", [URL] * FILES_MAX, f"expected at most {FILES_MAX} files, but got {FILES_MAX + 1}"),
        ("image", [{}], FORM),
        ("image", [[URL]], FORM),
        ("image", {"image_url": URL, "file_id": URL}, FORM),
        ("mask", 7, FORM),
        (
            "image",
            ids.owned_file_id("file-0123456789abcdefghijkl", "other"),
            "the project has not uploaded this file",
        ),
    ],
)
def test_a_field_that_names_no_file(field, value, text):
    """It has an exact fault, and nothing is fetched."""
    data = line(url=EDITS, body={"model": "m", "prompt": "x", "image": URL, field: value})
    found = fault(data, of=of(EDITS))
    assert (found.code, found.param, found.line) == ("invalid_file", f"body.{field}", 1)
    assert found.message == f"Invalid 'body.{field}': {text}."


@pytest.mark.usefixtures("_any_length")
def test_a_number_that_no_decoder_reads():
    """It fails its line, also if the line is long and the check skips most values."""
    data = line(url=EDITS, body={"model": "m", "prompt": "x", "image": ["NUMBER"]})
    found = fault(data.replace(b'"NUMBER"', b"1e999"), of=of(EDITS))
    assert found.line == 1
    assert "number is infinity" in found.message


@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize("chosen", ["text", "srt", "vtt", 1, []])
def test_transcripts_that_are_not_json(chosen):
    """A result line has JSON, so they are refused before a call."""
    found = fault(line(url=AUDIO, body={"model": "m", "file": URL, "response_format": chosen}), of=of(AUDIO))
    expected = "its results are JSON, so it must be json or verbose_json or diarized_json"
    assert (found.message, found.param) == (
        f"Invalid 'response_format' for a batch: {expected}.", "body.response_format",
    )  # fmt: skip


@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n" * 50_000: [0] * 3000}, "body." + "n" * 64 + "…"),
        ({"tags": [{}] * 5000}, "body.tags"),
        ({str(number): 0 for number in range(5000)}, "body"),
    ],
    ids=["name", "items", "fields"],
)
def test_a_line_whose_form_would_be_huge(fields, param):
    """A form repeats a name for each item; the fault names the field, cut."""
    found = fault(line(url=AUDIO, body={"model": "m", "file": SOUND, **fields}), of=of(AUDIO))
    assert (found.code, found.param) == ("invalid_request", param)
    assert found.message.startswith(f"Invalid '{param}': ")
    assert len(found.message) < 500


async def stored(store, content):
    """The id of a file that the project uploads."""
    file_id = ids.new_file_id(PROJECT)

    async def chunks():
        yield content

    await store.write(file_key(file_id), chunks())
    return file_id


async def looked_up(store, *bodies, path=EDITS):
    """The verdict on a file whose lines have these bodies."""
    checker, splitter = Checker(of(path)), Splitter()
    lines = [line(f"{n}", url=path, body={"model": "m", "prompt": "x", **body}) for n, body in enumerate(bodies)]
    for found in [*splitter.feed(b"\n".join(lines)), *splitter.finish()]:
        checker.check([found])
    await checker.check_uploaded(store)
    return checker.verdict()


async def test_uploaded_files_are_looked_up(tmp_path, monkeypatch):
    """Each must be there and of the type; their sum has a bound; the faults come in the order of the lines."""
    store = DirectoryStore(tmp_path)
    image, audio, odd = [await stored(store, content) for content in (PNG, WAV, b"#!/bin/sh\n")]
    gone = ids.new_file_id(PROJECT)
    good = {"image": image, "mask": {"file_id": image}}
    assert await looked_up(store, good, {"images": [{"file_id": image}, {"image_url": URL}]}) == Passed(
        total=2, models=("m",)
    )
    verdict = await looked_up(
        store, {"image": image}, {"image": gone}, {"image": "no"}, {"image": [URL, audio]}, {"image": odd}
    )
    assert isinstance(verdict, Failed)
    assert [(error.line, error.message.removeprefix("Invalid 'body.image': ")) for error in verdict.errors] == [
        (2, f"there is no file {gone}."),
        (3, f"{NEITHER}."),
        (4, "expected a file of the type image/…, but got audio/wav."),
        (5, f"the type of {odd} is unknown."),
    ]
    monkeypatch.setattr(attachments, "BYTES_MAX", 2 * len(PNG))
    verdict = await looked_up(store, {"image": [image, URL]}, {"image": [image, image], "mask": URL})
    assert [error.message for error in verdict.errors] == [
        f"Invalid 'body.image': the files of this line have more than {2 * len(PNG)} bytes together."
    ]
    monkeypatch.setattr(module, "UPLOADED_MAX", 1)
    verdict = await looked_up(store, {"image": [image, gone]})
    assert [error.code for error in verdict.errors] == ["too_many_files"]
    assert BYTES_MAX > 1 << 20


async def test_a_store_that_fails_is_asked_again_later(tmp_path, monkeypatch):
    """An error of the store is no fault of the lines: its kind reaches the caller, which tries again."""
    store = DirectoryStore(tmp_path)
    image = await stored(store, PNG)

    async def fails(key):
        raise ConnectionResetError(key)

    monkeypatch.setattr(store, "size", fails)
    with pytest.raises(OSError, match=image):
        await looked_up(store, {"image": image})

"""Replies of servers in odd forms and lengths, through the whole service, for every reader of its files."""

import gzip
import json
import random
import subprocess
import sys

import httpx
import pytest
from openai import OpenAI
from support.backend import Behaviour, well
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX

from tidemill.schemas.endpoints import PROMPT

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
MIB = 1 << 20
SEPARATED = "one\u2028two\u2029three\u0085four"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
STREAM = [
    {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": end}],
    }
    for text, end in (("in ", None), ("pieces", "stop"))
]
PICTURE = "data:image/png;base64," + "A" * (9 * MIB)
INPUTS, DIMENSIONS = 2048, 1024
NUMBERS = str([random.Random(0).uniform(-1, 1) for _ in range(DIMENSIONS)]).encode()
EMBEDDED = b'{"object":"list","data":[%b],"usage":{"prompt_tokens":9,"total_tokens":9}}' % b",".join(
    [b'{"object":"embedding","index":0,"embedding":%b}' % NUMBERS] * INPUTS
)
"""Some 42 MB: above the default bound of a reply."""


def of(content, **more):
    """A reply of one choice, whose content is this JSON text."""
    told = json.dumps({"usage": USAGE, **more})[1:-1]
    return b'{"choices":[{"index":0,"message":{"content":%b},"finish_reason":"stop"}],%b}' % (
        content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode(),
        told.encode(),
    )


def events(chunks):
    """Chunks as server-sent events."""
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)


GOOD = {
    "plain": (Behaviour(body=of("y")), "y"),
    "separated": (Behaviour(body=of(SEPARATED)), SEPARATED),
    "digits": (Behaviour(body=of(b"[" + b"1" * 5000 + b",1e999,-0]")), None),
    "nan": (Behaviour(body=of(b"[NaN,-Infinity]")), [None, None]),
    "half": (Behaviour(body=of(rb'"\ud83d!"')), "\ufffd!"),
    "bom": (Behaviour(body=b"\xef\xbb\xbf" + of("y")), "y"),
    "gzip": (Behaviour(body=gzip.compress(of("y")), headers={"content-encoding": "gzip"}), "y"),
    "stream": (Behaviour(body=events(STREAM) + b"data: [DONE]\n\n"), "in pieces"),
    "null": (Behaviour(body=of(None)), None),
    "again": (Behaviour(body=b'{"error":{"message":"upstream","code":"502"}}'), "y"),
}
BAD = {
    "words": (Behaviour(status=400, body=b"prompt is too long: 9000 > 8192"), 400, "http"),
    "own words": (Behaviour(status=404, body=b'{"error":{"message":"no response x","code":"gone"}}'), 404, "gone"),
    "error": (Behaviour(body=b'{"error":{"message":"no","code":400}}'), 200, "error_in_reply"),
    "empty": (Behaviour(body=b'{"choices":[]}'), 200, "error_in_reply"),
    "cut stream": (Behaviour(body=events(STREAM[:1])), 200, "backend_reply_unsupported"),
    "br": (Behaviour(body=b"x", headers={"content-encoding": "br"}), 200, "backend_reply_unsupported"),
}


def answers(body, nth):
    """The reply that a line names."""
    if "messages" not in body:
        return Behaviour(body=EMBEDDED) if "input" in body else Behaviour(status=400)
    word = body["messages"][0]["content"]
    if isinstance(word, list):
        return well({**body, "messages": [{"content": "picture"}]}, nth)
    if word == "again" and nth > 1:
        return GOOD["plain"][0]
    return GOOD["plain"][0] if word == PROMPT else (GOOD | BAD)[word][0]


@pytest.fixture(scope="module")
def place(tmp_path_factory, inference):
    """An installation that takes larger lines and replies than by default."""
    environ = {"TIDEMILL_REPLY_BYTES_MAX": str(64 * MIB), "TIDEMILL_LINE_BYTES_MAX": str(16 * MIB)}
    with Stack(tmp_path_factory.mktemp("replies") / "data", inference.models("m"), environ) as stack:
        yield stack


@pytest.fixture
def tidemill(place):
    """Runs a command of the command line to its end: exit code and output."""

    def run(*words):
        command = [sys.executable, "-m", "tidemill", *map(str, words), "--base-url", place.api, "--api-key", KEY]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def line(custom_id, url, **body):
    """A request, as its bytes."""
    request = {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **body}}
    return json.dumps(request, ensure_ascii=False).encode() + b"\n"


def chat(word):
    """A line whose id breaks lines for those who read them so."""
    return line(f"{word}\u2028", CHAT, messages=[{"role": "user", "content": word}])


@pytest.fixture
def _numbers_of_any_length():
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("_numbers_of_any_length")
def test_every_reader_has_every_line(place, tidemill, backend, tmp_path):
    """Of replies in all forms: our client and its receipt, the SDK, pages, errors by code, and a rerun."""
    backend.reset(answers)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"".join(chat(word) for word in (*GOOD, *BAD)))
    code, said = tidemill("run", source, "-o", output)
    assert code == 3, said
    assert f"{len(GOOD)} out + {len(BAD)} errors, 0 missing, 0 duplicate" in said
    # One is answered at its second call. A 404 is made again once or twice, and asked about without a body.
    assert 2 <= backend.calls - len(GOOD) - len(BAD) <= 4

    client = OpenAI(base_url=place.api, api_key=KEY)
    found = client.batches.list(limit=1).data[0]
    batch = found.id
    assert found.usage.output_tokens == 2 * (len(GOOD) - 1), "the stream counted none"
    written = list(client.files.content(found.output_file_id).iter_lines())
    assert written == output.read_text("utf-8").splitlines() == output.read_text("utf-8").split("\n")[:-1]
    for text, (word, (behaviour, value)) in zip(written, GOOD.items(), strict=True):
        read = json.loads(text)
        assert read["custom_id"] == f"{word}\u2028"
        content = read["response"]["body"]["choices"][0]["message"]["content"]
        if word == "digits":
            assert content[0] == int("1" * 5000)
            assert behaviour.body in text.encode()
        else:
            assert content == value

    failed = [json.loads(text) for text in client.files.content(found.error_file_id).iter_lines()]
    for read, (word, (behaviour, status, code)) in zip(failed, BAD.items(), strict=True):
        assert (read["custom_id"], read["response"]["status_code"]) == (f"{word}\u2028", status)
        assert (read["error"] or {}).get("code", code) == code
        if word == "words":
            assert read["response"]["body"]["error"]["message"] == behaviour.body.decode()
        elif word in {"own words", "error"}:
            assert read["response"]["body"] == json.loads(behaviour.body)

    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"{place.api}/batches/{batch}", headers=headers, timeout=WAIT_SECONDS_MAX) as plain:
        page, groups = (plain.get(path).json()["data"] for path in ("/results", "/errors"))
    assert len(page) == len(GOOD) + len(BAD)
    assert {group["code"]: group["count"] for group in groups} == {
        "error_in_reply": 2, "backend_reply_unsupported": 2, "gone": 1, "backend_error": 1
    }  # fmt: skip

    backend.reset(lambda *_: GOOD["plain"][0])
    again = tmp_path / "again.jsonl"
    code, said = tidemill("rerun", batch, "-o", again)
    assert code == 0, said
    names = [json.loads(text)["custom_id"] for text in again.read_text("utf-8").splitlines()]
    assert names == [f"{word}\u2028" for word in BAD]


def test_a_line_and_a_reply_of_many_megabytes(tidemill, backend, tmp_path):
    """A picture of 9 MB, and the embeddings of 2,048 texts, where the settings allow them."""
    backend.reset(answers)
    picture, output = tmp_path / "picture.jsonl", tmp_path / "picture.out.jsonl"
    parts = [{"type": "image_url", "image_url": {"url": PICTURE}}]
    picture.write_bytes(line("p", CHAT, messages=[{"role": "user", "content": parts}]) + chat("plain"))
    code, said = tidemill("run", picture, "-o", output)
    assert code == 0, said
    assert len(output.read_text("utf-8").splitlines()) == 2

    texts, output = tmp_path / "texts.jsonl", tmp_path / "texts.out.jsonl"
    texts.write_bytes(b"".join(line(f"t{n}", EMBEDDINGS, input=[f"{n}"] * INPUTS) for n in range(6)))
    code, said = tidemill("run", texts, "-o", output)
    assert code == 0, said
    assert backend.calls == 2 + 6
    for text in output.read_bytes().splitlines():
        assert EMBEDDED in text

    # Tidemill refuses a reply that must be larger before any call.
    wide = line("w", EMBEDDINGS, input=["x"] * INPUTS, dimensions=4 * DIMENSIONS)
    texts.write_bytes(wide)
    code, said = tidemill("run", texts, "-o", tmp_path / "wide.jsonl")
    assert code == 4, said
    assert "reply_too_large" in said or "dimensions" in said
    assert backend.calls == 2 + 6

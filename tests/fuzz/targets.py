"""The fuzz targets: each decoder of bytes from outside, with the invariant that must hold for any input.

A target takes any bytes. It may raise nothing: the errors that a decoder is allowed to raise are caught here, so
everything else is a finding. What comes out is bounded by what went in.
"""

# ruff: noqa: SIM105 - an error that is allowed stands beside what may raise it

import asyncio
import functools
import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import orjson

from tidemill.api.uploads.multipart import Form, MultipartError
from tidemill.ingest.files.validation import Checker, Rules
from tidemill.ingest.streams import decisions
from tidemill.processors.calls import request_codec
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.http.connection import Connection
from tidemill.processors.memory_budget import LargeReplies
from tidemill.schemas.jsonl import line
from tidemill.schemas.jsonl.line import Call
from tidemill.schemas.jsonl.lines import LINE_BYTES_MAX, Splitter
from tidemill.schemas.log import codec, dead_letters, intake, part, producer_token
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.log.part import PartError
from tidemill.schemas.log.producer_token import TokenError
from tidemill.schemas.log.signing import SignatureError, Signer, Verifier

BOUNDARY = "x" * 8
MODELS = {"m": ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")}
_SIGNER = Signer.made()
_VERIFIER = Verifier([_SIGNER.public])
_MESSAGES = tuple(getattr(codec, name) for name in dir(codec) if name.startswith("decode_"))


def pieces(data: bytes) -> tuple[bytes, bytes]:
    """The input taken apart: its first byte says after how many bytes."""
    cut = data[0] if data else 0
    return data[1 : 1 + cut], data[1 + cut :]


def headers(data: bytes) -> list[tuple[str, bytes | None]]:
    """Bytes as the headers of a record, as the client gives them: `name:value`, or a name without a value."""
    found: list[tuple[str, bytes | None]] = []
    for text in data.split(b"\n"):
        name, colon, value = text.partition(b":")
        found.append((name.decode("utf-8", "backslashreplace"), value if colon else None))
    return found


def messages(data: bytes) -> None:
    """The values of the log's records."""
    for decode in _MESSAGES:
        try:
            codec.encode(decode(data))
        except DecodeError:
            pass


def heads(data: bytes) -> None:
    """The headers of records of requests and of results."""
    told, value = pieces(data)
    found = headers(told + b"\n" + value)
    marks = functools.partial(codec.lines_marks, size=len(value))
    for read in (codec.request_head, codec.lines_ref, codec.kind_of, marks):
        try:
            read(found)
        except DecodeError:
            pass


def dead(data: bytes) -> None:
    """Dead letters, and a letter made of any record."""
    told, value = pieces(data)
    found = headers(told)
    try:
        dead_letters.decode(found, value, 0.0)
    except DecodeError:
        pass
    kept = dead_letters.headers("t/0/1", found, key=value, stage="s", reason=value.decode(errors="replace"))
    assert sum(len(name) + len(content or b"") for name, content in kept) < 128 * 1024
    dead_letters.decode(kept, value, 0.0)


def intake_record(data: bytes) -> None:
    """A direct producer's record: key, headers, lines."""
    told, value = pieces(data)
    key, told = pieces(told)
    try:
        named = intake.own_headers(headers(told))
        intake.label(key, named)
        intake.stream_options(named, ("24h",))
        text = intake.secret(named)
        if producer_token.is_token(text):
            producer_token.claims(_VERIFIER, text)
    except (IntakeError, TokenError):
        pass
    try:
        assert sum(map(len, decisions.bounded(value))) <= len(value)
    except IntakeError:
        pass


def input_file(data: bytes) -> None:
    """A batch's input, in two pieces and whole: the same lines, the same verdict; what passes can be run."""
    first, rest = pieces(data)
    cut, whole = Splitter(), Splitter()
    in_two = [*cut.feed(first), *cut.feed(rest), *cut.finish()]
    at_once = [*whole.feed(first + rest), *whole.finish()]
    assert in_two == at_once
    for endpoint in MODELS["m"]:
        checker = Checker(Rules(endpoint=endpoint, models=MODELS, lines_max=50, bytes_max=LINE_BYTES_MAX))
        checker.check(at_once)
        if type(checker.verdict()).__name__ == "Passed":
            for found in at_once:
                if found.data:
                    line.parse(found.data)


def request_line(data: bytes) -> None:
    """One line of the log, which ingest has passed; a forged one is refused."""
    try:
        line.parse(data)
    except (msgspec.MsgspecError, RecursionError):
        pass


def form(data: bytes) -> None:
    """A multipart body, in two pieces and whole: the same fields; no byte is made up."""
    first, rest = pieces(data)

    def taken(*chunks: bytes) -> tuple[list[Any], int] | None:
        form = Form(f"multipart/form-data; boundary={BOUNDARY}")
        try:
            events = [event for chunk in chunks for event in form.feed(chunk)]
        except MultipartError:
            return None
        size = sum(len(event) for event in events if isinstance(event, bytes))
        return [event for event in events if not isinstance(event, bytes)], size

    in_two, at_once = taken(first, rest), taken(first + rest)
    assert in_two == at_once
    assert at_once is None or at_once[1] <= len(first) + len(rest)


def form_type(data: bytes) -> None:
    """The content type of a form."""
    try:
        Form(data.decode("latin-1"))
    except MultipartError:
        pass


def reply(data: bytes) -> None:
    """The body of a server's reply: a result line that is JSON and holds the body, or a failure with words."""
    status, body = (data[0] % 6 * 100 if data else 200), data[1:]
    for number in (200, status, status + 29):
        named = body[:40].decode("latin-1"), body[:20].decode("latin-1")
        end = request_codec.judge(Answer(number, body, *named), MODELS["m"][number % 4])
        write = request_codec.result if isinstance(end, request_codec.Success) else request_codec.failed
        text, mark = write("batch_0", 7, b'"id"', end, Call(1, b'"gpu-1"', 0.5))  # type: ignore[arg-type]
        assert text.endswith(b"\n")
        assert len(text.decode().splitlines()) == 1
        assert mark.size == len(text)
        msgspec.json.decode(text, type=msgspec.Raw)
        codec.lines_marks(codec.lines_headers("batch_0", [mark]), len(text))
    request_codec.wait_seconds(data.decode("latin-1"), 0.0)


class _Transport(asyncio.Transport):
    """A transport that sends nothing and can be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: Any) -> None:
        del data

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    close = abort

    def pause_reading(self) -> None:
        """Reading goes on: there is nothing to wait for."""

    resume_reading = pause_reading


def wire(data: bytes) -> None:
    """The bytes of a connection to a server: each call ends, with an answer within its bound or the reason."""
    _LOOP.run_until_complete(_wired(*pieces(data)))


async def _wired(first: bytes, rest: bytes) -> None:
    connection = Connection(LargeReplies())
    connection.connection_made(_Transport())
    asked = asyncio.ensure_future(connection.call(b"", 60.0, 4096))
    await asyncio.sleep(0)
    for chunk in (first, rest):
        if chunk:
            connection.data_received(chunk)
    connection.connection_lost(None)
    outcome = await asked
    assert isinstance(outcome, FailureKind) or len(outcome.body) <= 4096


def token(data: bytes) -> None:
    """A producer's token: what no key has signed says nothing."""
    try:
        producer_token.claims(_VERIFIER, data.decode("latin-1"))
    except TokenError:
        return
    raise AssertionError("a token was made up")


def key_record(data: bytes) -> None:
    """A record of a key: what no key has signed opens nothing."""
    try:
        _VERIFIER.key_record("key_0", data)
    except SignatureError:
        return
    raise AssertionError("a key was made up")


def columns(data: bytes) -> None:
    """The head and the columns of a part in the store."""
    try:
        size = part.index_bytes(data[: part.HEAD_BYTES])
        if size == len(data) - part.HEAD_BYTES:
            part.parse_index(data[part.HEAD_BYTES :])
    except PartError:
        pass


_LOOP = asyncio.new_event_loop()

TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        messages, heads, dead, intake_record, input_file, request_line, form, form_type, reply, wire, token,
        key_record, columns,
    )
}  # fmt: skip


_CHAT = orjson.dumps(
    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
     "body": {"model": "m", "messages": [{"role": "user", "content": "hello"}]}}
)  # fmt: skip
_USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}
_ANSWER = orjson.dumps({"id": "x", "choices": [{"message": {"content": "y"}}], "usage": _USAGE})
_CHUNK = orjson.dumps(
    {"object": "chat.completion.chunk", "usage": _USAGE,
     "choices": [{"index": 0, "delta": {"content": "y"}, "finish_reason": "stop"}]}
)  # fmt: skip
_STREAM = b"event: x\ndata: " + _CHUNK + b"\n\ndata: " + _CHUNK + b"\r\n\r\ndata: [DONE]\n\n"


def seeds(name: str) -> Iterator[bytes]:
    """Inputs that a target accepts, for the first mutations."""
    part_head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
    marks = b"tidemill-batch:batch_0\ntidemill-marks:[[0,3,false,[1,0,2,0],1]]\ntidemill-kind:lines"
    table: dict[str, tuple[bytes, ...]] = {
        "messages": (
            b'{"v":1,"kind":"cancel_requested","batch_id":"batch_0","at":1}',
            b'{"v":1,"kind":"accepted","batch_id":"batch_0","total":1,"model":"m","at":1}',
        ),
        "heads": (
            bytes([0]) + b"tidemill-batch:batch_0\ntidemill-project:p\ntidemill-first:0\n"
            b"tidemill-deadline:9\ntidemill-url:/v1/x",
            bytes([len(marks)]) + marks + b"{}\n",
        ),
        "dead": (bytes([60]) + b"tidemill-dead-source:t/0/1\ntidemill-dead-stage:s\ntidemill-dead-reason:r",),
        "intake_record": (
            bytes([60, 4]) + b"acmeauthorization:Bearer sk-x\ntidemill-seq:1\ntidemill-end:true\n" + _CHAT,
        ),
        "input_file": (
            bytes([9]) + _CHAT + b"\n\n" + _CHAT.replace(b'"a"', b'"b"') + b"\r\n",
            b"\x00[[[[", b"\x03\xef\xbb\xbf{}",
        ),
        "request_line": (_CHAT,),
        "form": (bytes([30]) + part_head + _CHAT + f"\r\n--{BOUNDARY}--\r\n".encode(),),
        "form_type": (f"multipart/form-data; boundary={BOUNDARY}".encode(),),
        "reply": (
            b"\x02" + _ANSWER, b"\x04" + b'{"error":{"message":"no"}}', b"\x01" + _ANSWER.replace(b"3", b"1e999"),
            b"\x02" + _ANSWER.replace(b'"y"', b'"\xe2\x80\xa8\xc2\x85\\ud800\xed\xa0\x80",NaN,-Infinity'),
            b"\x02" + _STREAM, b"\x02" + b'{"error":{"message":"no","code":"429"},"choices":[]}',
            b"\x02" + b'\xef\xbb\xbf{"choices":[{"finish_reason":"error"}]}',
        ),
        "wire": (
            bytes([20]) + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Request-ID: a\r\n\r\n{}",
            bytes([20]) + b"HTTP/1.1 429 No\r\nTransfer-Encoding: chunked\r\nRetry-After: 1\r\n\r\n"
            b"2\r\n{}\r\n0\r\n\r\n",
            bytes([40]) + b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\n{}",
            bytes([40]) + b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\n{}\r\n0\r\n\r\n",
            bytes([60]) + b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(_ANSWER, mtime=0),
            bytes([60]) + b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\n\r\n" + zlib.compress(_ANSWER),
            bytes([60]) + b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
        ),
        "token": (_SIGNER.sign("x", b"{}")[:-1],),
        "key_record": (_SIGNER.sign("x", b"{}")[:-1],),
        "columns": (part.encode_index(*(part.parse_index(b"").indices for _ in range(4))),),
    }  # fmt: skip
    yield b""
    yield from table[name]

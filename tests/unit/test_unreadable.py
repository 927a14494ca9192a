"""Bytes from outside that no decoder takes: a reader raises the one error that it declares, or none."""

import contextlib
import io
import re
from types import SimpleNamespace
from unittest.mock import MagicMock

import msgspec
import pytest
from support.trust import VERIFIER

from tidemill.api.reruns import replay_spool
from tidemill.api.reruns.input_file import rewrite_line
from tidemill.api.servers.load import Loads
from tidemill.client.errors import COMMANDS, UsageError
from tidemill.client.runs import journal, paths
from tidemill.configuration.catalog import PARTITIONS, Fold
from tidemill.configuration.projects import Limits
from tidemill.configuration.settings import Settings
from tidemill.ingest.files.queue import BatchQueue
from tidemill.ingest.quota import Quotas
from tidemill.ingest.streams.keyring import Keyring
from tidemill.ingest.streams.record_handler import Cancels
from tidemill.kafka import follower
from tidemill.processors.joined import inputs
from tidemill.processors.joined.reply import MixedUpError, divided
from tidemill.processors.partitions import unreadable
from tidemill.processors.partitions.closed_batches import batch_state
from tidemill.runtime import run_file
from tidemill.schemas import decoded, served
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl import line, server_error
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.webhooks.table import Deliveries, Endpoints
from tidemill.sealing.vault import Vault
from tidemill.tables import RowError, TableError, replies, result_lines
from tidemill.webhooks.router import Router

DEEP = b"[" * 100_000
BATCH = "batch_" + "0" * 32
RECORD = (
    b'{"v":1,"project":"p","batch":{"id":"b","status":"completed","completed_at":1,"request_counts":'
    b'{"total":1,"completed":1,"failed":0},"tidemill":{"callback_url":"https://x","stream":null}}}'
)
REQUEST = (
    b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x","dimensions":"y"}}'
)
RESULT = (
    b'{"id":"i","custom_id":"7","response":{"status_code":200,"request_id":"r","body":{"data":[{"embedding":"x"}]}},'
    b'"error":null,"tidemill":{"server":"s"}}'
)
FAILURE = (
    b'{"id":"i","custom_id":"7","response":{"status_code":400,"request_id":"r","body":{"error":{"message":"m"}}},'
    b'"error":null}'
)


def spoiled(good):
    """The content cut off, too deep, and with bytes that are not UTF-8 in one of its strings, for each of them."""
    yield from (b"", b"\xff", DEEP, good[: len(good) // 2], good[:-1])
    for found in re.finditer(rb'"[^"]*"', good):
        yield good[: found.start()] + b'"\xff"' + good[found.end() :]
    for found in re.finditer(rb"[{:\[,]", good):
        yield good[: found.end()] + DEEP + good[found.end() :]
    yield good[:1] + b'"unknown":' + DEEP + b"]" * len(DEEP) + b"," + good[1:]
    yield good[:1] + b'"unknown":"\xff",' + good[1:]


def quotas():
    return Quotas(lambda _: Limits(), MagicMock(), MagicMock(**{"size.return_value": None}))


def head(name):
    """Reads a header of a record of requests."""
    good = codec.request_headers(
        codec.RequestHead(batch_id=BATCH, project="p", first=0, deadline=9, url="/v1/embeddings")
    )
    return lambda data: codec.request_head([*good, (name, data)])


def error_lines(data):
    headers = [(codec.BATCH, BATCH.encode()), (codec.FIRST, b"0")]
    list(unreadable.error_lines(headers, data.replace(b"\n", b" "), "m"))
    list(unreadable.error_lines([*headers, (codec.INDICES, data)], b"", "m"))


def running(tmp_path):
    def read(data):
        (tmp_path / "run.json").write_bytes(data)
        return run_file.read(tmp_path)

    return read


def first_line(tmp_path):
    def read(data):
        (tmp_path / "in.jsonl").write_bytes(data + b"\n")
        return paths.endpoint_of(tmp_path / "in.jsonl")

    return read


def plan(tmp_path):
    """Reads the plan of a run that was begun."""

    def read(data):
        (tmp_path / "plan.json").write_bytes(data)
        begun = SimpleNamespace(_plan=tmp_path / "plan.json", folder=tmp_path, _wording=COMMANDS)
        return journal.Journal.plan(begun, None)

    return read


def joined(data):
    endpoint = ENDPOINTS["/v1/embeddings"]
    return divided(data, [inputs.request(REQUEST, endpoint)] * 2, endpoint)


def queued():
    """Reads the erasure of a batch that waits in the queue."""
    queue = BatchQueue(Settings(), lambda _: True)
    return lambda data: queue.erased(BATCH, data)


SKIPPED = follower._FAULTS
"""Errors after which a follower skips a record; any other one stops it at this record for ever."""
LINES_REF = ("tidemill-ref", b'{"key":"k","offset":0,"length":1}')
READERS = {
    "any JSON text": (lambda data: decoded(msgspec.json.Decoder(dict[str, int]), data), b'{"a":1}', ()),
    "models of a server": (served.names, b'{"data":[{"id":"m"}]}', ()),
    "webhooks": (Router("", None, None, catch_up=None, clock=lambda: 1.0, cursor=0)._ended, RECORD, ()),
    "batches of processors": (batch_state, RECORD, ()),
    "queue": (lambda data: BatchQueue(Settings(), lambda _: True).batch("b", data, 0), RECORD, ()),
    "batches of a quota": (lambda data: quotas().batch("b", data, 0), RECORD, ()),
    "files of a quota": (
        lambda data: quotas().file("f", data, 0), b'{"v":1,"project":"p","file":{"id":"f","bytes":1}}', (),
    ),
    "load reports": (
        lambda data: Loads(lambda: 1.0, dict, list).apply("p", data, 1.0),
        b'{"process":"p","servers":[],"models":[],"omitted":0}', SKIPPED,
    ),
    "catalog": (
        lambda data: Fold().apply("server/a", data, 0), b'{"settings":{"url":"x"},"author":"a","at":1}', SKIPPED,
    ),
    "partitions": (lambda data: Fold().apply(PARTITIONS, data, 0), b'{"count":4}', SKIPPED),
    "queue of batches": (
        lambda data: BatchQueue(Settings(), lambda _: True).fold("b", data, 0), b'{"v":1}', SKIPPED,
    ),
    "erased batches of a queue": (queued(), b'{"v":1,"project":"p","at":1}', SKIPPED),
    "keys of batches": (lambda data: Vault(None).apply(BATCH, data, 0), b'{"v":1,"project":"p","at":1}', SKIPPED),
    "webhook endpoints": (lambda data: Endpoints().apply("e", data), b'{"v":1,"project":"p"}', SKIPPED),
    "deliveries": (lambda data: Deliveries().apply("health/e", data), b'{"v":1,"project":"p"}', SKIPPED),
    "cursor of webhooks": (lambda data: Deliveries().apply("cursor", data), b'{"v":1,"offset":7}', SKIPPED),
    "cancelled batches": (lambda data: Cancels(list).apply("b", data, 0), RECORD, SKIPPED),
    "keys of ingest": (
        lambda data: Keyring(VERIFIER, lambda: 1.0, fixed=None, takes_keys=True).fold("k", data, 0), b'{"v":1}',
        SKIPPED,
    ),
    "indices": (head(codec.INDICES), b"[0,2]", DecodeError),
    "place of a line": (head("tidemill-ref"), LINES_REF[1], DecodeError),
    "place of a result": (lambda data: codec.lines_ref([(LINES_REF[0], data)]), LINES_REF[1], DecodeError),
    "marks": (
        lambda data: codec.lines_marks([(codec.BATCH, b"b"), (codec.MARKS, data)], 3), b"[[0,3,false]]",
        DecodeError,
    ),
    "lines of a dead letter": (error_lines, REQUEST, ()),
    "rewritten line": (lambda data: rewrite_line(data, model="n", custom_id="b"), REQUEST, ()),
    "replayed line": (replay_spool._custom_id, REQUEST, ()),
    "error of a server": (server_error.read, b'{"error":{"message":"m"},"detail":[{"msg":"m"}]}', ()),
    "joined line": (lambda data: inputs.request(data, ENDPOINTS["/v1/embeddings"]), REQUEST, ()),
    "joined reply": (joined, b'{"data":[{"index":0,"a":"b"},{"index":1}],"usage":{"x":1}}', MixedUpError),
    "custom id": (line.custom_id_of, REQUEST, ()),
    "model": (line.model_of, REQUEST, ()),
    "answer of a map": (replies.result_of, RESULT, RowError),
    "failure of a map": (lambda data: replies.failure_of(data).why, FAILURE, ()),
    "row of a map": (replies.number_of, RESULT, TableError),
    "row of a table": (result_lines._row, RESULT, ()),
    "steps of a run": (lambda data: journal._read(io.BytesIO(data + b"\n")), b'{"shard":1,"file":"f"}', ()),
    "run file": (running, b'{"api":"a","kafka":"k"}', ()),
    "first line": (first_line, REQUEST, UsageError),
    "plan of a run": (plan, b'{"job":{"input":"x"},"layout":1}', UsageError),
}  # fmt: skip
ON_DISK = {running, first_line, plan}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_survives_any_bytes(name, tmp_path):
    """A record of a topic comes again after each restart: one that ends its reader would end it for ever."""
    read, good, allowed = READERS[name]
    read = read(tmp_path) if read in ON_DISK else read
    for data in spoiled(good):
        with contextlib.suppress(*(allowed if isinstance(allowed, tuple) else (allowed,))):
            read(data)

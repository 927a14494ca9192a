"""Traces and logs of an installation: one trace per batch at a real receiver, and no text of users in any log."""

import json
import secrets
import socket
from collections import Counter

import pytest
from aiokafka import AIOKafkaProducer
from openai import APIError, OpenAI
from support.backend import Backend, Behaviour
from support.batches import create, ended, numbered
from support.otlp import Collector
from support.producing import END, is_over, line, send, shown
from support.receiver import Receiver
from support.stack import KEY, Stack
from support.waiting import wait_until

from tidemill.local.embedded import kraft
from tidemill.schemas import traces
from tidemill.schemas.log import topics

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 31
WITH_SPANS = [index for index in range(LINES) if traces.has_spans(index)]
STEPS = {
    "create tidemill.commands": ("producer", "api"),
    "validate tidemill.commands": ("consumer", "ingest"),
    "publish tidemill.requests": ("producer", "ingest"),
    "wait": ("internal", "processors"),
    "chat chat": ("client", "processors"),
    "fold tidemill.outcomes": ("consumer", "results"),
    "finalize": ("internal", "results"),
}
SERVER_KEY = "hush-key-of-the-server"
MARK = "hush-words"
FORGED = f'{MARK}\n{{"level":"forged"}}\x1b[31m\u2028'


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client, the server, the receiver, and the installation, which logs all that it can."""
    with Backend() as backend, Collector() as collector:
        backend.key = SERVER_KEY
        server = {"url": backend.url, "api_key_env": "BACKEND_KEY"}
        names = {
            "BACKEND_KEY": SERVER_KEY,
            "TIDEMILL_LOG__FORMAT": "json",
            "TIDEMILL_LOG__LEVEL": "debug",
            "TIDEMILL_LOG__ACCESS": "true",
            "TIDEMILL_WEBHOOK_ALLOW": "127.0.0.0/8",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        models = {"chat": {"backends": [server], "max_in_flight": 8}}
        with (
            Stack(tmp_path_factory.mktemp("traces") / "data", models, names) as stack,
            OpenAI(base_url=stack.api, api_key=KEY, max_retries=0) as client,
        ):
            yield client, backend, collector, stack


def caller(flags="01"):
    """The trace of a caller: its id, the id of its span, and the header."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, {"traceparent": f"00-{trace}-{span}-{flags}"}


def complete(collector, trace, names=STEPS):
    """The spans of a trace by name, once it has all of them; of a name that comes several times, so many."""

    def missing():
        return Counter([*names]) - Counter(span.name for span in collector.of(trace))

    try:
        wait_until(lambda: not missing())
    except AssertionError as error:
        raise AssertionError(f"the trace lacks {missing()}") from error
    found = {}
    for span in collector.of(trace):
        found.setdefault(span.name, []).append(span)
    return found


def test_a_batch_is_one_trace(served):
    """It continues the caller's; each span has its parent, and the server gets that of its call."""
    client, backend, collector, _ = served
    backend.reset(lambda body, _: Behaviour(status=400 if body["messages"][0]["content"] == "20" else 200))
    trace, parent, headers = caller()
    batch = ended(client, create(client, numbered(0, LINES), extra_headers=headers))
    further = ["wait", "chat chat"] * (len(WITH_SPANS) - 1)
    found = complete(collector, trace, [*STEPS, "POST /v1/batches", *further])
    (root,), (made,) = found.pop("POST /v1/batches"), found["create tidemill.commands"]
    assert (root.parent, root.kind, made.parent) == (parent, "server", root.id)
    assert root.attributes["http.response.status_code"] == 200
    assert batch.model_extra["tidemill"]["traceparent"] == f"00-{trace}-{made.id}-01"
    assert found.keys() == STEPS.keys()
    for name, (kind, stage) in STEPS.items():
        for span in found[name]:
            assert (span.kind, span.process["tidemill.stage"]) == (kind, stage), name
            assert span.process["service.name"] == f"tidemill-{stage}"
            assert span.attributes["tidemill.batch.id"] == batch.id
            assert span.begins <= span.ends
            assert span is made or span.parent == made.id, name
    order = ["validate tidemill.commands", "publish tidemill.requests", "wait", "chat chat", "finalize"]
    begins = [found[name][0].begins for name in order]
    assert begins == sorted(begins)
    for name in ("wait", "chat chat"):
        assert sorted(span.attributes["tidemill.line.index"] for span in found[name]) == WITH_SPANS
    calls = {span.attributes["tidemill.line.index"]: span for span in found["chat chat"]}
    assert {index for index, span in calls.items() if span.failed} == {20}
    assert calls[20].attributes["error.type"] == "400"
    good = calls[0].attributes
    assert (good["gen_ai.operation.name"], good["gen_ai.request.model"]) == ("chat", "chat")
    assert (good["gen_ai.usage.input_tokens"], good["http.response.status_code"]) == (1, 200)
    sent = {call["x-request-id"]: call.getall("traceparent") for call in backend.headers}
    for index in range(LINES):
        own = f"{calls[index].id}-01" if index in calls else f"{made.id}-00"
        assert sent[f"{batch.id}-{index}-1"] == [f"00-{trace}-{own}"]
    assert sum(span.attributes.get("messaging.batch.message_count") == LINES for span in collector.of(trace)) == 3


def test_a_caller_that_records_nothing_has_no_spans(served):
    """The server still gets the trace and the decision not to record; a batch without a caller begins a trace."""
    client, backend, collector, _ = served
    backend.reset()
    trace, _, headers = caller("00")
    ended(client, create(client, numbered(0, 2), extra_headers=headers))
    assert {call["traceparent"][:35] + call["traceparent"][-3:] for call in backend.headers} == {f"00-{trace}-00"}
    batch = ended(client, create(client, numbered(0, 2)))
    began = batch.model_extra["tidemill"]["traceparent"][3:35]
    assert complete(collector, began, ["POST /v1/batches", *STEPS])["POST /v1/batches"][0].parent == ""
    assert not collector.of(trace)
    assert not [span for span in collector.spans if span.name.startswith("GET")]


async def test_a_stream_continues_the_trace_of_its_producer(served):
    """The headers of the stream's first record carry it."""
    client, backend, collector, stack = served
    backend.reset()
    trace, parent, headers = caller()
    producer = AIOKafkaProducer(**stack.clients("producers"))
    await producer.start()
    try:
        own = ("traceparent", headers["traceparent"].encode())
        batch_id = await send(producer, "traced", [line(number) for number in range(3)], own)
        odd = await send(producer, "odd", [line(0)], ("traceparent", b"\xff" + MARK.encode()), END)
        await send(producer, "traced", [], END)
    finally:
        await producer.stop()
    assert (await shown(client, batch_id, is_over)).status == "completed"
    assert (await shown(client, odd, is_over)).status == "completed"
    names = STEPS.keys() - {"create tidemill.commands", "validate tidemill.commands"}
    first = f"create {topics.INTAKE.name}"
    found = complete(collector, trace, [first, *names])
    (made,) = found.pop(first)
    assert (made.parent, made.kind) == (parent, "consumer")
    assert found.keys() == names
    assert all(span.parent == made.id for spans in found.values() for span in spans)


def test_a_killed_process_of_results_goes_on_with_the_trace(served):
    """The state of the batch includes the trace context."""
    client, backend, collector, stack = served
    backend.reset(lambda *_: Behaviour(latency_seconds=0.05))
    backend.hold()
    trace, _, headers = caller()
    batch_id = create(client, numbered(0, LINES), extra_headers=headers)
    wait_until(lambda: backend.in_flight, "a call")
    stack.kill("results")
    backend.release()
    batch = ended(client, batch_id)
    found = complete(collector, trace)
    (made,) = found["create tidemill.commands"]
    assert batch.status == "completed"
    for name in ("fold tidemill.outcomes", "finalize"):
        assert [span.parent for span in found[name]] == [made.id]


def test_deliveries_of_webhooks_are_in_the_trace(served, tmp_path):
    """Each attempt has a span: the failed one and the next."""
    client, backend, collector, _ = served
    backend.reset()
    trace, _, headers = caller()
    secret = client.post("/webhook_endpoints/callback/rotate_secret", cast_to=object)["signing_secret"]

    def attempts(count):
        spans = [span for span in collector.of(trace) if span.name == "deliver batch.completed"]
        return spans if len(spans) >= count else None

    with Receiver(tmp_path / "calls") as receiver:
        options = {"extra_headers": headers, "extra_body": {"callback_url": receiver.url}}
        batch_id = create(client, numbered(0, 2), **options)
        wait_until(lambda: attempts(1), "a failed attempt")
        receiver.start(secret)
        *failed, good = wait_until(lambda: (spans := attempts(2)) and not spans[-1].failed and spans, "a good one")
    (made,) = (span for span in collector.of(trace) if span.name == "create tidemill.commands")
    for number, span in enumerate((*failed, good)):
        assert (span.kind, span.parent, span.process["tidemill.stage"]) == ("client", made.id, "webhooks")
        known = span.attributes
        assert (known["tidemill.batch.id"], known["http.request.resend_count"]) == (batch_id, number)
    assert {span.attributes["error.type"] for span in failed} == {"connection"}
    assert good.attributes["http.response.status_code"] == 200


def answering(how):
    """A rule for lines of this test; the server is well, as its probes find."""
    return lambda body, nth: how(nth) if MARK in json.dumps(body) else Behaviour()


def mistakes(client, backend, stack):
    """Make every kind of mistake with texts that no log may contain."""
    body = {"model": f"chat{FORGED}", "messages": [{"role": "user", "content": FORGED}]}
    request = {"custom_id": FORGED, "method": "POST", "url": "/v1/chat/completions", "body": body}
    refused = json.dumps({"error": FORGED}).encode()
    backend.reset(answering(lambda nth: Behaviour(status=(500, 400)[nth > 1], body=refused)))
    fine = b"".join(numbered(0, 3))
    good = json.dumps(request | {"body": body | {"model": "chat"}}).encode()
    hook = f"http://127.0.0.1:{kraft.free_port()}/{MARK}?token={MARK}"
    client.post("/webhook_endpoints/callback/rotate_secret", cast_to=object)
    options = {"metadata": {"name": MARK}, "extra_body": {"callback_url": hook}}
    ends = [ended(client, create(client, [fine, good], **options)).status]
    backend.reset(answering(lambda _: Behaviour(body=f'{{"{MARK}":'.encode())))
    ends.append(ended(client, create(client, [fine, good])).status)
    bad = (json.dumps(request).encode(), f'{{"{MARK}": '.encode(), b"\xff" + MARK.encode(), MARK.encode() * 99)
    ends += [ended(client, create(client, [fine, content])).status for content in bad]
    for path in (
        f"/batches/{MARK}%0A",
        f"/files?after={MARK}",
        f"/{MARK}",
        f"/files/{MARK}/content",
        "/batches?limit=x",
    ):
        with pytest.raises(APIError):
            client.get(
                path, cast_to=object, options={"headers": {"x-request-id": MARK + " ", "traceparent": MARK}}
            )
    with pytest.raises(APIError):
        client.files.create(file=(f"{MARK}.txt", b""), purpose=MARK)
    with pytest.raises(APIError):
        client.with_options(api_key=f"sk-{MARK}").models.list()
    with pytest.raises(APIError):
        client.post("/batches", body={"input_file_id": FORGED, "endpoint": FORGED}, cast_to=object)
    host, port = stack.api.removeprefix("http://").removesuffix("/v1").split(":")
    for raw in (f"GET /{MARK} HTTP/9\r\n\r\n", f"{MARK} / HTTP/1.1\r\nhost: {MARK}\r\n\r\n", "\0" + MARK):
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(raw.encode())
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1 << 16)
    return ends


async def poison(stack):
    """Records that no stage can read."""
    producer = AIOKafkaProducer(**stack.clients())
    await producer.start()
    try:
        for topic in (topics.COMMANDS, topics.OUTCOMES):
            await producer.send_and_wait(topic.name, f'{{"kind":"{MARK}"'.encode(), key=MARK.encode())
    finally:
        await producer.stop()
    producer = AIOKafkaProducer(**stack.clients("producers"))
    await producer.start()
    try:
        await send(producer, MARK, [MARK.encode()])
        await send(producer, MARK, [line(0)], key=("authorization", f"Bearer {MARK}".encode()))
        await send(producer, f"{MARK}-2", [MARK.encode(), line(0)], END)
    finally:
        await producer.stop()


async def test_no_log_and_no_span_has_words_of_users(served):
    """Bodies, answers, keys, names: of good lines and of every kind of mistake, at the level `debug`."""
    client, backend, collector, stack = served
    statuses = mistakes(client, backend, stack)
    await poison(stack)
    assert statuses == ["completed", "completed", "failed", "failed", "failed", "failed"]
    marker = {"x-request-id": "job-of-the-test"}
    for _ in range(2):
        client.with_options(default_headers=marker).models.list()
    logs = {path.name: path for path in (stack.data / "logs").glob("*.log*") if "kafka" not in path.name}
    assert {f"{stage}.log" for stage in ("api", "ingest", "processors", "results", "webhooks")} <= logs.keys()
    wait_until(lambda: logs["api.log"].read_bytes().count(b"job-of-the-test") == 2, "the lines of requests")
    wait_until(lambda: b"could not handle" in logs["results.log"].read_bytes(), "the line of a dead letter")
    lines = []
    for name, path in logs.items():
        text = path.read_text()
        for secret in (MARK, "hush", KEY, SERVER_KEY):
            assert secret not in text, (name, [row for row in text.splitlines() if secret in row][:3])
        lines += map(json.loads, text.splitlines())
    assert {entry["stage"] for entry in lines} == {"api", "ingest", "processors", "results", "webhooks"}
    assert all({"time", "level", "stage", "logger", "message"} <= entry.keys() for entry in lines)
    assert "forged" not in {entry["level"] for entry in lines}
    own = [entry for entry in lines if entry.get("request_id") == "job-of-the-test"]
    assert [(entry["route"], entry["status"]) for entry in own] == [("/v1/models", 200)] * 2
    published = [entry for entry in lines if "is published" in entry["message"]]
    assert all(entry["batch_id"].startswith("batch_") and len(entry["trace_id"]) == 32 for entry in published)
    assert published
    for secret in (b"hush", KEY.encode()):
        assert secret not in collector.raw

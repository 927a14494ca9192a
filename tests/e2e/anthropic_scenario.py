# ruff: noqa: T201 - what it prints is read when it fails

"""The use of message batches with Anthropic's Python SDK; run with each version of it.

`python anthropic_scenario.py BASE_URL KEY`: exits with 0 if every step succeeds, and prints the steps. It
imports nothing but the SDK, since it runs in environments that hold nothing else.
"""

import asyncio
import sys
import time
from typing import Any

import anthropic
from anthropic import Anthropic, AsyncAnthropic

BATCH_SECONDS_MAX = 900
POLL_SECONDS = 0.2
PARAMS = {"model": "chat", "max_tokens": 16, "messages": [{"role": "user", "content": "hello"}]}


def requests(*names: str, **params: Any) -> list[Any]:
    """A request for each name."""
    return [{"custom_id": name, "params": {**PARAMS, "metadata": {"user_id": name}, **params}} for name in names]


def ended(client: Anthropic, batch_id: str) -> Any:
    """Poll a batch until it has ended."""
    give_up = time.monotonic() + BATCH_SECONDS_MAX
    while (batch := client.messages.batches.retrieve(batch_id)).processing_status != "ended":
        assert time.monotonic() < give_up, batch
        time.sleep(POLL_SECONDS)
    return batch


def results(client: Anthropic, batch_id: str) -> dict[str, Any]:
    """The results of an ended batch by `custom_id`."""
    return {line.custom_id: line.result for line in client.messages.batches.results(batch_id)}


def refused(kind: type[Exception], call: Any, *args: Any, **options: Any) -> Any:
    """The exception of a call, which is of this kind."""
    try:
        call(*args, **options)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def success(client: Anthropic) -> None:
    """Requests with text that needs care come back with their messages, in their order."""
    odd = 'é\u2028\u0085 \\ " {[ \n'
    made = client.messages.batches.create(
        requests=requests("a", "b") + requests("c", messages=[{"role": "user", "content": odd}])
    )
    assert (made.type, made.processing_status, made.results_url) == ("message_batch", "in_progress", None), made
    assert made.request_counts.processing == 3, made
    assert made.expires_at.timestamp() - made.created_at.timestamp() == 86_400, made
    batch = ended(client, made.id)
    assert (batch.request_counts.succeeded, batch.request_counts.processing) == (3, 0), batch
    assert batch.ended_at >= batch.created_at, batch
    found = results(client, batch.id)
    assert list(found) == ["a", "b", "c"], found
    assert {result.type for result in found.values()} == {"succeeded"}, found
    assert found["c"].message.content[0].text == f"echo: {odd}", found
    assert found["a"].message.usage.output_tokens == 2, found


def failures(client: Anthropic) -> None:
    """A refused or an invalid request is `errored`, and does not affect others."""
    made = client.messages.batches.create(requests=requests("a") + requests("b", stop="refuse"))
    batch = ended(client, made.id)
    assert (batch.request_counts.succeeded, batch.request_counts.errored) == (1, 1), batch
    error = results(client, batch.id)["b"].error
    assert (error.type, error.error.type) == ("error", "invalid_request_error"), error
    assert error.error.message == "The test wants 400.", error
    made = client.messages.batches.create(requests=requests("a") + requests("b", model="none"))
    batch = ended(client, made.id)
    assert (batch.request_counts.succeeded, batch.request_counts.errored) == (1, 1), batch
    found = results(client, batch.id)
    assert found["a"].type == "succeeded", found
    assert found["b"].error.error.type == "not_found_error", found
    assert "'none'" in found["b"].error.error.message, found


def pages(client: Anthropic) -> None:
    """Page through lists in both directions, without a gap, even if each batch is deleted on the way."""
    made = [client.messages.batches.create(requests=requests("a")).id for _ in range(3)][::-1]
    for batch_id in made:
        ended(client, batch_id)
    whole = [batch.id for batch in client.messages.batches.list()]
    assert [batch.id for batch in client.messages.batches.list(limit=1)] == whole
    assert [batch_id for batch_id in whole if batch_id in made] == made, whole
    up = client.messages.batches.list(before_id=made[-1], limit=1)
    assert next(iter(up)).id == made[-2], up
    assert {batch.id for batch in up} >= set(made[:-1])
    for batch in client.messages.batches.list(limit=1):
        if batch.id in made:
            assert client.messages.batches.delete(batch.id).type == "message_batch_deleted"
    assert not set(made) & {batch.id for batch in client.messages.batches.list()}


def cancelling(client: Anthropic) -> None:
    """A running batch is canceled, and may be canceled again; an ended one stays as it is."""
    made = client.messages.batches.create(requests=requests("a", "b", stop="wait"))
    refused(anthropic.AnthropicError, client.messages.batches.results, made.id)
    refused(anthropic.ConflictError, client.messages.batches.delete, made.id)
    for _ in range(2):
        canceled = client.messages.batches.cancel(made.id)
        assert canceled.cancel_initiated_at, canceled
    batch = ended(client, made.id)
    assert batch.request_counts.canceled == 2, batch
    assert [result.type for result in results(client, batch.id).values()] == ["canceled"] * 2
    assert client.messages.batches.delete(batch.id).id == batch.id
    refused(anthropic.NotFoundError, client.messages.batches.retrieve, batch.id)
    done = ended(client, client.messages.batches.create(requests=requests("a")).id)
    refused(anthropic.ConflictError, client.messages.batches.cancel, done.id)


def refusals(client: Anthropic) -> None:
    """Each kind of error is the SDK's exception of that kind, with its message and the id of the request."""
    batches = client.messages.batches
    stranger = Anthropic(base_url=client.base_url, api_key="sk-wrong", auth_token=None)
    refused(anthropic.AuthenticationError, stranger.messages.batches.list)
    stranger.close()
    error = refused(anthropic.NotFoundError, batches.retrieve, "msgbatch_none")
    assert error.body["error"]["type"] == "not_found_error", error.body
    assert error.request_id == error.body["request_id"], error.body
    refused(anthropic.NotFoundError, client.messages.create, **PARAMS)
    wrong = [{"custom_id": "a", "params": PARAMS}, {"custom_id": "a", "params": PARAMS}]
    for given, said in (
        ([], "requests: List should have at least 1 item"),
        (wrong, "requests.1.custom_id: "),
        (requests("a", stream=True), "requests.0.params.stream: "),
    ):
        error = refused(anthropic.BadRequestError, batches.create, requests=given)
        assert error.body["error"]["type"] == "invalid_request_error", error.body
        assert error.body["error"]["message"].startswith(said), error.body
    refused(anthropic.BadRequestError, batches.list, after_id="batch_none")


def models(client: Anthropic) -> None:
    """Models are in Anthropic's shape."""
    found = {model.id: model for model in client.models.list()}
    assert found["chat"].type == "model", found
    assert client.models.retrieve("chat").display_name == "chat"
    refused(anthropic.NotFoundError, client.models.retrieve, "none")


def concurrently(client: Anthropic) -> None:
    """The asynchronous client does the same, also for the beta's path."""

    async def run() -> None:
        async with AsyncAnthropic(base_url=client.base_url, api_key=client.api_key) as other:
            made = await asyncio.gather(*(other.messages.batches.create(requests=requests("a")) for _ in range(3)))
            assert len({batch.id for batch in made}) == 3
            for batch in made:
                await asyncio.to_thread(ended, client, batch.id)
            lines = [line async for line in await other.messages.batches.results(made[0].id)]
            assert [line.result.type for line in lines] == ["succeeded"], lines
            assert (await other.beta.messages.batches.retrieve(made[0].id)).id == made[0].id

    asyncio.run(run())


def main() -> None:
    """Do it all."""
    base_url, key = sys.argv[1:]
    print(f"anthropic {anthropic.__version__}")
    with Anthropic(base_url=base_url, api_key=key) as client:
        for step in (success, failures, pages, cancelling, refusals, models, concurrently):
            step(client)
            print(f"{step.__name__}: as it should be", flush=True)


if __name__ == "__main__":
    main()

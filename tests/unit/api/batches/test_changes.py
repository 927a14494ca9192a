"""Cancels of batches: when they are refused."""

import pytest
from support.dependencies import NOW, ManualClock, batch_of, client_of, open_dependencies

from tidemill.schemas.log import topics
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import Status

WINDOW = 86_400


@pytest.mark.parametrize("path", ["/batches", "/messages/batches"])
@pytest.mark.parametrize(
    ("status", "after", "wanted"),
    [
        (Status.VALIDATING, WINDOW - 1, 200), (Status.IN_PROGRESS, WINDOW - 1, 200),
        (Status.VALIDATING, WINDOW, 409), (Status.IN_PROGRESS, WINDOW + 9, 409), (Status.CANCELLING, WINDOW, 200),
    ],
)  # fmt: skip
async def test_a_cancel_after_the_window_is_refused(tmp_path, path, status, after, wanted):
    """The batch expires whatever the command says; a second cancel changes nothing, and is no error."""
    clock = ManualClock()
    endpoint = "/v1/messages" if "messages" in path else "/v1/embeddings"
    at = NOW if status is Status.CANCELLING else None
    batch = batch_of(
        f"batch_{1:032x}", endpoint=endpoint, status=status, expires_at=NOW + WINDOW, cancelling_at=at
    )
    async with open_dependencies(tmp_path, clock) as deps, client_of(deps) as client:
        deps.view.put_batch(BatchRecord(project="p", batch=batch))
        clock.now = NOW + after
        answer = await client.post(f"{path}/{batch.id}/cancel")
        sent = [topic for topic, _, _ in deps.log.records if topic == topics.COMMANDS.name]
        shown = (await client.get(f"/batches/{batch.id}")).json()
    assert answer.status_code == wanted, answer.text
    assert (len(sent), len(deps.log.trail)) == ((0, 0) if wanted == 409 or status is Status.CANCELLING else (1, 1))
    assert shown["status"] == (status if wanted == 409 else "cancelling")
    if wanted == 409:
        assert answer.headers["x-should-retry"] == "false"
        word = "in_progress" if "messages" in path else status
        assert f"with status '{word}' whose window" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "running", "ended"),
    [("/batches", "validating", "completed"), ("/messages/batches", "in_progress", "ended")],
)
async def test_a_refusal_has_the_status_as_its_face_shows_it(tmp_path, path, running, ended):
    """Anthropic's clients do not know OpenAI's."""
    endpoint = "/v1/messages" if "messages" in path else "/v1/embeddings"
    async with open_dependencies(tmp_path) as deps, client_of(deps) as client:
        for number, status in enumerate((Status.VALIDATING, Status.COMPLETED)):
            made = batch_of(f"batch_{number:032x}", endpoint=endpoint, status=status, expires_at=NOW + WINDOW)
            deps.view.put_batch(BatchRecord(project="p", batch=made))
        refused = [
            await client.delete(f"{path}/batch_{0:032x}"),
            await client.post(f"{path}/batch_{1:032x}/cancel"),
        ]
    assert [answer.json()["error"]["message"] for answer in refused] == [
        f"Cannot delete a batch with status '{running}': cancel it first.",
        f"Cannot cancel a batch with status '{ended}'.",
    ]

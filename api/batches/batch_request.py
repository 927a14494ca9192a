"""The request for a new batch, by a create, a rerun or a replay."""

from pydantic import BaseModel, ConfigDict

from tidemill.api.requests.fields import Expiry
from tidemill.schemas.bounds import NAME_CHARS_MAX
from tidemill.schemas.resources.batch import (
    Batch,
    Dedupe,
    ExpiresAfter,
    Extras,
    ReplayRange,
    Status,
    window_seconds,
)


class BatchRequest(BaseModel):
    """The fields of a new batch."""

    model_config = ConfigDict(frozen=True)

    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None
    callback_url: str | None = None
    name: str | None = None
    """The name, unless the metadata has one."""
    dedupe: Dedupe | None = None
    """None leaves it to the model of the first line."""
    rerun_of: str | None = None
    replay_range: ReplayRange | None = None

    def batch(self, batch_id: str, now: int, filename: str | None, headers: dict[str, str]) -> Batch:
        """The batch in its first state; its deadline is `now` (Unix seconds) plus the window.

        The filename of its input names the batch if nothing else does.
        """
        name = (self.metadata or {}).get("name") or self.name or filename or ""
        return Batch(
            id=batch_id,
            endpoint=self.endpoint,
            input_file_id=self.input_file_id,
            completion_window=self.completion_window,
            status=Status.VALIDATING,
            created_at=now,
            expires_at=now + window_seconds(self.completion_window),
            metadata=self.metadata,
            tidemill=Extras(
                name=name[:NAME_CHARS_MAX] or None,
                callback_url=self.callback_url,
                headers=headers or None,
                dedupe=self.dedupe,
                rerun_of=self.rerun_of,
                replay_range=self.replay_range,
            ),
        )

    def matches(self, batch: Batch) -> bool:
        """Whether a batch has these fields, as far as a batch shows them."""
        return (
            self.endpoint, self.input_file_id, self.completion_window, self.metadata, self.callback_url,
        ) == (
            batch.endpoint, batch.input_file_id, batch.completion_window, batch.metadata,
            batch.tidemill.callback_url,
        )  # fmt: skip


def expires_after(asked: Expiry | None) -> ExpiresAfter | None:
    """How long output and error files are kept; None is the default."""
    return None if asked is None else ExpiresAfter(anchor="created_at", seconds=asked.seconds)

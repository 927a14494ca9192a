"""The request for a new batch, by a create, a rerun or a replay."""

from pydantic import BaseModel, ConfigDict

from tidemill.api.requests.fields import Expiry
from tidemill.schemas import ids
from tidemill.schemas.bounds import NAME_CHARS_MAX
from tidemill.schemas.buckets import Format
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
    input_sha256: str | None = None
    """The digest of an input that came in the request's body; each try writes the input to a new file."""
    input_uri: str | None = None
    """The object of a bucket that its input is read from; then `input_file_id` is new with each request."""
    completion_window: str
    open: bool = False
    """Whether its lines come later (`inline/open_batches.py`); then it has no input file yet."""
    answer_schema: str | None = None
    """The JSON Schema that each answer must fit, as JSON text."""
    single: bool = False
    """Whether it is one asynchronous request."""
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None
    callback_url: str | None = None
    name: str | None = None
    """The name, unless the metadata has one."""
    output_uri: str | None = None
    output_format: Format | None = None
    dedupe: Dedupe | None = None
    """None leaves it to the model of the first line."""
    rerun_of: str | None = None
    replay_range: ReplayRange | None = None

    def batch(
        self, batch_id: str, now: int, filename: str | None, headers: dict[str, str], traceparent: str | None
    ) -> Batch:
        """The batch in its first state; its deadline is `now` (Unix seconds) plus the window.

        The filename of its input names the batch if nothing else does.
        """
        is_open = self.open
        name = (self.metadata or {}).get("name") or self.name or filename or ""
        return Batch(
            id=batch_id,
            endpoint=self.endpoint,
            input_file_id=ids.derived_file_id(batch_id, "input") if is_open else self.input_file_id,
            completion_window=self.completion_window,
            status=Status.IN_PROGRESS if is_open else Status.VALIDATING,
            in_progress_at=now if is_open else None,
            created_at=now,
            expires_at=now + window_seconds(self.completion_window),
            metadata=self.metadata,
            tidemill=Extras(
                name=name[:NAME_CHARS_MAX] or None,
                stream=batch_id if is_open else None,
                open=is_open,
                input_bytes=0 if is_open else None,
                single=self.single,
                callback_url=self.callback_url,
                headers=headers or None,
                traceparent=traceparent,
                input_uri=self.input_uri,
                output_uri=self.output_uri,
                output_format=self.output_format,
                validated=self.answer_schema is not None,
                dedupe=self.dedupe,
                rerun_of=self.rerun_of,
                replay_range=self.replay_range,
            ),
        )

    def matches(self, batch: Batch) -> bool:
        """Whether a batch has these fields, as far as a batch shows them."""
        if self.input_uri is not None:
            is_same = self.input_uri == batch.tidemill.input_uri
        else:
            is_same = batch.tidemill.stream == batch.id if self.open else self.input_file_id == batch.input_file_id
        is_same = is_same and batch.tidemill.validated == (self.answer_schema is not None)
        return is_same and (
            self.endpoint, self.completion_window, self.metadata, self.callback_url,
            self.output_uri, self.output_format,
        ) == (
            batch.endpoint, batch.completion_window, batch.metadata,
            batch.tidemill.callback_url, batch.tidemill.output_uri, batch.tidemill.output_format,
        )  # fmt: skip


def expires_after(asked: Expiry | None) -> ExpiresAfter | None:
    """How long output and error files are kept; None is the default."""
    return None if asked is None else ExpiresAfter(anchor="created_at", seconds=asked.seconds)

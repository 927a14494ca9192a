"""What a client asks for when it creates a batch, checked as OpenAI checks it: field by field, at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict

from tidemill.api import errors
from tidemill.schemas.batch import (
    ENDPOINTS,
    Batch,
    ExpiresAfter,
    Extras,
    ReplayRange,
    Status,
    window_seconds,
)
from tidemill.schemas.file import EXPIRES_AFTER_SECONDS

PAIRS_MAX = 16
KEY_CHARS_MAX = 64
VALUE_CHARS_MAX = 512


class Draft(BaseModel):
    """A batch as it was asked for."""

    model_config = ConfigDict(frozen=True)

    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None
    replay_of: str | None = None
    replay_range: ReplayRange | None = None

    def batch(self, batch_id: str, now: int) -> Batch:
        """The batch in its first state; its deadline is `now` and the window."""
        return Batch(
            id=batch_id,
            endpoint=self.endpoint,
            input_file_id=self.input_file_id,
            completion_window=self.completion_window,
            status=Status.VALIDATING,
            created_at=now,
            expires_at=now + window_seconds(self.completion_window),
            metadata=self.metadata,
            tidemill=Extras(replay_of=self.replay_of, replay_range=self.replay_range),
        )

    def is_like(self, batch: Batch) -> bool:
        """Whether the batch is what was asked for, as far as a batch shows it."""
        return (self.endpoint, self.input_file_id, self.completion_window, self.metadata) == (
            batch.endpoint, batch.input_file_id, batch.completion_window, batch.metadata,
        )  # fmt: skip


def parse(body: bytes, windows: Sequence[str]) -> Draft:
    """Read the body of a create; fields that are not known are let pass.

    Args:
        body: JSON.
        windows: The completion windows that may be asked for.

    Raises:
        ApiError: 400 with the field's name.
    """
    fields = json_object(body)
    return Draft(
        endpoint=choice(fields, "endpoint", ENDPOINTS),
        completion_window=choice(fields, "completion_window", windows),
        input_file_id=text(fields, "input_file_id"),
        metadata=metadata(fields.get("metadata")),
        output_expires_after=expires_after(fields, "output_expires_after"),
    )


def json_object(body: bytes) -> dict[str, Any]:
    """A body that must be a JSON object; an empty one has no fields.

    Raises:
        ApiError: 400, it is something else.
    """
    try:
        content = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise errors.invalid("We could not parse the JSON body of your request.") from error
    if not isinstance(content, dict):
        raise errors.invalid("The JSON body of your request must be an object.")
    return content


def metadata(value: Any) -> dict[str, str] | None:
    """Check the metadata of an object: at most 16 pairs of strings.

    Raises:
        ApiError: 400, it is something else or too large.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise errors.wrong_type("metadata", "an object", value)
    if len(value) > PAIRS_MAX:
        raise errors.too_many("metadata", PAIRS_MAX, len(value))
    for key, content in value.items():
        param = f"metadata.{errors.shorten(key)}"
        if not isinstance(content, str):
            raise errors.wrong_type(param, "a string", content)
        if len(key) > KEY_CHARS_MAX:
            raise errors.too_long(param, KEY_CHARS_MAX, len(key))
        if len(content) > VALUE_CHARS_MAX:
            raise errors.too_long(param, VALUE_CHARS_MAX, len(content))
    return dict(value)


def seconds(param: str, value: int) -> int:
    """Check how long a file is to be kept.

    Raises:
        ApiError: 400, it is out of range.
    """
    low, high = EXPIRES_AFTER_SECONDS
    if value < low:
        raise errors.too_small(param, low, value)
    if value > high:
        raise errors.too_large(param, high, value)
    return value


def expires_after(fields: Mapping[str, Any], param: str) -> ExpiresAfter | None:
    """Check how long a file is to be kept, where that is said.

    Raises:
        ApiError: 400 with the field's name.
    """
    if (value := fields.get(param)) is None:
        return None
    if not isinstance(value, dict):
        raise errors.wrong_type(param, "an object", value)
    choice(value, "anchor", ("created_at",), prefix=f"{param}.")
    length = integer(value, "seconds", prefix=f"{param}.")
    return ExpiresAfter(anchor="created_at", seconds=seconds(f"{param}.seconds", length))


def text(fields: Mapping[str, Any], name: str, *, prefix: str = "") -> str:
    """A field that must be there and be a string.

    Raises:
        ApiError: 400, it is not.
    """
    param = prefix + name
    value = fields.get(name)
    if value is None:
        raise errors.missing(param)
    if not isinstance(value, str):
        raise errors.wrong_type(param, "a string", value)
    return value


def integer(fields: Mapping[str, Any], name: str, *, prefix: str = "") -> int:
    """A field that must be there and be a whole number.

    Raises:
        ApiError: 400, it is not.
    """
    param = prefix + name
    value = fields.get(name)
    if value is None:
        raise errors.missing(param)
    if not isinstance(value, int) or isinstance(value, bool):
        raise errors.wrong_type(param, "an integer", value)
    return value


def choice(fields: Mapping[str, Any], name: str, values: Sequence[str], *, prefix: str = "") -> str:
    """A field that must be there and be one of some strings.

    Raises:
        ApiError: 400, it is not.
    """
    value = text(fields, name, prefix=prefix)
    if value not in values:
        raise errors.wrong_value(prefix + name, value, values)
    return value

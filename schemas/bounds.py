"""Bounded types for every free string, list and map of a message.

A record of the log has room for `RECORD_BYTES_MAX` bytes. Since every field is bounded, the largest record of each
model is known (tests/unit/schemas/test_bounds.py computes it), and accepted input fits into all records made from
it. Lengths are in characters; in JSON a character takes up to `CHAR_BYTES_MAX` bytes.
"""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

RECORD_BYTES_MAX: Final = 1 << 20
"""Bytes of a record: key, value, headers, and `RECORD_BYTES_EXTRA` of framing."""
RECORD_BYTES_EXTRA: Final = 4096
"""An upper bound of the framing, the key and the headers of a message."""
CHAR_BYTES_MAX: Final = 6
"""Bytes of a character in JSON: a control character is `\\u0000`."""

ID_CHARS_MAX: Final = 64
NAME_CHARS_MAX: Final = 255
"""Length of the name of a stream, a model, a project or a key."""
FILENAME_CHARS_MAX: Final = 1024
WORD_CHARS_MAX: Final = 64
"""Length of a code, an endpoint or a window."""
PARAM_CHARS_MAX: Final = 128
TEXT_CHARS_MAX: Final = 1000
"""Length of a message."""
STORE_KEY_CHARS_MAX: Final = 255
URL_CHARS_MAX: Final = 2048
"""Length of the URL of a webhook."""
CLOCK_SKEW_SECONDS: Final = 60
"""How much the clocks of two machines may differ."""

FORWARDED_HEADERS_MAX: Final = 8
"""Headers of a client that go with each call of its batch."""
CUSTOM_ID_CHARS_MAX: Final = 512
"""Length of the `custom_id` of a line."""
INLINE_REQUESTS_MAX: Final = 1000
"""Requests in the body of a create."""
ANSWER_SCHEMA_CHARS_MAX: Final = 32 << 10
"""Length of the JSON Schema of a batch, as JSON text."""
METADATA_PAIRS_MAX: Final = 16
METADATA_KEY_CHARS_MAX: Final = 64
METADATA_VALUE_CHARS_MAX: Final = 512

ERRORS_MAX: Final = 1000
"""Errors that a batch lists; the last entry counts the others."""
ERRORS_BYTES_MAX: Final = 256 * 1024
"""Bytes of all errors of a batch, in JSON."""
OUTPUTS_MAX: Final = 1000
"""Numbered files of one output; the last one takes all remaining lines."""
RERUNS_MAX: Final = 100
"""Reruns that a batch shows, the newest."""
UPLOAD_PARTS_MAX: Final = 10_000

NUMBER_MAX: Final = (1 << 53) - 1
"""The largest number that every JSON parser keeps exactly."""
SIZE_MAX: Final = (1 << 63) - 1
TIME_MAX: Final = 250_000_000_000
"""Unix seconds in the year 9892, near the end of the calendar."""
BATCH_LINES_MAX: Final = 10_000_000
"""Lines of one batch."""
BATCH_MODELS_MAX: Final = 32
"""Models that the lines of one batch may name."""
REPLY_BYTES_MAX: Final = 32 << 20
"""The default bound of a backend's reply."""
LINE_BYTES_HIGHEST: Final = 256 << 20
"""The highest setting for the bound of a line, and of a reply."""
LARGE_BYTES_MAX: Final = 3 * LINE_BYTES_HIGHEST + (1 << 20)
"""Bytes of a line or a result in the store. A result is a reply and some hundred bytes more; a character of two
bytes may become an escape of six."""
TOKENS_MAX: Final = 1 << 28
"""Tokens of one kind in one line: more than it has bytes, and below `NUMBER_MAX` in the sum of the largest
batch."""
AMOUNT_DIGITS_MAX: Final = 200

Id = Annotated[str, StringConstraints(max_length=ID_CHARS_MAX, pattern=r"^[A-Za-z0-9_-]*$")]
Digest = Id
"""A SHA-256 in hex."""
Name = Annotated[str, StringConstraints(max_length=NAME_CHARS_MAX)]
Filename = Annotated[str, StringConstraints(max_length=FILENAME_CHARS_MAX)]
Word = Annotated[str, StringConstraints(max_length=WORD_CHARS_MAX)]
Param = Annotated[str, StringConstraints(max_length=PARAM_CHARS_MAX)]
Text = Annotated[str, StringConstraints(max_length=TEXT_CHARS_MAX)]
Url = Annotated[str, StringConstraints(max_length=URL_CHARS_MAX)]
StoreKey = Annotated[str, StringConstraints(max_length=STORE_KEY_CHARS_MAX)]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=METADATA_KEY_CHARS_MAX)],
        Annotated[str, StringConstraints(max_length=METADATA_VALUE_CHARS_MAX)],
    ],
    Field(max_length=METADATA_PAIRS_MAX),
]

Headers = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=METADATA_KEY_CHARS_MAX)],
        Annotated[str, StringConstraints(max_length=METADATA_VALUE_CHARS_MAX)],
    ],
    Field(max_length=FORWARDED_HEADERS_MAX),
]

Number = Annotated[int, Field(ge=0, le=NUMBER_MAX)]
Signed = Annotated[int, Field(ge=-NUMBER_MAX, le=NUMBER_MAX)]
Size = Annotated[int, Field(ge=0, le=SIZE_MAX)]
Time = Annotated[int, Field(ge=0, le=TIME_MAX)]
"""Unix seconds."""
Moment = Annotated[float, Field(ge=0, le=TIME_MAX, allow_inf_nan=False)]
"""Unix seconds, with fractions."""
Real = Annotated[float, Field(allow_inf_nan=False)]


class Shape(BaseModel):
    """A message, or a part of one: immutable, and blind to the fields of later versions."""

    model_config = ConfigDict(frozen=True, extra="ignore")

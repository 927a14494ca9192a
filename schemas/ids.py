"""Creates and recognizes ids.

Ids of batches, files and keys begin with their creation time, so lists sorted by `created_at` and id are in order
within a second, too. Ids derived from an idempotency key or a batch are the same each time, and in no order.
"""

import hashlib
import re
import secrets
import string
import time

BATCH_PREFIX = "batch_"

NIL = "00000000-0000-0000-0000-000000000000"
"""Kafka's id of a topic without an id."""

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_PART = re.compile(rf"(?:{BATCH_PREFIX})?([0-9a-f]{{4,31}})\Z")
_BATCH = re.compile(BATCH_PREFIX + r"[0-9a-f]{32}\Z")
_LISTED = re.compile(r"(?:(?:audit|batch|key)_[0-9a-f]{32}|file-[0-9A-Za-z]{22})\Z")
_UPLOAD = re.compile(r"upload_[0-9a-f]{32}\Z")
_ENDPOINT = re.compile(r"we_[0-9a-f]{32}\Z")
_OWNER_CHARS = 6
_FILE = re.compile(r"file-[0-9A-Za-z]{22}\Z")


def new_audit_id() -> str:
    """`audit_` and 32 hex digits: 13 of the time, 19 random ones."""
    return f"audit_{timely_hex()}"


def new_batch_id() -> str:
    """`batch_` and 32 hex digits: 13 of the time, 19 random ones."""
    return BATCH_PREFIX + timely_hex()


def derived_batch_id(project: str, key: str) -> str:
    """The id of a project's batch with an idempotency key, equal in every process."""
    # A project's name has no NUL, so no two pairs give the same text.
    return BATCH_PREFIX + hashlib.blake2b(f"{project}\0{key}".encode(), digest_size=16).hexdigest()


def stream_batch_id(partition: int, offset: int) -> str:
    """The id of a stream's batch, from the place of its first record in `tidemill.intake`."""
    # No project's name has a slash, so no idempotency key gives this id.
    return derived_batch_id("/intake", f"{partition}/{offset}")


def new_upload_id() -> str:
    """`upload_` and 32 hex digits, random."""
    return f"upload_{secrets.token_hex(16)}"


def new_part_id() -> str:
    """`part_` and 32 hex digits, random."""
    return f"part_{secrets.token_hex(16)}"


def new_file_id(project: str) -> str:
    """`file-` and 22 characters of base 62: 9 of the time, 7 random ones, 6 of the project (`owned_file_id`)."""
    now = (time.time_ns() // 1000).to_bytes(8, "big")
    return owned_file_id("file-" + base62(now, 9) + "".join(secrets.choice(_BASE62) for _ in range(13)), project)


def owned_file_id(file_id: str, project: str) -> str:
    """The id with a digest of the project as its last 6 characters.

    So a stage with only the id, and no list of files, knows whether the project uploaded the file.
    """
    kept = file_id[:-_OWNER_CHARS]
    return kept + base62(hashlib.blake2b(f"{kept}/{project}".encode(), digest_size=8).digest(), _OWNER_CHARS)


def is_owned(file_id: str, project: str) -> bool:
    """Whether only the project can have uploaded a file with this id, except for one in 10^10 ids."""
    return file_id == owned_file_id(file_id, project)


def new_endpoint_id() -> str:
    """The id of a webhook endpoint: `we_` and 32 hex digits, 13 of the time, 19 random ones."""
    return f"we_{timely_hex()}"


def callback_endpoint_id(project: str) -> str:
    """The id of the endpoint that stands for the callbacks of a project's batches."""
    return f"we_{hashlib.blake2b(f'{project}/callback'.encode(), digest_size=16).hexdigest()}"


def is_endpoint_id(text: str) -> bool:
    """Whether the text has the form of a webhook endpoint's id."""
    return _ENDPOINT.match(text) is not None


def new_request_id() -> str:
    """`req_` and 32 hex digits, random: for one HTTP request to the API."""
    return f"req_{secrets.token_hex(16)}"


def derived_file_id(maker_id: str, part: str) -> str:
    """The id of a file of a batch or an upload, equal each time the file is written.

    The part is `output` or `errors` of a batch, or a digest of an upload's parts.
    """
    return "file-" + base62(hashlib.blake2b(f"{maker_id}/{part}".encode(), digest_size=17).digest(), 22)


def timely_hex() -> str:
    """32 hex digits in the order of their creation: 13 of the time, enough until the year 2112, 19 random ones."""
    return f"{time.time_ns() // 1000:013x}{secrets.token_hex(10)[:19]}"


def line_id(batch_id: str, index: int) -> str:
    """The id of a line of an output or error file, equal each time the line is written."""
    return "batch_req_" + hashlib.blake2b(f"{batch_id}/{index}".encode(), digest_size=12).hexdigest()


def is_batch_id(text: str) -> bool:
    """Whether the text has the form of a batch id."""
    return _BATCH.match(text) is not None


def is_listed_id(text: str) -> bool:
    """Whether the text has the form of the id of an audit record, a batch, a file or a key."""
    return _LISTED.match(text) is not None


def is_part_of_batch_id(text: str) -> bool:
    """Whether the text can be the beginning or end of a batch id, with four of its digits at least."""
    return _PART.match(text) is not None


def names_batch(text: str, batch_id: str) -> bool:
    """Whether the text is the id of this batch, or its beginning or end."""
    if (part := _PART.match(text)) is None:
        return text == batch_id
    own = batch_id.removeprefix(BATCH_PREFIX)
    return own.startswith(part[1]) or own.endswith(part[1])


def is_upload_id(text: str) -> bool:
    """Whether the text has the form of an upload's id."""
    return _UPLOAD.match(text) is not None


def is_file_id(text: str) -> bool:
    """Whether the text has the form of a file id."""
    return _FILE.match(text) is not None


def is_same_topic(before: str, now: str) -> bool:
    """Whether two identities (`kafka.connection.topic_identities`) name one topic.

    A topic without an id may be any one of its cluster.
    """
    (cluster, _, topic), (cluster_now, _, topic_now) = before.partition("/"), now.partition("/")
    return cluster == cluster_now and (topic == topic_now or not {topic, topic_now}.isdisjoint({"", NIL}))


def base62(content: bytes, chars: int, digits: str = _BASE62) -> str:
    """The last digits to the base of 62 of a number: these bytes, the highest first."""
    number, found = int.from_bytes(content), ""
    for _ in range(chars):
        number, digit = divmod(number, 62)
        found = digits[digit] + found
    return found

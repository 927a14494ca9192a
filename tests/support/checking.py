"""Lines of a batch's file, and the verdicts of ingest on them."""

import orjson

from tidemill.ingest.files.validation import Checker, Rules
from tidemill.ingest.files.verdict import Failed, Passed
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl.lines import Splitter
from tidemill.schemas.resources.batch import BatchError

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
MODELS = {"m": ENDPOINTS, "other": ENDPOINTS, "embed": (EMBEDDINGS,)}
ABSENT = object()


def rules(
    endpoint: str = CHAT, *, lines_max: int = 50_000, bytes_max: int = 209_715_200, project: str = ""
) -> Rules:
    """The rules of a batch."""
    return Rules(endpoint=endpoint, models=MODELS, lines_max=lines_max, bytes_max=bytes_max, project=project)


def line(custom_id: object = "a", *, body: object = None, **fields: object) -> bytes:
    """A valid line, with these changes."""
    request = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body or request_body(), **fields}
    return orjson.dumps({name: value for name, value in request.items() if value is not ABSENT})


def request_body(**fields: object) -> dict[str, object]:
    """A valid body, with these changes."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return {name: value for name, value in body.items() if value is not ABSENT}


def verdict(*lines: bytes, of: Rules | None = None) -> Passed | Failed:
    """The verdict of ingest on a file."""
    of = of or rules()
    checker, splitter = Checker(of), Splitter(of.line_bytes_max)
    for found in [*splitter.feed(b"\n".join(lines)), *splitter.finish()]:
        checker.check([found])
    return checker.verdict()


def fault(*lines: bytes, of: Rules | None = None) -> BatchError:
    """The only fault of a file."""
    found = verdict(*lines, of=of)
    assert isinstance(found, Failed)
    (error,) = found.errors
    return error

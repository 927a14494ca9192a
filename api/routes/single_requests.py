"""The routes of single asynchronous requests, at the path of each endpoint behind `/v1/async`."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Response
from pydantic import ConfigDict, Field

from tidemill.api import errors
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.batches.creation import CreateHeaders
from tidemill.api.dependencies import Caller, Deps, StoringBody, json
from tidemill.api.inline import single_request
from tidemill.api.inline.single_request import AsyncRequest
from tidemill.api.openapi import Route
from tidemill.api.requests import inline, reading
from tidemill.api.requests.fields import BatchId
from tidemill.api.requests.parts import PathId, Query
from tidemill.api.requests.reading import Body
from tidemill.schemas.bounds import WORD_CHARS_MAX, Url, Word
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl import nesting

PREFIX: Final = "/v1/"


def _opaque(schema: dict[str, Any]) -> None:
    schema.clear()
    schema |= {"type": "object", "description": "The body of a request to the endpoint.", "x-streamed": True}


class RequestBody(Body):
    """The body of a request to the endpoint, unread."""

    model_config = ConfigDict(json_schema_extra=_opaque)

    content: bytes

    @classmethod
    def decoded(cls, content: bytes) -> Any:
        """Keep the text of a JSON object; any other value is refused."""
        reading.check_json(content, nesting.DEPTH_MAX - 1)
        text = content.strip()
        return {"content": text} if text.startswith(b"{") else None


class AsyncQuery(reading.Parameters):
    """The query of a new request."""

    completion_window: Word | None = None
    """How long it may take; by default the installation's usual window."""
    callback_url: Annotated[Url, Field(min_length=1)] | None = None
    """Gets the event of its end, `batch.completed` for example."""


_PATH: Final = PathId(
    "endpoint_path", errors.no_async_request, max_length=WORD_CHARS_MAX, pattern="^[A-Za-z0-9._/-]+$"
)
EndpointPath = Annotated[str, Depends(_PATH)]
router = APIRouter(prefix="/v1/async", tags=["asynchronous requests"], route_class=Route)


@router.post(
    "/{endpoint_path:path}",
    response_model=AsyncRequest,
    responses={409: {"description": "The `Idempotency-Key` was used for another request."}},
)
async def create(
    deps: Deps,
    caller: Caller,
    endpoint_path: EndpointPath,
    *,
    headers: CreateHeaders,
    query: Annotated[AsyncQuery, Depends(Query(AsyncQuery))],
    body: Annotated[RequestBody, Depends(StoringBody(RequestBody, bytes_max=inline.BYTES_MAX))],
) -> Response:
    """Send a request to an endpoint, `chat/completions` for example; the answer comes when the log has it."""
    if query.callback_url is not None:
        await deps.webhooks.check_callback(caller.project, query.callback_url)
    window = query.completion_window or deps.settings.usual_window
    if window not in deps.settings.windows:
        raise errors.wrong_value("completion_window", window, deps.settings.windows)
    wanted = BatchRequest(
        endpoint=_path(endpoint_path),
        input_file_id="",
        completion_window=window,
        callback_url=query.callback_url,
        single=True,
    )
    batch = await single_request.create(deps, caller.project, wanted, body.content, headers)
    return json(await single_request.shown(deps, caller.project, batch))


@router.get("/{endpoint_path:path}/{batch_id}", response_model=AsyncRequest)
async def retrieve(deps: Deps, caller: Caller, endpoint_path: EndpointPath, batch_id: BatchId) -> Response:
    """Get a request, with its answer if it has ended."""
    batch = await single_request.find(deps, caller.project, _path(endpoint_path), batch_id)
    return json(await single_request.shown(deps, caller.project, batch))


def _path(endpoint: str) -> str:
    if (path := PREFIX + endpoint) not in ENDPOINTS:
        raise errors.no_async_request(endpoint)
    return path

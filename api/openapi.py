"""Generates the OpenAPI document from the dependencies, models and docstrings of the routes."""

import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, get_args, get_origin, get_type_hints

from fastapi import FastAPI, Request, Response, params
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from tidemill import __version__
from tidemill.api.requests.parts import Part
from tidemill.api.requests.reading import nullable
from tidemill.schemas.resources.error import ErrorEnvelope

PATH: Final = "/openapi.json"
DESCRIPTION: Final = (
    "Files, batches and related resources, compatible with OpenAI's API: its SDKs work with this address as "
    "`base_url`. Tidemill's additions have routes and fields of their own. Every answer has the header "
    "`x-request-id`, and every error OpenAI's body."
)
ERRORS: Final = {
    421: "The server does not answer to the host name of the request.",
    500: "A fault of the server's own.",
    503: "The log, the store or the view does not answer; the same request may succeed in a moment.",
}
"""Errors that any route may answer."""
Handler = Callable[[Request], Coroutine[Any, Any, Response]]
WINDOW: Final = "completion_window"
_HEADERS: Final = {"x-request-id": {"required": True, "schema": {"type": "string"}}}


class Route(APIRoute):
    """A route that is described by its docstring and by the parts of the request that it depends on."""

    error_model: ClassVar[type[BaseModel]] = ErrorEnvelope
    statuses: ClassVar[Mapping[int, int]] = {}
    """The statuses that stand for others."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        parts = list(_parts(endpoint))
        texts = ERRORS | {status: text for part in parts for status, text in part.errors.items()}
        responses: dict[int | str, dict[str, Any]] = {200: {}}
        responses |= {self.statuses.get(status, status): {"description": text} for status, text in texts.items()}
        for status, found in (options.pop("responses", None) or {}).items():
            responses[status] = {**responses.get(status, {}), **found}
        for status, found in responses.items():
            found["headers"] = _HEADERS
            if int(status) >= 400:  # noqa: PLR2004  an error
                found["model"] = self.error_model
        options["openapi_extra"] = _described(parts)
        # The beginning of a docstring says more than the name of its function.
        options["summary"] = re.split(r"[;:.]( |\Z)", endpoint.__doc__ or "", maxsplit=1)[0]
        super().__init__(path, endpoint, responses=responses, **options)

    def get_route_handler(self) -> Handler:
        """Call the endpoint with what its dependencies find in the request, in their order.

        Dependencies that take the request and nothing else need no graph, no cache and no stack, for which FastAPI
        takes longer than most routes do. It still encodes the models that some endpoints return.
        """
        if not issubclass(get_type_hints(self.endpoint)["return"], Response):
            return super().get_route_handler()
        endpoint, wanted = self.endpoint, list(_dependencies(self.endpoint))

        async def handle(request: Request) -> Response:
            answer: Response = await endpoint(**{name: await find(request) for name, find in wanted})
            return answer

        return handle


def _dependencies(endpoint: Callable[..., Any]) -> Iterator[tuple[str, Callable[[Request], Awaitable[Any]]]]:
    """The names and dependencies of its parameters.

    Raises:
        TypeError: A parameter is neither a dependency nor the request.
    """
    hints = get_type_hints(endpoint, include_extras=True)
    del hints["return"]
    for name, hint in hints.items():
        given = [each.dependency for each in get_args(hint)[1:] if isinstance(each, params.Depends)]
        if hint is Request:
            given = [_request]
        if len(given) != 1 or given[0] is None:
            raise TypeError(f"{endpoint.__qualname__}: {name} is not a dependency")
        yield name, given[0]


async def _request(request: Request) -> Request:
    return request


def _parts(endpoint: Callable[..., Any]) -> Iterator[Part]:
    for name, hint in get_type_hints(endpoint, include_extras=True).items():
        if name != "return" and get_origin(hint) is Annotated:
            for each in get_args(hint)[1:]:
                if isinstance(each, params.Depends) and isinstance(each.dependency, Part):
                    yield each.dependency


def _described(parts: list[Part]) -> dict[str, Any]:
    operation: dict[str, Any] = {}
    for part in parts:
        for name, found in part.described().items():
            operation[name] = operation[name] + found if name in operation else found
    return operation


def describe(app: FastAPI, *, has_window: bool = False) -> dict[str, Any]:
    """The document; `has_window` says that the installation has a default window."""
    found = get_openapi(title="Tidemill", version=__version__, description=DESCRIPTION, routes=app.routes)
    if has_window:
        body = found["paths"]["/v1/batches"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        body["required"].remove(WINDOW)
        body["properties"][WINDOW] = nullable(body["properties"][WINDOW])
    return found

"""Parts of a request as dependencies of a route: each is read through a model and describes itself for OpenAPI."""

import copy
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from tidemill.api.requests import reading
from tidemill.schemas import bounds
from tidemill.schemas.resources.error import ApiError

M = TypeVar("M", bound=BaseModel)

ID: Final = rf"^[A-Za-z0-9_-]{{1,{bounds.ID_CHARS_MAX}}}$"
FULL: Final = {507: "A disk of the server has only its reserve left; deletions still work."}
"""The error of requests that store something."""
UNUSABLE: Final = {400: "The request is invalid; `param` names the field."}


class Part:
    """A dependency that reads a part of a request."""

    errors: ClassVar[Mapping[int, str]] = {}
    """The error statuses that it may answer, with their descriptions."""

    def described(self) -> dict[str, Any]:
        """Its contribution to an operation of the OpenAPI document."""
        return {}


class _Parameters(Part, Generic[M]):
    """Parameters of a request, as a model."""

    place: ClassVar[str]
    """Where they are, in OpenAPI's words."""

    def __init__(self, model: type[M]) -> None:
        self._model = model

    def described(self) -> dict[str, Any]:
        """A parameter for each field."""
        return {"parameters": _parameters(self._model, self.place)}


class Query(_Parameters[M]):
    """The query, as a model."""

    errors: ClassVar[Mapping[int, str]] = {**UNUSABLE, 414: "The URL is too long."}
    place = "query"

    async def __call__(self, request: Request) -> M:
        """Read it."""
        return reading.query(self._model, request.query_params.multi_items())


class Headers(_Parameters[M]):
    """Some headers, as a model."""

    errors: ClassVar[Mapping[int, str]] = {**UNUSABLE, 431: "The headers are too large."}
    place = "header"

    async def __call__(self, request: Request) -> M:
        """Read them."""
        return reading.headers(self._model, request.headers)


class PathId(Part):
    """An id in the path, within `bounds` of `pydantic.Field`.

    A malformed one is answered like an unknown one, by the error that `absent` returns.
    """

    errors: ClassVar[Mapping[int, str]] = {404: "The project has no such object."}

    def __init__(self, name: str, absent: Callable[[str], ApiError], **bounds: Any) -> None:
        self._name = name
        self._absent = absent
        self._type = TypeAdapter[str](Annotated[str, Field(**bounds)])

    async def __call__(self, request: Request) -> str:
        """Read it."""
        found = request.path_params[self._name]
        try:
            return self._type.validate_python(found)
        except ValidationError as error:
            raise self._absent(found) from error

    def described(self) -> dict[str, Any]:
        """A parameter."""
        schema = self._type.json_schema()
        return {"parameters": [{"name": self._name, "in": "path", "required": True, "schema": schema}]}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model, with the models that it refers to inlined."""
    schema = copy.deepcopy(model.model_json_schema())
    named = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(each) for each in node]
        if not isinstance(node, dict):
            return node
        if (target := node.get("$ref", "")).startswith("#/$defs/"):
            return inline(named[target.removeprefix("#/$defs/")])
        return {key: inline(each) for key, each in node.items()}

    inlined: dict[str, Any] = inline(schema)
    return inlined


def _parameters(model: type[BaseModel], where: str) -> list[dict[str, Any]]:
    shown, whole = [], schema_of(model)
    for name, schema in whole["properties"].items():
        kept = {key: value for key, value in _present(schema).items() if key not in {"title", "description"}}
        is_required = name in whole.get("required", ())
        parameter = {
            "name": name, "in": where, "required": is_required, "description": schema.get("description", ""),
        }  # fmt: skip
        deep = {"style": "deepObject"} if kept.get("type") == "object" else {}
        shown.append({**parameter, "schema": kept, **deep})
    return shown


def _present(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the null of an absent parameter."""
    choices = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    return choices[0] if len(choices) == 1 else {key: value for key, value in schema.items() if value is not None}

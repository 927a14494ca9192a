"""The routes of servers and models: an operator changes them while everything runs.

A change is checked against the present catalog. If another one came between, it is checked again, so no change
undoes another unseen. `if-match` with a revision makes a change only if the object still has that revision.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tidemill.api import errors
from tidemill.api.access.auth import Principal
from tidemill.api.dependencies import Dependencies, Deps, JsonBody, OperatorCaller, json
from tidemill.api.openapi import Route
from tidemill.api.requests import paging, reading
from tidemill.api.requests.paging import ListPage, Page, Row
from tidemill.api.requests.parts import Headers, PathId, Query
from tidemill.api.servers.load import ModelCalls, SharedLoad
from tidemill.configuration import catalog, changes
from tidemill.configuration.catalog import MODEL, SERVER, Applied, Contents, Entry, Key, kind_of, name_of
from tidemill.configuration.changes import Difference, Wanted
from tidemill.configuration.servers import Model, Server
from tidemill.runtime import server_probe
from tidemill.schemas import bounds, fingerprint_of
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.error import ApiError

LIMIT_DEFAULT: Final = 1_000
FIELDS_MAX: Final = 64
"""More settings than a server or a model has."""
PROBES_MAX: Final = 32
"""Servers that are called after one change, at once."""

router = APIRouter(prefix="/v1/admin", tags=["admin"], route_class=Route)


class EntriesQuery(reading.Parameters):
    """The query of a list of servers or models."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_DEFAULT), reading.WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    after: bounds.Name | None = None
    """The name of the last one of the page before."""


class Precondition(reading.Parameters):
    """The headers of a change."""

    if_match: Annotated[int | None, Field(alias="If-Match", ge=0, le=bounds.SIZE_MAX), reading.WHOLE] = None
    """Make the change only if the object has this revision."""


class Matching(Headers[Precondition]):
    """The precondition of a change."""

    errors: ClassVar[Mapping[int, str]] = {**Headers.errors, 412: "The object has another revision."}


EntrySettings = Annotated[dict[bounds.Word, Any], Field(max_length=FIELDS_MAX)]
Entries = Annotated[dict[bounds.Name, EntrySettings], Field(max_length=changes.ENTRIES_MAX)]


class EntryRequest(reading.Body):
    """A server or a model."""

    model_config = ConfigDict(extra="forbid")

    settings: EntrySettings
    """Its settings, as in `tidemill.toml`. A change sets those that it names; `null` sets the default."""


class ApplyRequest(reading.Body):
    """The servers and models of a settings file."""

    model_config = ConfigDict(extra="forbid")

    servers: Entries = Field(default_factory=dict)
    """The table `servers`."""
    models: Entries = Field(default_factory=dict)
    """The table `models`."""
    dry_run: bool = False
    """Only show what would change."""


class CatalogObject(BaseModel):
    """A server or a model."""

    id: str
    """Its name."""
    object: Literal["server", "model"]
    settings: dict[str, Any]
    """Its settings, without those that have their default."""
    removed: bool
    """Whether it is gone; its record stays, with its author and time."""
    fault: str | None
    """Why it cannot be used, if its settings contradict others."""
    used_by: list[str]
    """For a server its models, for a model its servers."""
    author: str
    """Id of the key that changed it last, or the name of the settings file."""
    changed_at: int
    revision: int
    """Grows with each change."""
    warnings: list[str] = []
    """Findings of the check; they do not stop the change."""
    load: SharedLoad | ModelCalls | None = None
    """Its present load, as processors measure it; null if none has reported on it."""


class AppliedObject(BaseModel):
    """The changes of an applied settings file."""

    object: Literal["catalog.changes"] = "catalog.changes"
    changes: list[Difference]
    dry_run: bool
    warnings: list[str]


EntryName = Annotated[
    str, Depends(PathId("name", errors.no_entry, min_length=1, max_length=bounds.NAME_CHARS_MAX))
]

NewSettings = Annotated[EntryRequest, Depends(JsonBody(EntryRequest))]
Match = Annotated[Precondition, Depends(Matching(Precondition))]


async def _kind(request: Request) -> str:
    """`SERVER` or `MODEL`, by the path of the route."""
    return SERVER if request.scope["route"].path.startswith(f"{router.prefix}/servers") else MODEL


Kind = Annotated[str, Depends(_kind)]


@router.get("/servers", response_model=ListPage[CatalogObject])
@router.get("/models", response_model=ListPage[CatalogObject])
async def index(
    deps: Deps, caller: OperatorCaller, kind: Kind, query: Annotated[EntriesQuery, Depends(Query(EntriesQuery))]
) -> Response:
    """List servers or models by name, with their settings, without those that are gone."""
    del caller
    contents, loads = deps.catalog.contents, _loads(deps, kind)
    names = sorted(
        name_of(key) for key, entry in contents.entries.items() if kind_of(key) == kind and not entry.removed
    )
    page = Page(limit=query.limit, after=query.after)
    later = [name for name in names if query.after is None or name > query.after][: page.limit + 1]
    shown = (_shown(contents, kind + name, loads.get(name)) for name in later)
    rows = (Row(id=one.id, body=one.model_dump_json().encode()) for one in shown)
    return json(paging.write(page, list(rows)))


@router.get("/servers/{name:path}", response_model=CatalogObject)
@router.get("/models/{name:path}", response_model=CatalogObject)
async def retrieve(deps: Deps, caller: OperatorCaller, kind: Kind, name: EntryName) -> Response:
    """Get a server or a model, also one that is gone."""
    del caller
    _known(deps.catalog.contents, kind + name)
    return json(_shown(deps.catalog.contents, kind + name, _loads(deps, kind).get(name)))


@router.put("/servers/{name:path}", response_model=CatalogObject)
@router.put("/models/{name:path}", response_model=CatalogObject)
async def put(
    *,
    request: Request,
    deps: Deps,
    caller: OperatorCaller,
    kind: Kind,
    name: EntryName,
    body: NewSettings,
    match: Match,
) -> Response:
    """Add a server or a model, or replace all of its settings; every process follows within seconds."""
    return await _changed(request, deps, caller, kind + name, lambda _: body.settings, match=match)


@router.patch("/servers/{name:path}", response_model=CatalogObject)
@router.patch("/models/{name:path}", response_model=CatalogObject)
async def patch(
    *,
    request: Request,
    deps: Deps,
    caller: OperatorCaller,
    kind: Kind,
    name: EntryName,
    body: NewSettings,
    match: Match,
) -> Response:
    """Change some settings of a server or a model; every process follows within seconds."""

    def merged(contents: Contents) -> Mapping[str, Any]:
        settings = {**_known(contents, kind + name, is_present=True).settings, **body.settings}
        return {field: value for field, value in settings.items() if value is not None}

    return await _changed(request, deps, caller, kind + name, merged, match=match)


@router.delete("/servers/{name:path}", response_model=CatalogObject)
@router.delete("/models/{name:path}", response_model=CatalogObject)
async def remove(
    *, request: Request, deps: Deps, caller: OperatorCaller, kind: Kind, name: EntryName, match: Match
) -> Response:
    """Remove a server, or a model; lines that wait for the model wait until their deadline."""

    def nothing(contents: Contents) -> None:
        _known(contents, kind + name, is_present=True)

    return await _changed(request, deps, caller, kind + name, nothing, match=match)


@router.post("/apply", response_model=AppliedObject)
async def apply(
    request: Request,
    deps: Deps,
    caller: OperatorCaller,
    body: Annotated[ApplyRequest, Depends(JsonBody(ApplyRequest))],
) -> Response:
    """Make servers and models as a settings file says; what was added otherwise stays."""
    settings, at = _of_file(body), int(deps.clock())

    def plan(contents: Contents) -> dict[Key, Entry]:
        return _refusing(contents, lambda: changes.of_settings(contents, settings, author=caller.actor, at=at))

    await deps.catalog.catch_up()
    contents = deps.catalog.contents
    entries = plan(contents)
    differences = changes.differences(contents, entries)
    if body.dry_run:
        contents = changes.after(contents, entries)
    else:
        await _record(request, deps, caller, differences)
        contents = await deps.catalog.change(deps.log, plan)
        applied = Applied(digest=fingerprint_of(settings), author=caller.actor, at=at)
        await deps.catalog.note_applied(deps.log, applied)
    return json(
        AppliedObject(changes=differences, dry_run=body.dry_run, warnings=await _warnings(contents, entries))
    )


async def _changed(
    request: Request,
    deps: Dependencies,
    caller: Principal,
    key: Key,
    settings: Callable[[Contents], Mapping[str, Any] | None],
    *,
    match: Precondition,
) -> Response:
    """Change one entry, and show it."""
    at = int(deps.clock())

    def plan(contents: Contents) -> dict[Key, Entry]:
        old = contents.entries.get(key)
        if match.if_match is not None and (old is None or old.removed or old.revision != match.if_match):
            raise errors.another_revision(name_of(key))
        wanted: Wanted = {key: settings(contents)}

        def checked() -> dict[Key, Entry]:
            if old is None:
                catalog.check_name(key)
            return changes.planned(contents, wanted, author=caller.actor, at=at)

        return _refusing(contents, checked)

    await deps.catalog.catch_up()
    before = deps.catalog.contents
    entries = plan(before)
    await _record(request, deps, caller, changes.differences(before, entries))
    contents = await deps.catalog.change(deps.log, plan)
    shown = _shown(contents, key, _loads(deps, kind_of(key)).get(name_of(key)))
    return json(shown.model_copy(update={"warnings": await _warnings(contents, entries)}))


def _of_file(body: ApplyRequest) -> dict[Key, dict[str, Any]]:
    try:
        for key in (*(SERVER + name for name in body.servers), *(MODEL + name for name in body.models)):
            catalog.check_name(key)
        servers = {name: catalog.checked(SERVER + name, settings) for name, settings in body.servers.items()}
        models = {name: catalog.checked(MODEL + name, settings) for name, settings in body.models.items()}
        return catalog.settings_by_key(
            {name: one for name, one in servers.items() if isinstance(one, Server)},
            {name: one for name, one in models.items() if isinstance(one, Model)},
        )
    except ValueError as error:
        raise _refusal(error) from error


def _refusing(contents: Contents, plan: Callable[[], dict[Key, Entry]]) -> dict[Key, Entry]:
    """Make a plan; a contradiction is an error of the request."""
    try:
        entries = plan()
        changes.check_keys(contents, entries)
    except ValueError as error:
        raise _refusal(error) from error
    return entries


def _refusal(error: ValueError) -> ApiError:
    """The text begins with the path of the setting."""
    path = str(error).partition(": ")[0]
    return errors.invalid(str(error), param=path[: bounds.PARAM_CHARS_MAX], code="invalid_settings")


async def _record(request: Request, deps: Dependencies, caller: Principal, differences: list[Difference]) -> None:
    """Write the change to the audit trail, with the names of the settings; their values may be secret."""
    for one in differences:
        names = ", ".join(sorted({**(one.before or {}), **(one.after or {})}))
        action = Action.CATALOG_REMOVE if one.after is None else Action.CATALOG_SET
        await deps.trail.record(request, caller, action, one.key, settings=names)


async def _warnings(contents: Contents, entries: Mapping[Key, Entry]) -> list[str]:
    """The faults of the servers that a change concerns; without their keys if this process has none."""
    serving = contents.serving
    names = [name_of(key) for key, entry in entries.items() if kind_of(key) == SERVER and not entry.removed]
    names += [one for key in entries for one in serving.by_model.get(name_of(key), ()) if kind_of(key) == MODEL]
    concerned = [name for name in dict.fromkeys(names) if name in serving.servers][:PROBES_MAX]
    found = await asyncio.gather(*(server_probe.faults(serving, name) for name in concerned))
    return [fault for some in found for fault in some]


def _known(contents: Contents, key: Key, *, is_present: bool = False) -> Entry:
    entry = contents.entries.get(key)
    if entry is None or (is_present and entry.removed):
        raise errors.no_entry(name_of(key))
    return entry


def _loads(deps: Dependencies, kind: str) -> Mapping[str, SharedLoad | ModelCalls]:
    return deps.loads.servers() if kind == SERVER else deps.loads.models()


def _shown(contents: Contents, key: Key, load: SharedLoad | ModelCalls | None) -> CatalogObject:
    entry, name = contents.entries[key], name_of(key)
    is_server = kind_of(key) == SERVER
    serving = contents.serving
    return CatalogObject(
        id=name,
        object="server" if is_server else "model",
        settings=entry.settings,
        removed=entry.removed,
        fault=contents.faults.get(key),
        used_by=serving.models_of(name) if is_server else list(serving.by_model.get(name, ())),
        author=entry.author,
        changed_at=entry.at,
        revision=entry.revision,
        load=load,
    )

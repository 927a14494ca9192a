"""The route of the audit trail: an admin reads the records of its project, an operator those of all."""

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from tidemill.api.dependencies import AdminCaller, ViewDep, json, require_project
from tidemill.api.openapi import Route
from tidemill.api.requests import paging, reading
from tidemill.api.requests.fields import OneOf, Project
from tidemill.api.requests.paging import ListPage, PageQuery
from tidemill.api.requests.parts import Query
from tidemill.api.view.audit import AuditFilter
from tidemill.schemas.bounds import Id, Metadata, Name
from tidemill.schemas.resources.audit import Action

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 1_000

router = APIRouter(prefix="/v1/admin/audit", tags=["admin"], route_class=Route)


class AuditQuery(PageQuery):
    """The query of the audit trail."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), reading.WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    project: Project | None = None
    """Only records of this project; an operator gets those of all by default."""
    actor: Id | None = None
    """Only actions of this key."""
    action: Annotated[str, OneOf(list(Action))] | None = None
    """Only this action."""
    target: Name | None = None
    """Only actions on this object."""


class AuditEntry(BaseModel):
    """An action, its actor and address; see `schemas/resources/audit.py`."""

    id: str
    object: Literal["audit"] = "audit"
    at: int
    project: str
    actor: str
    action: str
    target: str
    address: str
    request_id: str
    detail: Metadata


@router.get("", response_model=ListPage[AuditEntry])
async def index(
    view: ViewDep, caller: AdminCaller, query: Annotated[AuditQuery, Depends(Query(AuditQuery))]
) -> Response:
    """List the audit trail: keys, cancels, deletions, reruns, changes of settings, refused keys."""
    project = query.project or (None if caller.is_operator else caller.project)
    require_project(caller, project)
    wanted = AuditFilter(project=project, actor=query.actor, action=query.action, target=query.target)
    rows = view.audit.rows(wanted, query.page)
    return json(paging.write(query.page, [_shown(row) for row in rows]))


def _shown(row: paging.Row) -> paging.Row:
    return paging.Row(id=row.id, body=AuditEntry.model_validate_json(row.body).model_dump_json().encode())

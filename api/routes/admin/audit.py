"""The route of the audit trail: an admin reads the records of its project, an operator those of all."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from tidemill.api import lookup
from tidemill.api.dependencies import AdminCaller, ViewDep, json
from tidemill.api.openapi import Route
from tidemill.api.requests import paging
from tidemill.api.requests.filters import AuditQuery
from tidemill.api.requests.paging import ListPage
from tidemill.api.requests.parts import Query
from tidemill.schemas.bounds import Metadata

router = APIRouter(prefix="/v1/admin/audit", tags=["admin"], route_class=Route)


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
    caller.require_project(project)
    rows = await lookup.page(view, query.after, lambda: view.audit.rows(project, query))
    return json(paging.write(query.page, [_shown(row) for row in rows]))


def _shown(row: paging.Row) -> paging.Row:
    return paging.Row(id=row.id, body=AuditEntry.model_validate_json(row.body).model_dump_json().encode())

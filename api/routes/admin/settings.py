"""The route of the settings in force: an operator sees the value of each, and where it comes from."""

import os
from typing import Any, Final, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from tidemill.api.dependencies import OperatorCaller, SettingsDep, json
from tidemill.api.openapi import Route
from tidemill.configuration.settings import ENV_PREFIX, SECRETS, Settings

MASKED: Final = SECRETS | {"api_key_sha256"}
"""Settings whose values are not shown."""
MASK: Final = "********"
IN_CATALOG: Final = frozenset({"servers", "models"})
"""Settings that other routes show with their present values."""

router = APIRouter(prefix="/v1/admin/settings", tags=["admin"], route_class=Route)


class SettingInForce(BaseModel):
    """A setting as this process has it."""

    name: str
    value: Any
    """As in `tidemill.toml`; a secret is masked."""
    source: Literal["default", "file", "environment"]
    description: str


class SettingsInForce(BaseModel):
    """The settings of an api process; servers and models have routes of their own."""

    object: Literal["list"] = "list"
    data: list[SettingInForce]


@router.get("", response_model=SettingsInForce)
async def index(settings: SettingsDep, caller: OperatorCaller) -> Response:
    """List the settings in force, with their sources; secrets are masked."""
    del caller
    return json(SettingsInForce(data=in_force(settings)))


def in_force(settings: Settings) -> list[SettingInForce]:
    """The settings of a process in the order of their definition."""
    shown = settings.model_dump(mode="json", exclude=set(MASKED | IN_CATALOG))
    return [
        SettingInForce(
            name=name,
            value=(MASK if getattr(settings, name) else None) if name in MASKED else shown[name],
            source=_source(settings, name),
            description=" ".join((field.description or "").split()),
        )
        for name, field in Settings.model_fields.items()
        if name not in IN_CATALOG
    ]


def _source(settings: Settings, name: str) -> Literal["default", "file", "environment"]:
    variable = f"{ENV_PREFIX}{name.upper()}"
    names = {each.upper() for each, value in os.environ.items() if value}
    if variable in names or any(each.startswith(f"{variable}__") for each in names):
        return "environment"
    return "file" if name in settings.model_fields_set else "default"

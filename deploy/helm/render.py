# ruff: noqa: INP001, S603 - a script
"""Renders the chart to deploy/kubernetes, and writes the schema of its values: `make manifests`.

python deploy/helm/render.py HELM      the program helm, 4 or 3
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from tidemill.configuration.settings import ENV_PREFIX, SECRETS, Settings
from tidemill.runtime.preflight import TABLES

FOLDER: Final = Path(__file__).resolve().parent
CHART: Final = FOLDER / "tidemill"
PLAIN: Final = FOLDER / "plain.yaml"
"""The values of the plain manifests."""
MANIFESTS: Final = FOLDER.parent / "kubernetes"
RELEASE: Final = ("tidemill", "--namespace=tidemill")
FREE: Final = frozenset({"resources", "startup", "liveness", "readiness", "dashboardLabels"})
"""Objects of Kubernetes in the values: it checks their fields itself."""
SECONDS_MAX: Final = 60


def helm(program: Path | str, *arguments: str | Path) -> str:
    """Run helm, which must succeed, without a network and the user's configuration; returns its output."""
    with tempfile.TemporaryDirectory() as home:
        environ = dict.fromkeys(("HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"), home)
        command = [str(program), *map(str, arguments)]
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )
    if done.returncode != 0:
        raise ValueError(done.stderr)
    return done.stdout


def manifests(program: Path | str) -> dict[str, str]:
    """The texts of the plain manifests by file name, as the templates are called."""
    with tempfile.TemporaryDirectory() as folder:
        helm(program, "template", *RELEASE, CHART, f"--values={PLAIN}", f"--output-dir={folder}")
        return {file.name: file.read_text("utf-8") for file in sorted(Path(folder).rglob("*.yaml"))}


def schema() -> dict[str, Any]:
    """The JSON Schema of the values: their names, and the types of the defaults."""
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    found = _schema(values)
    # Helm adds `global`.
    found["properties"] |= {"settings": _variables(), "global": {"type": "object"}}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **found}


def _schema(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer", "minimum": 0}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array"}
    properties = {name: {"type": "object"} if name in FREE else _schema(one) for name, one in value.items()}
    return {"type": "object", **({"properties": properties, "additionalProperties": False} if properties else {})}


def _variables() -> dict[str, Any]:
    """The schema of `settings`: names with the prefix are settings, and no secrets; other names are free."""
    names = sorted(f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields.keys() - SECRETS)
    tables = "|".join(sorted(name.upper() for name in TABLES))
    known = [{"enum": names}, {"pattern": f"^{ENV_PREFIX}({tables})__"}, {"not": {"pattern": f"^{ENV_PREFIX}"}}]
    return {"type": "object", "propertyNames": {"anyOf": known}}


def main() -> None:
    """Write the schema and the manifests."""
    (CHART / "values.schema.json").write_text(json.dumps(schema(), indent=1) + "\n", "utf-8")
    texts = manifests(sys.argv[1])
    shutil.rmtree(MANIFESTS, ignore_errors=True)
    MANIFESTS.mkdir()
    for name, text in texts.items():
        (MANIFESTS / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()

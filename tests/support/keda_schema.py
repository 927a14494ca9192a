"""KEDA's schema of a ScaledObject."""

from pathlib import Path

import yaml

FILE = Path(__file__).with_name("keda") / "scaledobjects.yaml"


def strict(schema):
    """A schema that refuses fields which it does not name, as the API server drops them."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


def keda_schema():
    """The schema of the `spec` of a ScaledObject; strict."""
    crd = yaml.safe_load(FILE.read_text("utf-8"))
    (version,) = (one for one in crd["spec"]["versions"] if one["name"] == "v1alpha1")
    return strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])

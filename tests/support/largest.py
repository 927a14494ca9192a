"""The largest JSON that a model can make, computed from its fields: one without a bound is an error."""

from pydantic import TypeAdapter

from tidemill.schemas import bounds

FLOAT_BYTES = 25
PUNCTUATION_BYTES = 4
"""Two quotes, a colon and a comma; or two brackets and a comma."""


def largest(kind, without=()) -> int:
    """Bytes of the largest value of a type.

    Args:
        kind: The type.
        without: Fields that it does not have yet, like `Batch.errors`.

    Raises:
        AssertionError: A field has no bound.
    """
    return _Walk(TypeAdapter(kind).core_schema, without).bytes()


class _Walk:
    def __init__(self, schema, without) -> None:
        self._schema = schema
        self._without = without
        self._refs = {}

    def bytes(self) -> int:
        return self._of(self._schema, "")

    def _of(self, schema, path: str) -> int:
        kind = schema["type"]
        if (visit := getattr(self, "_" + kind.replace("-", "_"), None)) is None:
            raise AssertionError(f"{path}: no bound of a {kind} is known")
        return visit(schema, path)

    def _definitions(self, schema, path):
        for found in schema["definitions"]:
            self._refs[found["ref"]] = found
        return self._of(schema["schema"], path)

    def _definition_ref(self, schema, path):
        return self._of(self._refs[schema["schema_ref"]], path)

    def _model(self, schema, path):
        return self._of(schema["schema"], f"{path}/{schema['cls'].__name__}")

    def _model_fields(self, schema, path):
        return PUNCTUATION_BYTES + sum(
            len(name) + PUNCTUATION_BYTES + self._of(field["schema"], f"{path}.{name}")
            for name, field in schema["fields"].items()
            if not field.get("serialization_exclude") and f"{path.rpartition('/')[2]}.{name}" not in self._without
        )

    def _inner(self, schema, path):
        return self._of(schema["schema"], path)

    _default = _nullable = _function_before = _function_wrap = _inner

    def _function_after(self, schema, path):
        """A check may have a bound in bytes of its own."""
        most = getattr(schema["function"]["function"], "bytes_max", None)
        return self._of(schema["schema"], path) if most is None else most

    def _union(self, schema, path):
        return max(self._of(choice, path) for choice in schema["choices"])

    def _tagged_union(self, schema, path):
        return max(self._of(choice, f"{path}/{tag}") for tag, choice in schema["choices"].items())

    def _str(self, schema, path):
        assert schema.get("max_length") is not None, f"{path}: a text without a bound"
        plain = schema.get("pattern") == r"^[A-Za-z0-9_-]*$"
        return 2 + schema["max_length"] * (1 if plain else bounds.CHAR_BYTES_MAX)

    def _int(self, schema, path):
        assert {"ge", "le"} <= schema.keys(), f"{path}: a number without bounds"
        return max(len(str(schema["ge"])), len(str(schema["le"])))

    def _decimal(self, schema, path):
        assert schema.get("max_digits") is not None, f"{path}: an amount without a bound"
        return schema["max_digits"] + len('"-0."')

    def _float(self, schema, path):
        assert schema.get("allow_inf_nan") is False, f"{path}: a number that may be infinite"
        return FLOAT_BYTES

    def _bool(self, *_):
        return len("false")

    def _literal(self, schema, _):
        return max(len(str(found)) for found in schema["expected"]) + 2

    def _enum(self, schema, _):
        return max(len(str(found.value)) for found in schema["members"]) + 2

    def _tuple(self, schema, path):
        items = schema["items_schema"]
        if schema.get("variadic_item_index") is None:
            return PUNCTUATION_BYTES + sum(self._of(item, path) + 1 for item in items)
        assert schema.get("max_length") is not None, f"{path}: a list without a bound"
        return PUNCTUATION_BYTES + schema["max_length"] * (self._of(items[0], f"{path}[]") + 1)

    def _list(self, schema, path):
        assert schema.get("max_length") is not None, f"{path}: a list without a bound"
        return PUNCTUATION_BYTES + schema["max_length"] * (self._of(schema["items_schema"], f"{path}[]") + 1)

    def _dict(self, schema, path):
        assert schema.get("max_length") is not None, f"{path}: a map without a bound"
        pair = (
            self._of(schema["keys_schema"], f"{path}{{}}") + self._of(schema["values_schema"], f"{path}{{}}") + 2
        )
        return PUNCTUATION_BYTES + schema["max_length"] * pair

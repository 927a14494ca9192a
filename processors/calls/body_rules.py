"""Changes that a model makes to the body of each call.

A line may name its model by an alias, also by one that was removed since ingest accepted the line, so the name is
always compared. A body that needs no change passes through as bytes. Otherwise its outermost object is decoded;
all values in it stay as they were written.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tidemill.configuration.servers import Model

Body = bytes | memoryview | msgspec.Raw
"""The JSON of a body."""

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Named(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"")


_named: Final = msgspec.json.Decoder(_Named)


def _raw(fields: Mapping[str, Any]) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}


class BodyRules:
    """The rules of one model."""

    def __init__(self, name: str | None, *, defaults: Mapping[str, Any], forced: Mapping[str, Any]) -> None:
        """Encode the fields.

        Args:
            name: The model's name at its servers; None keeps that of the line.
            defaults: Fields that a body gets if it does not have them.
            forced: Fields that a body gets in any case.
        """
        self._defaults = _raw(defaults)
        self._forced = _raw(forced if name is None else {**forced, "model": name})
        self._name = self._forced.get("model")
        quoted = b"" if self._name is None else bytes(self._name)
        self._begins = b'{"model":%b,' % quoted, b'{"model": %b,' % quoted
        """How a body with the right name usually begins, so that its other fields need not be decoded.

        Ingest refuses a body that begins with one model and has another one later.
        """
        self._begin_bytes = len(self._begins[1])
        self._has_fields = bool(defaults or forced)

    def apply(self, body: Body, deadline: int | None = None) -> Body:
        """The body to send; the same object if nothing changes.

        Args:
            body: The line's body.
            deadline: The line's, Unix seconds, if the server orders requests by `priority`, the lowest first. It
                is above 0, which other requests have. Source: vLLM, `entrypoints/openai/*/protocol.py`.

        Raises:
            msgspec.MsgspecError: It is not a JSON object.
        """
        if deadline is None and not self._has_fields and self._is_named(body):
            return body
        fields = {**self._defaults, **_fields.decode(body), **self._forced}
        if deadline is not None:
            fields["priority"] = msgspec.Raw(b"%d" % deadline)
        return msgspec.json.encode(fields)

    def _is_named(self, body: Body) -> bool:
        if self._name is None or bytes(memoryview(body)[: self._begin_bytes]).startswith(self._begins):
            return True
        return _named.decode(body).model == self._name


UNCHANGED: Final = BodyRules(None, defaults={}, forced={})


def body_rules(name: str, model: Model) -> BodyRules:
    """The rules of a model with these settings."""
    return BodyRules(model.upstream_model or name, defaults=model.body_defaults, forced=model.body_forced)

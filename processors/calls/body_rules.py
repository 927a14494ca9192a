"""Changes that the settings of a model make to the body of each call.

Without such settings a body passes through as bytes. With them its outermost object is decoded; all values in it
stay as they were written.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tidemill.configuration.servers import Model

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


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

    def apply(self, body: bytes | memoryview | msgspec.Raw, deadline: int | None = None) -> bytes:
        """The body to send.

        Args:
            body: The line's body.
            deadline: The line's, Unix seconds, if the server orders requests by `priority`, the lowest first. It
                is above 0, which other requests have. Source: vLLM, `entrypoints/openai/*/protocol.py`.

        Raises:
            msgspec.MsgspecError: It is not a JSON object.
        """
        fields = {**self._defaults, **_fields.decode(body), **self._forced}
        if deadline is not None:
            fields["priority"] = msgspec.Raw(b"%d" % deadline)
        return msgspec.json.encode(fields)


UNCHANGED: Final = BodyRules(None, defaults={}, forced={})


def body_rules(name: str, model: Model) -> BodyRules | None:
    """The rules that a model's settings ask for; None if its bodies pass through."""
    if not (model.upstream_model or model.aliases or model.body_defaults or model.body_forced):
        return None
    return BodyRules(model.upstream_model or name, defaults=model.body_defaults, forced=model.body_forced)

"""A line under another model or another `custom_id`.

This is the one place of Tidemill where a line is written anew. Only its outer object, and that of its body where
the model changes, are taken apart: every other value stays the JSON text that the user wrote, so a number keeps
its digits and a string its escapes. What is lost is whitespace between the fields.
"""

import msgspec

_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


def recast(line: bytes, *, model: str | None = None, custom_id: str | None = None) -> bytes:
    """The line with these in place of what it has; None leaves it.

    A line that is no such object is returned as it is: it is for ingest to say what is wrong with it.
    """
    if model is None and custom_id is None:
        return line
    try:
        fields = _objects.decode(line)
        if custom_id is not None:
            fields["custom_id"] = msgspec.Raw(_encoder.encode(custom_id))
        if model is not None:
            body = _objects.decode(fields["body"])
            body["model"] = msgspec.Raw(_encoder.encode(model))
            fields["body"] = msgspec.Raw(_encoder.encode(body))
    except (msgspec.MsgspecError, KeyError, UnicodeError):
        return line
    return _encoder.encode(fields)

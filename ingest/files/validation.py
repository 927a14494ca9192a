"""Checks the lines of input files.

The faults, their order, codes and texts are those of OpenAI's service. A check reports the first fault of a line,
and all faulty lines of a file, up to a bound.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

import msgspec
import orjson

from tidemill.ingest.files import attachments
from tidemill.ingest.files.attachments import Attached
from tidemill.ingest.files.outline import count_of_inputs, outlined
from tidemill.ingest.files.verdict import Failed, LineFault, Listing, Passed, entry, listed, shown
from tidemill.schemas import UNREADABLE
from tidemill.schemas.bounds import CUSTOM_ID_CHARS_MAX, LINE_BYTES_HIGHEST
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN, Endpoint
from tidemill.schemas.jsonl import malformed, nesting
from tidemill.schemas.jsonl.attachments import AttachmentError
from tidemill.schemas.jsonl.form_fields import FormError
from tidemill.schemas.jsonl.line import begins_with_another_model
from tidemill.schemas.jsonl.lines import EMBEDDING_INPUTS_MAX, LINE_BYTES_MAX, Line
from tidemill.schemas.jsonl.nesting import DEPTH_MAX
from tidemill.schemas.ports import Store
from tidemill.schemas.resources.batch import BatchError
from tidemill.wording import counted

LONG_LINE_BYTES: Final = 64 * 1024
"""A longer line is not decoded into objects. Check it in a thread: it can take a tenth of a second."""
MODELS_SHOWN_MAX: Final = 3
NUMBER_BYTES: Final = 20
"""A number of an embedding and its comma: most servers print all digits of a double."""
BASE64_NUMBER_BYTES: Final = 6
"""A number of an embedding in base64: four bytes become five and a third."""
_KEPT_CHARS_MAX = 64
"""The checker remembers a longer `custom_id` by its hash, to bound the memory."""
_FIELDS: tuple[tuple[str, type, str], ...] = (
    ("custom_id", str, "a string"),
    ("method", str, "a string"),
    ("url", str, "a string"),
    ("body", dict, "an object"),
)
_KINDS = {
    type(None): "null", bool: "a boolean", int: "an integer", float: "a number", str: "a string",
    list: "an array", dict: "an object", msgspec.Raw: "an array",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules for the lines of one batch."""

    endpoint: str
    project: str = ""
    models: Mapping[str, Collection[str]]
    """The models that lines may name, each with its endpoints."""
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The models by their aliases."""
    lines_max: int
    bytes_max: int
    line_bytes_max: int = LINE_BYTES_MAX
    reply_bytes_max: int = LINE_BYTES_HIGHEST
    """Lines whose replies would be larger are refused."""
    models_max: int = 1
    """Models that the lines may name."""


class Seen(Protocol):
    """Maps each seen `custom_id` to the number of its line; a `dict` is one."""

    def setdefault(self, kept: str | bytes, number: int, /) -> int:
        """Add an id if it is new; returns the number of its first line, or 0 if that number is not known."""
        ...


class Checker:
    """Checks the lines of one file in their order, then returns the verdict."""

    def __init__(self, rules: Rules, seen: Seen | None = None) -> None:
        self._rules = rules
        self._endpoint = ENDPOINTS.get(rules.endpoint, UNKNOWN)
        forms = self._endpoint.forms
        self._only_form = tuple(forms[0].items()) if len(forms) == 1 else None
        self._ids: Seen = dict[str | bytes, int]() if seen is None else seen
        self._attached = Attached(self._endpoint, rules.project, is_stream=seen is not None)
        self._listing = Listing()
        self._total = 0
        self._inputs = 0
        self._number = 0
        self.model: str | None = None
        """The model of the last line that named an allowed one."""
        self._models: dict[str, int] = {}
        """All such models, with their places."""
        self._numbers: bytearray | None = None
        """See `Passed.numbers`; kept from the first line of a second model on."""
        self._newest_at = 0
        """The number of lines when a line last named a new model."""
        self._faulty: list[int] | None = [] if self._endpoint.is_anthropics and seen is None else None
        """The indices of the faulty lines; None if one of them fails the file."""

    @property
    def is_full(self) -> bool:
        """Whether the file has too many lines; further lines need no check."""
        return self._total > self._rules.lines_max

    def check(self, lines: Iterable[Line]) -> None:
        """Check the next lines."""
        for line, _, fault in self.faults(lines):
            self._listing.note(fault, line.number)

    def faults(self, lines: Iterable[Line]) -> Iterator[tuple[Line, int, LineFault]]:
        """Check the next lines; yields those with faults, and their indices."""
        for line in lines:
            self._total += 1
            if self.is_full:
                return
            try:
                self._examine(line.data, line.number)
                if self._numbers is not None:
                    self._numbers.append(self._number)
            except LineFault as fault:
                if self._faulty is not None:
                    self._leave_out()
                # The frames of the traceback hold the parsed line.
                yield line, self._total - 1, fault.with_traceback(None)

    def faulty(self, lines: Iterable[Line]) -> list[tuple[int, bytes, LineFault]]:
        """Check the next lines; returns those with faults: index, line, fault."""
        return [(index, line.data or b"", fault) for line, index, fault in self.faults(lines)]

    def _leave_out(self) -> None:
        """Let the last line, which has a fault, fail alone: the batch runs without it."""
        assert self._faulty is not None
        self._faulty.append(self._total - 1)
        if self._newest_at == self._total:
            self._models.popitem()
            self.model = None
            if len(self._models) == 1:
                self._numbers = None
        if self._numbers is not None:
            self._numbers.append(0)

    async def check_uploaded(self, store: Store) -> None:
        """Look up the uploaded files that the checked lines name.

        Raises:
            OSError: The store failed.
        """
        for number, error in await self._attached.faults(store):
            self._listing.note(_file_fault(error), number)
        self._listing.errors.sort(key=lambda error: error.line or 0)

    def fault(self, data: bytes) -> LineFault | None:
        """Check the next line of a stream, which has any number of lines and the model of its first valid one."""
        before = self.model
        try:
            self._examine(data, 1)
        except Exception as error:
            if before is None:
                self.model = None
                self._models.clear()
            if isinstance(error, LineFault):
                # The frames of the traceback hold the parsed line.
                return error.with_traceback(None)
            raise
        return None

    def verdict(self) -> Passed | Failed:
        """The verdict on the checked lines."""
        whole = [entry(fault) for fault in self._faults_of_the_whole()]
        count = len(whole) + self._listing.count
        if not count or (not whole and self._faulty is not None and self._models):
            return Passed(
                total=self._total, models=tuple(self._models), numbers=bytes(self._numbers or b""),
                faulty=frozenset(self._faulty or ()), line_bytes_max=self._rules.line_bytes_max,
            )  # fmt: skip
        return Failed(errors=tuple(listed(whole + self._listing.errors, count)))

    def too_large(self) -> Failed:
        """The verdict on a file above `bytes_max`; the checker saw its first line at most."""
        of_model = f" for the {shown(self.model)} model" if self.model is not None else ""
        message = f"The batch input file is larger than the {self._rules.bytes_max} maximum{of_model}"
        return Failed(errors=(BatchError(code="file_too_large", message=message),))

    def _faults_of_the_whole(self) -> list[LineFault]:
        if not self._total:
            text = "The input file is empty. Please ensure that the batch contains at least one request."
            return [LineFault("empty_file", text)]
        if self.is_full:
            text = f"The input file has more requests than the maximum of {self._rules.lines_max}."
            return [LineFault("too_many_tasks", text)]
        if self._attached.is_full:
            text = f"The lines name more than {attachments.UPLOADED_MAX} uploaded files."
            return [LineFault("too_many_files", text)]
        if self._inputs > EMBEDDING_INPUTS_MAX:
            text = f"The batch has {self._inputs} embedding inputs; the maximum is {EMBEDDING_INPUTS_MAX}."
            return [LineFault("too_many_embedding_inputs", text, "body.input")]
        return []

    def _examine(self, data: bytes | None, number: int) -> None:
        if data is None:
            most = self._rules.line_bytes_max
            text = f"This line is longer than the maximum of {most} bytes (limit: line_bytes_max)."
            raise LineFault("line_too_long", text)
        request = _parsed(data, self._endpoint)
        for name, kind, expected in _FIELDS:
            if type(request.get(name)) is not kind:
                raise _field_fault(request, name, kind, expected)
        self._unique(request["custom_id"], number)
        if (method := request["method"]) != "POST":
            text = f"Invalid method for this request. Only POST is supported, but it is '{shown(method)}'."
            raise LineFault("invalid_method", text, "method")
        if (url := request["url"]) != self._rules.endpoint:
            text = (
                "The URL provided for this request does not match the batch endpoint. "
                f"Expected '{self._rules.endpoint}', but got '{shown(url)}'."
            )
            raise LineFault("invalid_url", text, "url")
        if self._endpoint is UNKNOWN:
            raise LineFault("invalid_url", f"The endpoint '{shown(url)}' was removed from the settings.", "url")
        self._examine_body(request["body"])
        if begins_with_another_model(data, request["body"]["model"]):
            raise LineFault("invalid_request", "The body has 'model' twice, with different values.", "body.model")
        if self._endpoint.files:
            try:
                self._attached.examine(data, request["body"], number)
            except AttachmentError as error:
                raise _file_fault(error) from None

    def _unique(self, custom_id: str, number: int) -> None:
        size = len(custom_id)
        if not size:
            text = "Invalid 'custom_id': empty string. Expected a string with minimum length 1."
            raise LineFault("empty_string", text, "custom_id")
        if size > CUSTOM_ID_CHARS_MAX:
            text = (
                f"Invalid 'custom_id': string too long. Expected a string with maximum length "
                f"{CUSTOM_ID_CHARS_MAX}, but got a string with length {size} instead."
            )
            raise LineFault("string_above_max_length", text, "custom_id")
        kept = (
            custom_id if size <= _KEPT_CHARS_MAX else hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        )
        if (first := self._ids.setdefault(kept, number)) != number:
            text = (
                f"The custom_id '{shown(custom_id)}' for this request is a duplicate of another request. "
                "The custom_id parameter must be unique for each request in a batch."
            )
            raise LineFault(
                "duplicate_custom_id", f"{text} Line {first} has it too." if first else text, "custom_id"
            )

    def _examine_body(self, body: dict[str, Any]) -> None:
        for name, text in self._endpoint.refused.items():
            if flag := body.get(name):
                if flag is not True:
                    raise _type_fault(f"body.{name}", "a boolean", flag)
                code = "streaming_unsupported" if name == "stream" else "invalid_request"
                raise LineFault(code, f"{self._endpoint.name}: {text}", f"body.{name}")
        model = body.get("model")
        if model != self.model or model is None:
            self._examine_model(model)
        for name, kinds in self._only_form or self._endpoint.form(body).items():
            if type(value := body.get(name)) not in kinds:
                _examine_required(name, kinds, value)
        for name, choices in self._endpoint.choices.items():
            if (chosen := body.get(name)) is not None and chosen not in choices:
                text = f"Invalid '{name}' for a batch: its results are JSON, so it must be {' or '.join(choices)}."
                raise LineFault("invalid_request", text, f"body.{name}")
        if self._endpoint.items == "embedded":
            self._examine_reply(count_of_inputs(body.get(self._endpoint.prompt)), body)

    def _examine_reply(self, inputs: int, body: dict[str, Any]) -> None:
        """Count embedding inputs; refuse a line whose reply would be too large to keep, before it is computed."""
        self._inputs += inputs
        dimensions = body.get("dimensions")
        if type(dimensions) is not int:
            return
        number_bytes = BASE64_NUMBER_BYTES if body.get("encoding_format") == "base64" else NUMBER_BYTES
        size = inputs * dimensions * number_bytes
        if size > self._rules.reply_bytes_max:
            text = (
                f"The reply to {counted(inputs, 'input')} of {dimensions} dimensions has about {size} bytes; "
                f"the maximum is {self._rules.reply_bytes_max}. Send fewer inputs in one line, or ask for base64."
            )
            raise LineFault("reply_too_large", text, f"body.{self._endpoint.prompt}")

    def _served(self) -> str:
        names = [f"'{shown(name)}'" for name in islice(self._rules.models, MODELS_SHOWN_MAX)]
        others = len(self._rules.models) - len(names)
        return ", ".join(names) + (f" and {others} more" if others else "") or "none"

    def _examine_model(self, model: object) -> None:
        if model is None or model == "":
            raise LineFault("invalid_request", "Model parameter is required.", "body.model")
        if type(model) is not str:
            raise _type_fault("body.model", "a string", model)
        if (model := self._rules.aliases.get(model, model)) == self.model:
            return
        endpoints = self._rules.models.get(model)
        if endpoints is None:
            text = f"The provided model '{shown(model)}' is not supported by the Batch API."
            raise LineFault("model_not_found", f"{text} Models here: {self._served()}.", "body.model")
        if self._rules.endpoint not in endpoints:
            text = (
                f"The model '{shown(model)}' does not serve {self._rules.endpoint}; "
                f"it serves {', '.join(endpoints)}."
            )
            raise LineFault("model_not_supported", text, "body.model")
        self.choose(model)

    def choose(self, model: str) -> None:
        """Record an allowed model as that of the line.

        Raises:
            LineFault: The lines name too many models.
        """
        if (number := self._models.get(model)) is None:
            if (number := len(self._models)) >= self._rules.models_max:
                raise self._too_many_models(model)
            self._models[model], self._newest_at = number, self._total
            if number == 1:
                self._numbers = bytearray(self._total - 1)
        self.model, self._number = model, number

    def _too_many_models(self, model: str) -> LineFault:
        if (most := self._rules.models_max) > 1:
            text = (
                f"The model '{shown(model)}' for this request is one too many: each batch may contain requests "
                f"for {most} models (limit: models_per_batch_max)."
            )
        else:
            first = shown(next(iter(self._models)))
            text = (
                f"The model '{shown(model)}' for this request does not match the rest of the batch. Each batch "
                f"must contain requests for a single model; this one began with '{first}'."
            )
        return LineFault("mismatched_model", text, "body.model")


def _parsed(data: bytes, endpoint: Endpoint) -> dict[str, Any]:
    """The parsed line; for a long line, only the fields that the check needs."""
    if nesting.exceeds(data, DEPTH_MAX):
        raise LineFault("invalid_json_line", f"This line is nested deeper than the maximum of {DEPTH_MAX} levels.")
    try:
        request = _decoded(data, endpoint)
    except UNREADABLE:
        text = f"This line is not parseable as valid JSON. {malformed.reason(data)}"
        raise LineFault("invalid_json_line", text) from None
    if type(request) is not dict:
        text = f"Each line must be a JSON dictionary object, but this one is {_KINDS[type(request)]}."
        raise LineFault("invalid_request", text)
    return request


def _decoded(data: bytes, endpoint: Endpoint) -> Any:
    if len(data) <= LONG_LINE_BYTES:
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            # It refuses JSON with a number like 1e400, also where no check looks.
            pass
    return outlined(data, endpoint)


def _field_fault(request: dict[str, Any], name: str, kind: type, expected: str) -> LineFault:
    """The fault of the first missing field, else that of the named field's type."""
    for field, _, _ in _FIELDS:
        if field not in request:
            return LineFault("missing_required_parameter", f"Missing required parameter: '{field}'.", field)
    assert type(request[name]) is not kind
    return _type_fault(name, expected, request[name])


def _examine_required(name: str, kinds: tuple[type, ...], value: object) -> None:
    """Refuse a body with a required field that is absent or not of one of its types."""
    if value is None:
        raise LineFault("invalid_request", f"{name.capitalize()} parameter is required.", f"body.{name}")
    if type(value) is msgspec.Raw:
        value = [] if bytes(memoryview(value)[:1]) == b"[" else {}
    if type(value) not in kinds:
        raise _type_fault(f"body.{name}", " or ".join(_KINDS[kind] for kind in kinds), value)


def _file_fault(error: AttachmentError) -> LineFault:
    param = f"body.{shown(error.field)}".removesuffix(".")
    if isinstance(error, FormError):
        return LineFault("invalid_request", f"Invalid '{param}': {error}.", param)
    return LineFault("invalid_file", f"Invalid '{param}': {error}.", param)


def _type_fault(param: str, expected: str, found: object) -> LineFault:
    text = f"Invalid type for '{param}': expected {expected}, but got {_KINDS[type(found)]} instead."
    return LineFault("invalid_type", text, param)

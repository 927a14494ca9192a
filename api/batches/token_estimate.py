"""Estimates the tokens and the cost of the lines of an input, without a tokenizer.

It assumes four bytes of text for a token, which is close for English. It counts token ids, but no images, audio or
files. The maximum of a line, if it has one, bounds its output.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, Final, Literal

import msgspec
import orjson
from pydantic import BaseModel

from tidemill.configuration.catalog import Contents, PriceError
from tidemill.configuration.settings import Settings
from tidemill.schemas import UNREADABLE
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN, Endpoint, Unit
from tidemill.schemas.jsonl import nesting
from tidemill.schemas.resources.bill import Tariff, bill, exact, plain

BYTES_A_TOKEN: Final = 4
MESSAGE_TOKENS: Final = 4
"""Added to each message by a chat template."""
MODELS_MAX: Final = 100
"""Models of an estimate; lines of further ones count as unreadable."""
MODEL_CHARS_MAX: Final = 256
LONG_LINE_BYTES: Final = 64 * 1024
PARTS_MAX: Final = 100_000
"""Arrays, objects, keys and commas of a line that is parsed: some milliseconds while no other thread runs."""
METHOD: Final = (
    "Each 4 bytes of text count as a token, and each message as 4 more; token ids are counted; images, audio "
    "and files are not. The input of a tool call counts as JSON. A query counts once with each of its documents. "
    f"A line of more than {PARTS_MAX} arrays, objects, keys and commas counts as text as a whole. The maximum of "
    "each line bounds its output."
)
CONFIDENCE: Final = "low"

_TEXT: Final = frozenset(
    {"content", "text", "tool_calls", "function", "function_call", "arguments", "output", "refusal", "name"}
)
"""Fields of a message, and of parts of it, that a model reads."""
_MEDIA: Final = frozenset(
    {
        "image_url",
        "input_audio",
        "audio_url",
        "video_url",
        "file",
        "file_id",
        "file_data",
        "source",
        "prompt_embeds",
    }
)
_READ: Final = {str, list, dict}
_DEFINITIONS: Final = ("tools", "functions", "response_format", "text")
_MAXIMA: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")


_FIELDS: Final = ("model", "n", *_MAXIMA)
_Body = msgspec.defstruct("_Body", [(name, msgspec.Raw, msgspec.Raw(b"null")) for name in _FIELDS])
_lines: Final = msgspec.json.Decoder(msgspec.defstruct("_Line", [("body", _Body)]))
"""Decodes only the fields that the estimate needs, from a very long line in one pass."""


class CostRange(BaseModel):
    """Exact decimals as text, after the discount of the window; `max` is null without a bound."""

    min: str
    max: str | None
    is_free: bool
    """Whether no price is set."""


class ModelEstimate(BaseModel):
    """The estimate for the lines of one model."""

    model: str
    is_configured: bool
    """Whether the model is configured; a batch with lines of another model fails."""
    lines: int
    input_tokens: int
    output_tokens_max: int | None
    """Null if a line has no maximum."""
    lines_without_max: int
    media: int
    """Images, recordings and files, which are not counted as tokens."""
    cost: CostRange


class Figures(BaseModel):
    """The estimate of some lines."""

    lines: int
    unreadable_lines: int
    """Lines that would fail the batch."""
    input_tokens: int
    output_tokens_max: int | None
    cost: CostRange
    models: list[ModelEstimate]
    method: str
    confidence: Literal["low"]


@dataclass(kw_only=True)
class Sum:
    """The lines of one model."""

    lines: int = 0
    input_tokens: int = 0
    output_tokens_max: int = 0
    lines_without_max: int = 0
    """Lines without a maximum of output tokens."""
    media: int = 0
    """Images, recordings and files, which are not in `input_tokens`."""


class TokenEstimate:
    """Adds up lines one by one."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = ENDPOINTS.get(endpoint, UNKNOWN)
        self.unit = self._endpoint.unit
        self.models: dict[str, Sum] = {}
        self.unreadable = 0
        """Lines that ingest would refuse."""

    def add(self, line: bytes | None) -> None:
        """Add a line; None stands for one above the size limit."""
        if line is None or nesting.exceeds(line, nesting.DEPTH_MAX):
            self.unreadable += 1
            return
        if len(line) > LONG_LINE_BYTES and nesting.parts(line) > PARTS_MAX:
            self._add_as_text(line)
            return
        if (body := _body(line)) is None or (found := self._sum(body.get("model"))) is None:
            self.unreadable += 1
            return
        size, ids, media = _read(body, self._endpoint)
        found.media += media
        self._add(found, body, size, ids)

    def _add_as_text(self, line: bytes) -> None:
        """Add a line of very many objects as text: its length bounds its text."""
        try:
            fields = msgspec.structs.asdict(_lines.decode(line).body)  # type: ignore[attr-defined]
            body = {name: _scalar(raw) for name, raw in fields.items()}
        except UNREADABLE:
            body = {}
        if (found := self._sum(body.get("model"))) is None:
            self.unreadable += 1
            return
        self._add(found, body, len(line), 0)

    def _add(self, found: Sum, body: Mapping[str, Any], size: int, ids: int) -> None:
        size += sum(
            len(orjson.dumps(body[name]))
            for name in _DEFINITIONS
            if body.get(name) is not None and name not in self._endpoint.forms[0]
        )
        messages = body.get("messages")
        found.lines += 1
        found.input_tokens += -(-size // BYTES_A_TOKEN) + ids
        found.input_tokens += MESSAGE_TOKENS * len(messages) if isinstance(messages, list) else 0
        if self._endpoint.generates:
            if (maximum := _maximum(body, self._endpoint)) is None:
                found.lines_without_max += 1
            else:
                found.output_tokens_max += maximum

    def _sum(self, model: Any) -> Sum | None:
        if not isinstance(model, str) or not 0 < len(model) <= MODEL_CHARS_MAX:
            return None
        if model not in self.models and len(self.models) >= MODELS_MAX:
            return None
        return self.models.setdefault(model, Sum())


def figures(settings: Settings, contents: Contents, found: TokenEstimate, window: str | None) -> Figures:
    """The estimate of a batch with this window, by default the usual one, as the API shows it."""
    window = window or settings.usual_window
    models = [
        _model(settings, contents, name, model, window=window, unit=found.unit)
        for name, model in found.models.items()
    ]
    costs = [model.cost for model in models]
    is_bounded = all(cost.max is not None for cost in costs)
    outputs = [model.output_tokens_max for model in models]
    with localcontext(exact()):
        least = sum((Decimal(cost.min) for cost in costs), Decimal(0))
        most = sum((Decimal(cost.max or 0) for cost in costs), Decimal(0))
    return Figures(
        lines=found.unreadable + sum(model.lines for model in models),
        unreadable_lines=found.unreadable,
        input_tokens=sum(model.input_tokens for model in models),
        output_tokens_max=None if None in outputs else sum(each or 0 for each in outputs),
        cost=CostRange(
            min=plain(least), max=plain(most) if is_bounded else None, is_free=all(cost.is_free for cost in costs)
        ),
        models=models,
        method=METHOD,
        confidence=CONFIDENCE,
    )


def _model(
    settings: Settings, contents: Contents, name: str, found: Sum, *, window: str, unit: Unit
) -> ModelEstimate:
    known_as = contents.serving.aliases.get(name, name)
    try:
        cost = _cost(found, settings.tariff(contents.price_of(known_as), window), unit)
    except PriceError:
        cost = CostRange(min="0", max=None, is_free=False)
    return ModelEstimate(
        model=name,
        is_configured=known_as in contents.serving.models,
        lines=found.lines,
        input_tokens=found.input_tokens,
        output_tokens_max=None if found.lines_without_max else found.output_tokens_max,
        lines_without_max=found.lines_without_max,
        media=found.media,
        cost=cost,
    )


def _cost(found: Sum, tariff: Tariff, unit: Unit) -> CostRange:
    """The cost of some lines; nothing bounds the images that they make, and the length of their audio."""
    most = bill(found.input_tokens, found.output_tokens_max, tariff).cost
    of_unit = {"tokens": 0, "images": tariff.per_image, "audio_seconds": tariff.per_audio_minute}[unit]
    return CostRange(
        min=plain(most.input),
        max=None if found.lines_without_max or of_unit else plain(most.total),
        is_free=not any((tariff.input_per_million, tariff.output_per_million, of_unit)),
    )


def _read(body: Mapping[str, Any], endpoint: Endpoint) -> tuple[int, int, int]:
    """Bytes of text, token ids and media that the model reads for a request."""
    form = endpoint.form(body)
    skipped = {*endpoint.files, *_MEDIA}
    fields = [body.get(name) for name, kinds in form.items() if _READ & {*kinds} and name not in skipped]
    size, ids, media = measured([*fields, *(body.get(name) for name in endpoint.context)])
    media += sum(name in _MEDIA and name not in endpoint.files for name in form)
    media += sum(_items(body[name]) for name in endpoint.files if body.get(name) is not None)
    if endpoint.items == "paired" and _items(fields[0]) == 1:
        again = _items(fields[1]) - 1
        once = measured(fields[0])
        size, ids, media = size + again * once[0], ids + again * once[1], media + again * once[2]
    return size, ids, media


def measured(value: Any) -> tuple[int, int, int]:
    """Bytes of text, token ids and media in the input of a request."""
    size = ids = media = 0
    stack = [value]
    while stack:
        match stack.pop():
            case str(text):
                # Ingest refuses lone surrogates.
                size += len(text.encode(errors="surrogatepass"))
            case bool():
                pass
            case int():
                ids += 1
            case list(items):
                stack.extend(items)
            case dict(fields):
                media += any(name in _MEDIA for name in fields)
                stack.extend(part for name, part in fields.items() if name in _TEXT)
                if fields.get("type") == "tool_use":
                    size += len(orjson.dumps(fields.get("input")))
    return size, ids, media


def _scalar(raw: msgspec.Raw) -> Any:
    text = bytes(raw)
    return orjson.loads(text) if text[:1] not in {b"[", b"{"} else None


def _body(line: bytes) -> Mapping[str, Any] | None:
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    body = content.get("body") if isinstance(content, dict) else None
    return body if isinstance(body, dict) else None


def _maximum(body: Mapping[str, Any], endpoint: Endpoint) -> int | None:
    """The maximum of output tokens of a request; None without one."""
    for name in _MAXIMA:
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value * _positive(body.get("n")) * _prompts(body, endpoint)
    return None


def _prompts(body: Mapping[str, Any], endpoint: Endpoint) -> int:
    """The number of prompts in a request, whichever of its forms they have; each gets an answer."""
    if endpoint.items == "answered":
        given = (body.get(name) for form in endpoint.forms for name in form)
        return sum(_items(one) for one in given if one is not None) or 1
    return _items(body.get(endpoint.prompt)) if endpoint.items == "embedded" else 1


def _items(given: Any) -> int:
    """The number of inputs in a field that may have a list of them; a list of integers is one, as tokens."""
    is_many = isinstance(given, list) and given and not isinstance(given[0], int)
    return len(given) if is_many else 1


def _positive(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1

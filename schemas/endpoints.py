"""The endpoints that a batch may call, one entry each; no other module names a path.

The settings add entries when a process starts (`configure`), so other modules must not derive anything from the
whole table at import.
"""

import base64
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any, Final, Literal, NamedTuple

from tidemill.schemas.bounds import WORD_CHARS_MAX

PROMPT: Final = "Reply with the word yes."
Form = Mapping[str, tuple[type, ...]]
"""Required fields, the prompt first, each with the types that it may have."""
Unit = Literal["tokens", "images", "audio_seconds"]

_STREAM: Final = {"stream": "Streaming is not supported in the Batch API."}
_ONE_OR_MORE: Final = (str, list)
_INPUTS: Final = (str, list, dict)
"""One or more texts; an object has a text with images."""
_ANY: Final = (str, list, dict, int, float, bool)


class FileField(NamedTuple):
    """A field of a request that names files (`schemas/jsonl/attachments.py`)."""

    types: tuple[str, ...]
    """Prefixes of the media types of its files."""
    part: str = ""
    """Its name in the form that the server gets, if that differs."""


_IMAGE: Final = FileField(("image/",))
_AUDIO: Final = FileField(("audio/", "video/"))
_NAMED_FILE: Final = (str, dict)
_TRANSCRIPTS: Final = ("json", "verbose_json", "diarized_json")
"""The formats that are JSON, as a result line is."""
_VECTORS: Final = {"encoding_format": ("float", "base64")}
"""The formats of vectors that are JSON; vLLM has bytes, too."""
_PIXEL: Final = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
"""An image of one pixel."""


def _silence() -> str:
    """A tenth of a second without a sound: WAV, 8,000 samples of 16 bits a second."""
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 1636, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 1600
    )
    return "data:audio/wav;base64," + base64.b64encode(head + bytes(1600)).decode()


_OPERATIONS: Final = {
    "Chat Completions": "chat",
    "Responses": "chat",
    "Messages": "chat",
    "Completions": "text_completion",
    "Embeddings": "embeddings",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRules:
    """What tells a good reply of an endpoint, and where its counts are."""

    filled: str | None = None
    """The list that has at least one item; None if there is no such list."""
    fields: Form = field(default_factory=dict)
    """Other fields that it has, each with the types that it may have; a list may be empty. Servers have `null`
    for an answer with nothing in it."""
    ending: str | None = None
    """The field that says why it ended; a reply that lacks it was broken off."""
    statuses: Mapping[str, bool] = field(default_factory=dict)
    """The values of its `status` once it ended, and whether it is an answer then, or was broken off. A reply
    without `status` is an answer; one with another value cannot be delivered."""
    usage: tuple[str, ...] = ("usage",)
    """Where it may have its token counts, the best place first; a dot leads into an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint of an inference server. Source: the API references of OpenAI, Anthropic, Cohere and vLLM."""

    name: str
    """Its name in messages to users."""
    forms: tuple[Form, ...]
    """The forms of a request, which has all fields of one of them."""
    reply: ReplyRules
    """What a good reply has."""
    smallest: dict[str, object]
    """The cheapest request, without its model."""
    context: tuple[str, ...] = ()
    """Optional fields that the model reads in addition to the prompt."""
    generates: bool = True
    """Whether a reply costs more tokens than its request has."""
    items: Literal["one", "answered", "embedded", "paired"] = "one"
    """The results for the items of a prompt that is a list: an answer each, or a vector each (a batch bounds these
    items, and the size of the reply). `paired`: the model reads the prompt once with each item of the second
    field."""
    answers: str | None = None
    """The optional field with the number of answers to each item of the prompt; empty if that is always one. Set
    if one request may have the prompts of several lines, since each item of its `reply.filled` has an `index`."""
    unit: Unit = "tokens"
    """The unit that a reply costs in addition to its tokens, or instead of them."""
    is_anthropics: bool = False
    """Whether the rules are Anthropic's: an invalid line of a file fails alone and not with its batch, and the
    input tokens of a reply leave out those that a cache read or wrote."""
    has_priority: bool = False
    """Whether vLLM takes a `priority` here."""
    files: Mapping[str, FileField] = field(default_factory=dict)
    """The fields with files; if there are any, a server gets the request as a form."""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Optional fields, each with the texts that it may have."""
    refused: Mapping[str, str] = field(default_factory=lambda: _STREAM)
    """Flags that a request must not set, since its answer would not be a whole reply, each with the fault."""
    is_beside_v1: bool = False
    """Whether only our path begins with `/v1`: a server has the endpoint beside its `/v1`."""

    @property
    def operation(self) -> str:
        """OpenTelemetry's name for it in traces; empty if there is none."""
        return _OPERATIONS.get(self.name, "")

    @property
    def embeds(self) -> bool:
        """Whether each item of the prompt gets a vector."""
        return self.items == "embedded"

    @property
    def prompt(self) -> str:
        """The field with the prompt in the first form."""
        return next(iter(self.forms[0]))

    def form(self, body: Mapping[str, Any]) -> Form:
        """The form that shares the most fields with a request."""
        if len(self.forms) == 1:
            return self.forms[0]
        return max(self.forms, key=lambda form: sum(body.get(name) is not None for name in form))


_TRANSCRIPTIONS: Final = Endpoint(
    name="Transcriptions",
    forms=({"file": _NAMED_FILE},),
    reply=ReplyRules(fields={"text": (str,)}),
    smallest={"file": _silence(), "prompt": PROMPT},
    context=("prompt",),
    unit="audio_seconds",
    files={"file": _AUDIO},
    choices={"response_format": _TRANSCRIPTS},
)
ENDPOINTS: Final[dict[str, Endpoint]] = {
    "/v1/chat/completions": Endpoint(
        name="Chat Completions",
        forms=({"messages": (list,)},),
        reply=ReplyRules(filled="choices"),
        smallest={"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1},
        has_priority=True,
    ),
    "/v1/completions": Endpoint(
        name="Completions",
        # vLLM's second form.
        forms=({"prompt": _ONE_OR_MORE}, {"prompt_embeds": _ONE_OR_MORE}),
        reply=ReplyRules(filled="choices"),
        smallest={"prompt": PROMPT, "max_tokens": 1},
        items="answered",
        answers="n",
        has_priority=True,
    ),
    "/v1/embeddings": Endpoint(
        name="Embeddings",
        # vLLM's second form is for texts with images.
        forms=({"input": _ONE_OR_MORE}, {"messages": (list,)}),
        reply=ReplyRules(filled="data"),
        smallest={"input": PROMPT},
        generates=False,
        items="embedded",
        answers="",
        has_priority=True,
        choices=_VECTORS,
    ),
    "/v1/responses": Endpoint(
        name="Responses",
        forms=(
            {"input": _ONE_OR_MORE},
            {"prompt": (dict,)},
            {"previous_response_id": (str,)},
            {"conversation": (str, dict)},
        ),
        reply=ReplyRules(
            fields={"output": (list, NoneType)},
            statuses={"completed": True, "incomplete": True, "failed": False, "cancelled": False},
        ),
        smallest={"input": PROMPT, "max_output_tokens": 16},
        context=("instructions",),
        has_priority=True,
        refused={**_STREAM, "background": "Answers in the background are not supported in the Batch API."},
    ),
    "/v1/moderations": Endpoint(
        name="Moderations",
        forms=({"input": _ONE_OR_MORE},),
        reply=ReplyRules(filled="results"),
        smallest={"input": PROMPT},
        generates=False,
    ),
    "/v1/images/generations": Endpoint(
        name="Images",
        forms=({"prompt": (str,)},),
        reply=ReplyRules(filled="data"),
        smallest={"prompt": PROMPT},
        unit="images",
    ),
    # OpenAI's own batches have `images`, as a list of objects; its clients have `image`.
    "/v1/images/edits": Endpoint(
        name="Image edits",
        forms=({"prompt": (str,), "image": (str, list, dict)}, {"prompt": (str,), "images": (list,)}),
        reply=ReplyRules(filled="data"),
        smallest={"prompt": PROMPT, "image": _PIXEL},
        unit="images",
        files={"image": _IMAGE, "images": FileField(_IMAGE.types, "image"), "mask": _IMAGE, "markup": _IMAGE},
    ),
    # The answer is the job, which may still run.
    "/v1/videos": Endpoint(
        name="Videos",
        forms=({"prompt": (str,)},),
        reply=ReplyRules(fields={"id": (str,)}),
        smallest={"prompt": PROMPT},
    ),
    "/v1/audio/transcriptions": _TRANSCRIPTIONS,
    "/v1/audio/translations": replace(_TRANSCRIPTIONS, name="Translations"),
    # Rerank is Cohere's and Jina's; score, classify and pooling are vLLM's (entrypoints/pooling/*/protocol.py).
    "/v1/rerank": Endpoint(
        name="Rerank",
        forms=({"query": _INPUTS, "documents": _INPUTS},),
        reply=ReplyRules(filled="results", usage=("usage", "meta.tokens", "meta.billed_units")),
        smallest={"query": PROMPT, "documents": [PROMPT]},
        generates=False,
        items="paired",
        has_priority=True,
    ),
    "/v1/score": Endpoint(
        name="Score",
        forms=(
            {"queries": _INPUTS, "documents": _INPUTS},
            {"queries": _INPUTS, "items": _INPUTS},
            {"text_1": _INPUTS, "text_2": _INPUTS},
            {"data_1": _INPUTS, "data_2": _INPUTS},
        ),
        reply=ReplyRules(filled="data"),
        smallest={"queries": PROMPT, "documents": PROMPT},
        generates=False,
        items="paired",
        has_priority=True,
    ),
    "/v1/classify": Endpoint(
        name="Classify",
        forms=({"input": _ONE_OR_MORE}, {"messages": (list,)}),
        reply=ReplyRules(filled="data"),
        smallest={"input": PROMPT},
        generates=False,
        is_beside_v1=True,
        has_priority=True,
    ),
    "/v1/pooling": Endpoint(
        name="Pooling",
        forms=({"input": _ONE_OR_MORE}, {"messages": (list,)}, {"data": _ANY}),
        # A plugin of the server interprets `data`.
        reply=ReplyRules(fields={"data": (*_ANY, NoneType)}),
        smallest={"input": PROMPT},
        generates=False,
        is_beside_v1=True,
        has_priority=True,
        choices=_VECTORS,
    ),
    "/v1/messages": Endpoint(
        name="Messages",
        forms=({"messages": (list,), "max_tokens": (int,)},),
        # Claude may end its turn with empty `content`, Ollama with `null`. vLLM leaves the reason out if its
        # engine aborts.
        reply=ReplyRules(fields={"content": (list, NoneType)}, ending="stop_reason"),
        smallest={"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1},
        context=("system",),
        is_anthropics=True,
    ),
}
"""The endpoints by path; those of the settings come last."""
BUILT_IN: Final = tuple(ENDPOINTS)
TEXTS: Final[Mapping[str, tuple[str, ...]]] = {
    "/v1/chat/completions": ("choices", "message", "content"),
    "/v1/completions": ("choices", "text"),
    "/v1/responses": ("output", "content", "text"),
    "/v1/messages": ("content", "text"),
}
"""Where a reply has the text that the model wrote, from field to field through lists: each choice has a
text of its own. Other endpoints have none."""
_SILENT: Final = frozenset({"reasoning", "thinking"})
"""Types of parts of a reply that are not its answer."""
UNKNOWN: Final = Endpoint(name="", forms=({"input": _ANY},), reply=ReplyRules(), smallest={})
"""Stands for any other path: the settings may have lost an endpoint since lines for it were accepted."""
_PATH: Final = re.compile(r"/v1(/[A-Za-z0-9_-]+)+\Z")
DEFAULTS: Final = tuple(ENDPOINTS)[:4]
"""The endpoints of a model whose settings name none."""
GREEDY_AT_ZERO: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
"""The endpoints that always take the likeliest token if a request has a `temperature` of 0."""


def is_path(text: str) -> bool:
    """Whether an endpoint may have this path."""
    return len(text) <= WORD_CHARS_MAX and _PATH.match(text) is not None


def texts(value: Any, path: Sequence[str]) -> Iterator[str]:
    """The texts that the model wrote at the end of a path (`TEXTS`), through lists, without its reasoning.

    A text may also be a list of parts, each with a `text`.
    """
    if isinstance(value, list):
        for each in value:
            yield from texts(each, path)
    elif isinstance(value, dict) and value.get("type") not in _SILENT:
        first, *rest = path or ("text",)
        yield from texts(value.get(first), rest)
    elif not path and isinstance(value, str):
        yield value


def is_deterministic(path: str, temperature: object) -> bool:
    """Whether an endpoint is meant to give equal answers to equal requests."""
    is_zero = type(temperature) in {int, float} and temperature == 0
    return not ENDPOINTS[path].generates or (is_zero and path in GREEDY_AT_ZERO)


def configure(custom: Mapping[str, Endpoint]) -> None:
    """Add these endpoints for the life of the process, replacing those that were added before."""
    for path in ENDPOINTS.keys() - set(BUILT_IN):
        del ENDPOINTS[path]
    ENDPOINTS.update(custom)


def address(base: str, path: str) -> str:
    """The URL of an endpoint at a server, whose base URL usually ends in `/v1`."""
    if ENDPOINTS.get(path, UNKNOWN).is_beside_v1:
        base = base.removesuffix("/v1")
    return base + path.removeprefix("/v1")

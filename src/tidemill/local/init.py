"""`tidemill init`: looks for inference servers on this machine and writes a commented settings file."""

import asyncio
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from pydantic import AnyHttpUrl, TypeAdapter, ValidationError

from tidemill import ownership
from tidemill.configuration.misconfigured import faults
from tidemill.configuration.servers import ModelName, Server
from tidemill.local import demo
from tidemill.ops import OperatorError
from tidemill.runtime import server_probe
from tidemill.runtime.server_probe import NoModels
from tidemill.schemas.endpoints import DEFAULTS
from tidemill.wording import counted

OWN_PORT: Final = 8080
OTHER_PORT: Final = 8081
"""Tidemill's port if a server has its usual one."""
MODELS_MAX: Final = 100
"""Models of one server that are written."""
NAMES_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A place where an inference server may be."""

    program: str
    """The program that usually listens there."""
    name: str
    url: str
    max_in_flight: int = 64


USUAL: Final = (
    Candidate(program="vLLM", name="vllm", url="http://127.0.0.1:8000/v1", max_in_flight=256),
    Candidate(program="llama.cpp", name="llama-cpp", url="http://127.0.0.1:8080/v1", max_in_flight=8),
    Candidate(program="Ollama", name="ollama", url="http://127.0.0.1:11434/v1", max_in_flight=8),
    Candidate(program="LM Studio", name="lm-studio", url="http://127.0.0.1:1234/v1", max_in_flight=8),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The answer of a candidate."""

    candidate: Candidate
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = DEFAULTS
    left_out: int = 0
    """Models that are not written: too many, or with names that batches cannot use."""
    fault: str | None = None
    """Why there is no list of models."""
    is_refused: bool = field(default=False)
    """Whether it requires an API key."""

    def __str__(self) -> str:
        """A line for the operator."""
        where = f"{self.candidate.program} ({self.candidate.url})"
        if self.is_refused:
            return f"{where}: it wants an API key; see the file"
        if self.fault:
            return f"{where}: {self.fault}"
        names = ", ".join(self.models[:NAMES_SHOWN]) + (", …" if len(self.models) > NAMES_SHOWN else "")
        more = f" ({self.left_out} more are left out)" if self.left_out else ""
        return f"{where}: {counted(len(self.models), 'model')}{': ' if names else ''}{names}{more}"


def candidate(url: str) -> Candidate:
    """The candidate at an address that the operator names.

    Raises:
        OperatorError: It is not the address of a server.
    """
    try:
        server = Server(url=AnyHttpUrl(url) if "://" in url else url)
    except ValidationError as error:
        raise OperatorError("\n".join(f"--server {url}: {fault}" for fault in faults(error))) from error
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", server.place).strip("-.")[:64]
    return Candidate(program="the server", name=name or "server", url=server.base)


def candidates(urls: Iterable[str]) -> list[Candidate]:
    """The usual places and those that the operator names, each address once and each with a name of its own.

    Raises:
        OperatorError: One is not the address of a server.
    """
    places: dict[str, Candidate] = {}
    names: set[str] = set()
    for one in (*USUAL, *map(candidate, urls)):
        address = one.url.replace("//localhost:", "//127.0.0.1:")
        if address not in places:
            others = (f"{one.name[:60]}-{number}" for number in itertools.count(2))
            name = next(name for name in itertools.chain([one.name], others) if name not in names)
            names.add(name)
            places[address] = replace(one, name=name)
    return list(places.values())


async def look(candidates: Sequence[Candidate]) -> list[Found]:
    """Ask all candidates at once for their models and endpoints, within some seconds and a mebibyte each."""
    return await asyncio.gather(*map(_ask, candidates))


async def _ask(candidate: Candidate) -> Found:
    server = Server(url=AnyHttpUrl(candidate.url))
    listed = await server_probe.models(server)
    if isinstance(listed, NoModels):
        return Found(candidate=candidate, fault=listed.why, is_refused=listed.is_refused)
    models = tuple(dict.fromkeys(filter(_is_usable, listed)))[:MODELS_MAX]
    lacking = await server_probe.lacking(server, DEFAULTS)
    return Found(
        candidate=candidate,
        models=models,
        # A server that answers all of them in the same way reveals nothing about any.
        endpoints=tuple(path for path in DEFAULTS if path not in lacking) or DEFAULTS,
        left_out=len(set(listed)) - len(models),
    )


_NAME: Final[TypeAdapter[str]] = TypeAdapter(ModelName)


def _is_usable(name: str) -> bool:
    try:
        return _NAME.validate_python(name).isprintable()
    except ValidationError:
        return False


def settings(found: Sequence[Found]) -> str:
    """The text of the settings file."""
    parts = [HEAD]
    if any(_has_own_port(one) for one in found):
        parts.append(f"port = {OTHER_PORT}  # of Tidemill: a server here has {OWN_PORT}, its usual one\n")
    parts += [_server(one) for one in found if one.models]
    parts += [_locked(one) for one in found if one.is_refused]
    models: dict[str, list[Found]] = {}
    for one in found:
        for name in one.models:
            models.setdefault(name, []).append(one)
    parts += [_model(name, places) for name, places in models.items()]
    parts += [] if models else [EXAMPLE]
    return "\n".join([*parts, FOOT])


def _has_own_port(found: Found) -> bool:
    return AnyHttpUrl(found.candidate.url).port == OWN_PORT and (found.is_refused or not found.fault)


def _server(found: Found) -> str:
    place = found.candidate
    return (
        f"[servers.{_quoted(place.name)}]  # {place.program}\n"
        f"url = {_quoted(place.url)}\n"
        f"max_in_flight = {place.max_in_flight}  # at most; Tidemill finds out how many calls it takes\n"
        f'# api_key_env = "{_variable(place)}"  # the environment variable with its key, if it wants one\n'
    )


def _locked(found: Found) -> str:
    place = found.candidate
    return (
        f"# {place.program} wants an API key: set it in the variable {_variable(place)}, and name its models.\n"
        f"# [servers.{_quoted(place.name)}]\n"
        f"# url = {_quoted(place.url)}\n"
        f'# api_key_env = "{_variable(place)}"\n'
        f'# [models."NAME"]\n'
        f"# servers = [{_quoted(place.name)}]\n"
    )


def _model(name: str, places: Sequence[Found]) -> str:
    servers = ", ".join(_quoted(one.candidate.name) for one in places)
    endpoints = [path for path in DEFAULTS if all(path in one.endpoints for one in places)]
    listed = ", ".join(map(_quoted, endpoints))
    comment = "" if len(endpoints) < len(DEFAULTS) else "# "
    return f"[models.{_quoted(name)}]\nservers = [{servers}]\n{comment}endpoints = [{listed}]\n"


def _variable(candidate: Candidate) -> str:
    # `servers add` takes names with this prefix alone, and a shell none that begins with a digit.
    return "TIDEMILL_KEY_" + re.sub(r"[^A-Z0-9]", "_", candidate.name.upper())


def _quoted(text: str) -> str:
    """Quoted as a string or a key in TOML, which has the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)


def write(file: Path, text: str) -> None:
    """Create the file.

    Raises:
        OperatorError: It exists, or cannot be created.
    """
    try:
        # `up` refuses a file that a group may write to, whatever the umask allows.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as new:
                new.write(text)
        except BaseException:
            # A part of it would look like settings.
            file.unlink()
            raise
    except FileExistsError as error:
        raise OperatorError(exists(file)) from error
    except OSError as error:
        raise OperatorError(f"{file}: {error.strerror}") from error


def exists(file: Path) -> str:
    """The message that a file stays as it is."""
    return f"{file} exists and stays as it is; --config names another file"


def next_steps(found: Sequence[Found], file: Path) -> str:
    """The operator's next steps."""
    is_found = file == Path("tidemill.toml") and ownership.is_trusted(file)
    start = "`tidemill up`" if is_found else f"`tidemill up --config {shlex.quote(str(file))}`"
    if any(one.models for one in found):
        return f"Wrote {file}. Next: {start}, then `tidemill run FILE -o out.jsonl` in another terminal."
    return (
        f"Wrote {file}, without a model: no inference server was found. Name yours there, then {start}.\n"
        f"For a first try without a server, install two small models: {demo.INSTALL}"
    )


HEAD: Final = """\
# Settings of Tidemill, written by `tidemill init`. A running `tidemill up` applies changes of servers and models.
"""
EXAMPLE: Final = """\
# An inference server with OpenAI's HTTP API, and a model that it serves:
# [servers.gpu]
# url = "http://127.0.0.1:8000/v1"
# max_in_flight = 256
#
# [models."qwen3-8b"]
# servers = ["gpu"]
"""
FOOT: Final = """\
# More of what a model may have, in its own table:
# timeout_seconds = 600        # a longer call is made again
# inputs_per_call = 32         # embeddings: lines that go together in one call
# price = { input_per_million = 0.10, output_per_million = 0.40 }
"""

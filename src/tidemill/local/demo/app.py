"""HTTP server of the demo backend; routes a call to the model that its body names."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import msgspec
import orjson
from aiohttp import web

from tidemill.local.demo import CHAT_ENDPOINTS, CHAT_MODEL, EMBEDDING_MODEL, weights
from tidemill.local.demo.embedding import EmbeddingRequest, reply
from tidemill.local.demo.engine import Chat, Embedder
from tidemill.runtime import notify
from tidemill.runtime.listening import listen
from tidemill.schemas import UNREADABLE

BODY_BYTES_MAX = 32 << 20
CHAT_SECONDS_MAX = 600
CHUNK_BYTES = 64 << 10
CREATED = 1_730_332_800
"""The `created` of both models, Unix seconds: of the 31st of October 2024."""
STOP_SECONDS_MAX = 1.0
"""A stop cuts off calls that take longer to end; their callers retry."""


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The loaded models, and the HTTP session to the chat server."""

    chat: Chat
    embedder: Embedder
    session: aiohttp.ClientSession


ENGINES = web.AppKey("engines", Engines)


class _Named(msgspec.Struct, frozen=True):
    """The part of a chat body that this server reads; the engine validates the rest."""

    model: str


def _fault(status: int, message: str, *, param: str | None = None, code: str | None = None) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return web.Response(status=status, body=orjson.dumps({"error": error}), content_type="application/json")


def _unknown(model: str) -> web.Response:
    message = f"The model '{model}' does not exist here."
    return _fault(404, message, param="model", code="model_not_found")


@web.middleware
async def _with_error_bodies(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give the refusals of aiohttp, like an unknown path and a body that is too large, the body of an error."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        answer = _fault(error.status, f"{request.method} {request.path}: {error.text}")
        if isinstance(error, web.HTTPMethodNotAllowed):
            answer.headers["allow"] = error.headers["allow"]
        return answer


def _unreadable(error: Exception) -> web.Response:
    return _fault(400, f"We could not parse the JSON body of your request: {error}")


_MODELS = {
    name: {"id": name, "object": "model", "created": CREATED, "owned_by": "tidemill"}
    for name in (CHAT_MODEL, EMBEDDING_MODEL)
}


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": list(_MODELS.values())})


async def _model(request: web.Request) -> web.Response:
    found = _MODELS.get(name := request.match_info["model"])
    return _unknown(name) if found is None else web.json_response(found)


async def _embeddings(request: web.Request) -> web.Response:
    body = await request.read()
    try:
        asked = msgspec.json.decode(body, type=EmbeddingRequest)
    except UNREADABLE as error:
        return _unreadable(error)
    if asked.model != EMBEDDING_MODEL:
        return _unknown(asked.model)
    vectors, tokens = await asyncio.to_thread(request.app[ENGINES].embedder.embed, asked.texts)
    return web.Response(body=reply(asked, vectors, tokens), content_type="application/json")


async def _chat(request: web.Request) -> web.StreamResponse:
    """Forward a call to llama.cpp unchanged, and stream its answer back."""
    body = await request.read()
    try:
        # The decoder does not check the text that it skips.
        body.decode()
        model = msgspec.json.decode(body, type=_Named).model
    except UNREADABLE as error:
        return _unreadable(error)
    # The engine accepts any name.
    if model != CHAT_MODEL:
        return _unknown(model)
    engines = request.app[ENGINES]
    async with engines.session.post(engines.chat.address + request.path, data=body) as answer:
        response = web.StreamResponse(status=answer.status)
        response.content_type = answer.content_type
        response.content_length = answer.content_length
        await response.prepare(request)
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            await response.write(chunk)
        await response.write_eof()
        return response


def _application(chat: Chat, embedder: Embedder) -> web.Application:
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_with_error_bodies])

    async def engines(app: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=CHAT_SECONDS_MAX)
        headers = {"content-type": "application/json"}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            app[ENGINES] = Engines(chat=chat, embedder=embedder, session=session)
            yield

    app.cleanup_ctx.append(engines)
    app.add_routes([web.get("/v1/models", _models), web.get("/v1/models/{model:.+}", _model)])
    app.add_routes([web.post(endpoint, _chat) for endpoint in CHAT_ENDPOINTS])
    app.add_routes([web.post("/v1/embeddings", _embeddings)])
    return app


async def serve(*, port: int, threads: int = 1) -> None:
    """Load the models and serve until SIGINT or SIGTERM; port 0 picks a free one, which is printed.

    Raises:
        ImportError: The extra `demo` is not installed.
        SettingsError: The port is not available.
        OSError: A model cannot be loaded, or does not answer.
        WeightsError: The weights of a model are not available.
    """
    stopped = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    embedder = await asyncio.to_thread(Embedder, *await weights.fetch(weights.EMBEDDING))
    chat = await asyncio.to_thread(Chat, *await weights.fetch(weights.CHAT), threads=threads)
    # If a caller disconnects, its handler is cancelled and disconnects from the engine, which stops generating.
    runner = web.AppRunner(
        _application(chat, embedder),
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=STOP_SECONDS_MAX,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listen("127.0.0.1", port)).start()
        await _check_models(runner)
        print(f"Demo backend at {_address(runner)}/v1", flush=True)  # noqa: T201 - the command's output
        notify.ready()
        await stopped.wait()
    finally:
        await runner.cleanup()


def _address(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"


async def _check_models(runner: web.AppRunner) -> None:
    """Call each model once, which also warms it up."""
    chat = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    embedding = {"model": EMBEDDING_MODEL, "input": "Hello"}
    async with aiohttp.ClientSession(_address(runner), raise_for_status=True) as session:
        for path, body in (("/v1/embeddings", embedding), ("/v1/chat/completions", chat)):
            async with session.post(path, json=body) as answer:
                await answer.read()

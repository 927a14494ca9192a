"""The door to HTTP for commands: what an inference server says that it serves."""

import ssl
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

SECONDS_MAX: Final = 5.0
ANSWER_BYTES_MAX: Final = 1 << 20


class _Served(msgspec.Struct, frozen=True):
    id: str


class _Listing(msgspec.Struct, frozen=True):
    data: list[_Served]


async def models(base: str, key: str | None, ca_file: Path | None = None) -> list[str] | str:
    """The ids that `GET /models` lists; a text where there is no such answer."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=SECONDS_MAX)
    try:
        trusted = ssl.create_default_context(cafile=ca_file)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(f"{base}/models", allow_redirects=False, ssl=trusted) as answer,
        ):
            if not answer.ok:
                return f"status {answer.status}"
            body = await answer.content.read(ANSWER_BYTES_MAX)
    except TimeoutError:
        return f"no answer in {SECONDS_MAX:.0f} s"
    except (aiohttp.ClientError, OSError) as error:
        return type(error).__name__
    try:
        return [served.id for served in msgspec.json.decode(body, type=_Listing).data]
    except msgspec.MsgspecError:
        return "an answer that is no list of models"

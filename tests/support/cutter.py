"""A proxy that breaks downloads off."""

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit


class Cutter:
    """A proxy that breaks the first downloads off, as an asynchronous context manager."""

    def __init__(self, url: str, *, cuts: int, after_bytes: int) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self.cuts = cuts
        self._after_bytes = after_bytes

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(self._host, self._port)
        pumps = [
            asyncio.create_task(self._pump(reader, forth)),
            asyncio.create_task(self._pump(back, writer, cut=True)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for side in (writer, forth):
            side.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cut: bool = False
    ) -> None:
        passed = 0
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
                passed += len(data)
                if cut and self.cuts and passed > self._after_bytes:
                    self.cuts -= 1
                    return

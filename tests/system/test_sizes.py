"""Large files: every client gets the error for a file that is too large, and no process holds a file in memory."""

import asyncio
import shutil
import subprocess

import httpx
import psutil
import pytest
from support import sdk
from support.api import KEY, Api
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_topics

UPLOAD_BYTES_MAX = 4 << 20
LARGE_BYTES = 160 << 20
GROWTH_BYTES_MAX = 48 << 20
BLOCK = b'{"custom_id": "a", "body": {"text": "all work and no play"}}\n' * 16_384

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module", autouse=True)
def topics(kafka):
    """The topics exist."""
    asyncio.run(ensure_topics(Settings(), kafka))


@pytest.mark.parametrize(("runtime", "source"), [("20.18.0", "openai6"), ("24.19.0", "openai7")])
def test_node_gets_the_413_of_a_too_large_stream(kafka, tmp_path, runtime, source):
    """After the rest of the stream is read."""
    node = sdk.node(runtime, source)
    script = shutil.copy(sdk.NODE_SOURCES / "too-large.mjs", node.folder)
    path = tmp_path / "large.jsonl"
    with path.open("wb") as file:
        for _ in range(40):
            file.write(BLOCK)
    with Api(tmp_path / "api", kafka, upload_bytes_max=UPLOAD_BYTES_MAX) as api:
        command = [str(node.binary), str(script), api.url, KEY, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_memory_does_not_grow_with_a_file(kafka, tmp_path):
    """Up, down, in parts, and down to a client that reads nothing."""
    with Api(tmp_path, kafka) as api, api.client() as client:
        process = psutil.Process(api.process.pid)
        small = upload(client, 1 << 20)
        assert client.get(f"/files/{small}/content").status_code == 200
        base = process.memory_info().rss
        peak = 0

        def look() -> None:
            nonlocal peak
            peak = max(peak, process.memory_info().rss)

        file_id = upload(client, LARGE_BYTES)
        look()
        with client.stream("GET", f"/files/{file_id}/content") as answer:
            size = 0
            for chunk in answer.iter_bytes():
                size += len(chunk)
                look()
        assert size == LARGE_BYTES // len(BLOCK) * len(BLOCK)
        with client.stream("GET", f"/files/{file_id}/content") as answer:
            next(answer.iter_raw())
            # Another request is answered meanwhile.
            assert client.get(f"/files/{file_id}").status_code == 200
            look()
        in_parts(client)
        look()
        assert peak - base <= GROWTH_BYTES_MAX
        wait_until(lambda: not list((tmp_path / "store" / ".partial").iterdir()), "drafts to go")


def blocks(size: int):
    """About so many bytes."""
    for _ in range(size // len(BLOCK)):
        yield BLOCK


def upload(client: httpx.Client, size: int) -> str:
    """A file's id."""

    def body():
        yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        yield from blocks(size)
        yield b"\r\n--b--\r\n"

    kind = {"content-type": "multipart/form-data; boundary=b"}
    return client.post("/files", content=body(), headers=kind).raise_for_status().json()["id"]


def in_parts(client: httpx.Client) -> None:
    """A large file of three parts."""
    part = b"".join(blocks(48 << 20))
    begin = {"filename": "f", "purpose": "user_data", "bytes": 3 * len(part), "mime_type": "text/plain"}
    path = f"/uploads/{client.post('/uploads', json=begin).raise_for_status().json()['id']}"
    ids = [
        client.post(f"{path}/parts", files={"data": ("p", part)}).raise_for_status().json()["id"] for _ in range(3)
    ]
    done = client.post(f"{path}/complete", json={"part_ids": ids}).raise_for_status().json()
    assert done["file"]["bytes"] == 3 * len(part)

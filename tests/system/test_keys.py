"""Keys and usage on a real broker: every api process knows of them, and so do the commands."""

import asyncio
import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import time
from decimal import Decimal

import openai
import pytest
from support.api import KEY, Api
from support.trust import VERIFIER
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.configuration.settings import Settings
from tidemill.ingest.streams.keyring import Keyring
from tidemill.kafka.admin import ensure_topics, topic_configs
from tidemill.kafka.follower import Follower
from tidemill.kafka.history import reading
from tidemill.kafka.producer import Log
from tidemill.schemas import ids
from tidemill.schemas.log import codec, producer_token, topics
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.log.messages import KeyRecord, LedgerRecord
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import Role
from tidemill.schemas.resources.batch import Status, Usage
from tidemill.schemas.resources.bill import Tariff, bill, day_of
from tidemill.schemas.resources.by_model import ModelResult

pytestmark = pytest.mark.kafka

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'


@pytest.fixture(scope="module")
def api(kafka, tmp_path_factory):
    """An api process."""
    asyncio.run(ensure_topics(Settings(), kafka))
    with Api(tmp_path_factory.mktemp("keys"), kafka) as api:
        yield api


@pytest.fixture(scope="module")
def second(api, kafka, tmp_path_factory):
    """Another one, with a folder of its own."""
    del api
    with Api(tmp_path_factory.mktemp("keys-too"), kafka) as second:
        yield second


def command(api: Api, *arguments: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """A command of the command line, asked of a process."""
    return subprocess.run(
        [sys.executable, "-m", "tidemill", *arguments],
        env={**os.environ, "TIDEMILL_BASE_URL": api.url, "TIDEMILL_API_KEY": key, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )


def status(api: Api, key: str, path: str = "/files") -> int:
    """How a GET with a key is answered."""
    with api.client(key) as client:
        return client.get(path).status_code


def test_a_key_works_on_every_process_until_it_is_revoked(api, second):
    """Soon, also on a new process; its objects belong to its project."""
    with api.client() as admin:
        key = admin.post("/admin/keys", json={"name": "ci", "project": "team"}).raise_for_status().json()
    secret = key["secret"]
    assert status(api, secret) == 200
    wait_until(lambda: status(second, secret) == 200, "the key")
    with openai.OpenAI(base_url=second.url, api_key=secret, max_retries=0) as sdk:
        file = sdk.files.create(file=LINE, purpose="batch")
    assert status(second, KEY, f"/files/{file.id}") == 404
    with second.client() as admin:
        admin.delete(f"/admin/keys/{key['id']}").raise_for_status()
    assert status(second, secret) == 401
    wait_until(lambda: status(api, secret) == 401, "the end of the key")
    api.stop()
    api.start()
    assert status(api, secret) == 401
    assert secret not in api.log + second.log


def test_the_sdk_raises_a_permission_error(api):
    """Once: it does not retry."""
    with api.client() as admin:
        secret = admin.post("/admin/keys", json={"name": "reader", "role": "read"}).json()["secret"]
    with openai.OpenAI(base_url=api.url, api_key=secret) as sdk:
        assert sdk.batches.list().data is not None
        with pytest.raises(openai.PermissionDeniedError) as caught:
            sdk.files.create(file=LINE, purpose="batch")
    assert caught.value.code == "insufficient_permissions"


def test_the_commands_of_keys(api):
    """The secret alone is on stdout; the list has its hint; the last word is that it is revoked."""
    project = f"cli-{time.time_ns()}"
    made = command(api, "keys", "create", "--project", project, "--role", "write", "--name", "a [b]\u202e")
    secret = made.stdout.strip()
    assert (made.returncode, access.is_secret(secret)) == (0, True), made.stderr
    assert secret not in made.stderr
    assert status(api, secret) == 200
    (found,) = map(json.loads, command(api, "keys", "list", "--project", project).stdout.splitlines())
    assert (found["project"], found["role"], found["name"]) == (project, "write", "a [b]\u202e")
    assert found["hint"] == access.hint(secret)
    assert command(api, "keys", "revoke", found["id"]).returncode == 0
    assert status(api, secret) == 401
    refused = command(api, "keys", "list", key=secret)
    assert (refused.returncode, secret in refused.stderr) == (2, False)
    assert command(api, "keys", "revoke", "key_none").returncode == 2
    assert command(api, "keys", "create", "--name", "x", "--role", "root").returncode == 2


def publish(kafka: str, project: str, models: list[str]) -> None:
    """Say of a batch a model what `results` would."""

    async def send() -> None:
        log = Log(kafka)
        now = int(time.time())
        tariff = Tariff(input_per_million="0.1", output_per_million="0.2", discount="0.5")
        for model in models:
            entry = LedgerRecord(
                batch_id=ids.new_batch_id(), project=project, endpoint="/v1/embeddings",
                status=Status.COMPLETED, ended_at=now, day=day_of(now), models=(
                    ModelResult(
                        model=model, completed=1, failed=0, bill=bill(3, 2, tariff),
                        usage=Usage(input_tokens=3, output_tokens=2, total_tokens=5),
                    ),
                ),
            )  # fmt: skip
            await log.send(topics.LEDGER.name, entry.batch_id, codec.encode(entry))
        await log.stop()

    asyncio.run(send())


def test_the_command_of_usage(api, kafka):
    """A table, CSV that no spreadsheet runs, JSON; page by page, and exact."""
    project = f"usage-{time.time_ns()}"
    models = ["=1+1", "@x", *(f"m{number:03d}" for number in range(150))]
    publish(kafka, project, models)
    asked = ("usage", "--project", project, "--by", "model")

    def rows() -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(command(api, *asked, "--csv").stdout)))

    found = wait_until(lambda: (got := rows()) and len(got) == len(models) and got, "all entries")
    assert [row["model"] for row in found] == ["'=1+1", "'@x", *models[2:]]
    assert sum(Decimal(row["cost_total"]) for row in found) == Decimal("0.00000035") * len(models)
    assert {row["input_tokens"] for row in found} == {"3"}
    lines = command(api, *asked, "--json").stdout.splitlines()
    assert [json.loads(line)["model"] for line in lines] == models
    assert "m149" in command(api, *asked).stdout
    assert command(api, "usage", "--by", "colour").returncode == 2
    assert command(api, "usage", "--project", "*", "--by", "project").returncode == 0


async def published(kafka: str, *records: tuple[str, bytes | None]) -> None:
    """Write to `tidemill.keys` as anybody can who may write there."""
    log = Log(kafka)
    for key, value in records:
        await log.send(topics.KEYS.name, key, value)
    await log.stop()


async def all_records(kafka: str) -> list[tuple[str, bytes | None]]:
    """What `tidemill.keys` holds."""
    async with reading(kafka) as reader:
        return [(record.key.decode(), record.value) async for record in reader.records(topics.KEYS.name)]


async def opened_by_ingest(kafka: str, secrets: list[str]) -> list[str]:
    """Those of some secrets with which a producer's lines get in, on an ingest that starts now."""
    ring = Keyring(VERIFIER, time.time, fixed=None, takes_keys=True)
    follower = Follower(kafka, topics.KEYS.name, ring.fold)
    ring.catch_up = follower.catch_up
    await follower.start()
    await follower.caught_up()
    found = []
    for secret in secrets:
        with contextlib.suppress(IntakeError):
            await ring.project(secret, "s", None)
            found.append(secret)
    await follower.stop()
    return found


def test_forged_records_make_no_key_valid(api, second, kafka, tmp_path):
    """Forged, raised, replayed or restored ones: on running processes, and on new ones."""
    with api.client() as admin:
        good, gone = (admin.post("/admin/keys", json={"name": name, "role": "read"}).json() for name in "gx")
        admin.delete(f"/admin/keys/{gone['id']}").raise_for_status()
    wait_until(lambda: status(second, good["secret"]) == 200, "the key")
    log = asyncio.run(all_records(kafka))
    old = next((key, value) for key, value in log if key == gone["id"])
    record, _ = VERIFIER.key_record(*next((key, value) for key, value in log if key == good["id"]))
    forged_secret, stranger = access.new_secret(), Signer.made()
    raised = record.model_copy(update={"key": record.key.model_copy(update={"role": Role.OPERATOR})})
    forged = KeyRecord(
        key=raised.key.model_copy(update={"id": access.new_key_id()}), sha256=access.digest(forged_secret)
    )
    asyncio.run(
        published(
            kafka, old, (gone["id"], None), old, (forged.key.id, codec.encode(forged)),
            (forged.key.id, stranger.key_record(forged)), (good["id"], stranger.key_record(raised)),
            (good["id"], codec.encode(raised)), (good["id"], None), ("\x00", b"\xff" * 100_000),
        )
    )  # fmt: skip
    with api.client() as admin:
        last = admin.post("/admin/keys", json={"name": "after all that"}).json()
    wait_until(lambda: status(second, last["secret"]) == 200, "a later key")
    with Api(tmp_path / "fresh", kafka) as fresh:
        for process in (api, second, fresh):
            assert status(process, good["secret"]) == 200
            assert status(process, good["secret"], "/admin/keys") == 403
            assert status(process, gone["secret"]) == 401
            assert status(process, forged_secret) == 401
        assert "ignoring record" in fresh.log
        assert forged_secret not in fresh.log
    secrets = [good["secret"], gone["secret"], forged_secret, last["secret"]]
    # The first may only read.
    assert asyncio.run(opened_by_ingest(kafka, secrets)) == [last["secret"]]


def test_the_broker_keeps_every_record_of_a_key(kafka):
    """Compaction could drop a revocation for a later, forged record."""
    (configs,) = asyncio.run(topic_configs(kafka, [topics.KEYS.name])).values()
    assert (configs["cleanup.policy"], configs["retention.ms"], configs["retention.bytes"]) == (
        "delete",
        "-1",
        "-1",
    )
    (configs,) = asyncio.run(topic_configs(kafka, [topics.INTAKE.name])).values()
    assert configs["message.timestamp.type"] == "LogAppendTime"


def test_without_a_signing_key_the_api_does_not_start(kafka, tmp_path):
    """The error names the command that makes one."""
    made = Api(tmp_path, kafka)
    with pytest.raises(AssertionError, match=r"signing_key: not set.*tidemill keys init"):
        made.start(TIDEMILL_SIGNING_KEY="")


def test_commands_of_keys_without_a_service():
    """They make a strong key, and a matching pair."""
    environ = {"PATH": os.environ["PATH"], "TIDEMILL_BASE_URL": "http://127.0.0.1:1/v1"}
    made, pair = (
        subprocess.run(
            [sys.executable, "-m", "tidemill", "keys", word],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        for word in ("make", "init")
    )
    assert access.is_secret(made.stdout.strip())
    assert access.digest(made.stdout.strip()) in made.stderr
    found = dict(line.split("=", 1) for line in pair.stdout.splitlines())
    assert Signer.read(found["TIDEMILL_SIGNING_KEY"]).public == found["TIDEMILL_VERIFY_KEYS"]


def test_the_command_of_tokens(api):
    """The token alone is on stdout."""
    made = command(api, "keys", "token", "--stream", "crawl", "--for", "2h")
    claims = producer_token.claims(VERIFIER, made.stdout.strip())
    assert (claims.sub, claims.project, claims.exp - claims.iat) == ("crawl", "default", 7200)
    assert made.stdout.strip() not in made.stderr
    for wrong in ("1w", "-1h", "9999999999h", ""):
        assert command(api, "keys", "token", "--stream", "crawl", "--for", wrong).returncode == 2
    assert command(api, "keys", "token", "--stream", "crawl", "--for", "25h").returncode == 2

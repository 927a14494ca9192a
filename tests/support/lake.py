"""A bucket of users at a real S3 server."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aioboto3

from tidemill.configuration.settings import Settings
from tidemill.storage.buckets import Buckets

NOW = 1_800_000_000
URL = "/v1/chat/completions"
SECRET = "BUCKET_TEST_SECRET"
LINE = b'{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'


def lines(count: int) -> bytes:
    """An input without fault."""
    return b"".join(LINE % number for number in range(count))


@dataclass
class Lake:
    """A bucket with a plain client, and the settings of connections to it."""

    name: str
    client: Any
    connection: dict[str, Any]
    _opened: list[Buckets] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Its address."""
        return f"s3://{self.name}"

    def opened(self, settings: Settings) -> Buckets:
        """The buckets of settings, closed at the end."""
        self._opened.append(Buckets(settings.buckets))
        return self._opened[-1]

    async def close(self) -> None:
        """Close what was opened."""
        for each in self._opened:
            await each.close()

    async def put(self, key: str, data: bytes) -> str:
        """Write an object; returns its ETag."""
        return str((await self.client.put_object(Bucket=self.name, Key=key, Body=data))["ETag"])

    async def keys(self) -> list[str]:
        """The keys of all objects."""
        found = await self.client.list_objects_v2(Bucket=self.name)
        return [each["Key"] for each in found.get("Contents", ())]

    def settings(self, **changes: Any) -> Settings:
        """Settings whose project `p` reads `in` and writes `out`."""
        own = {"read": [f"{self.address}/in/"], "write": [f"{self.address}/out/"]}
        connection = {**self.connection, "projects": {"p": own}, **changes}
        return Settings(
            buckets={"lake": connection}, models={"m": {"backends": [{"url": "http://127.0.0.1:9/v1"}]}}
        )


@asynccontextmanager
async def new_lake(s3: dict[str, str]) -> AsyncIterator[Lake]:
    """A new bucket; the variable `SECRET` has to have the secret of the server's account."""
    arguments = {
        "endpoint_url": s3["AWS_ENDPOINT_URL"],
        "region_name": "us-east-1",
        "aws_access_key_id": s3["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": s3["AWS_SECRET_ACCESS_KEY"],
    }
    connection = {
        "endpoint": s3["AWS_ENDPOINT_URL"],
        "region": "us-east-1",
        "access_key_id": s3["AWS_ACCESS_KEY_ID"],
        "secret_access_key_env": SECRET,
    }
    async with aioboto3.Session().client("s3", **arguments) as client:
        name = f"lake-{secrets.token_hex(6)}"
        await client.create_bucket(Bucket=name)
        lake = Lake(name, client, connection)
        yield lake
        await lake.close()

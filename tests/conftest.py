"""What every test may ask for."""

from collections.abc import Iterator

import pytest
from support.brokers import any_kafka

pytest_plugins = ("support.fixtures",)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of a real Kafka, one for the session; tests keep apart by the names of their topics."""
    with any_kafka(tmp_path_factory.mktemp("kafka")) as bootstrap:
        yield bootstrap

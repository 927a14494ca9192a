"""How the tests find their broker, as far as it can be seen without a Docker engine."""

import pytest
from docker.errors import DockerException
from support import brokers


def test_no_engine_no_container(monkeypatch, unused_tcp_port):
    """Without a Docker daemon the tests use the embedded broker."""
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{unused_tcp_port}")
    assert not brokers.docker_answers()


def test_an_engine_is_asked_for_a_container(monkeypatch, unused_tcp_port):
    """The way to a container leads as far as to the engine, which is not there: all before it can be had."""
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(DockerException), brokers.container():
        pass


def test_a_broker_that_is_given_is_taken(monkeypatch, tmp_path):
    """Nothing is started beside it."""
    monkeypatch.setenv(brokers.GIVEN, "kafka.example:9092")
    with brokers.any_kafka(tmp_path) as found:
        assert found == "kafka.example:9092"
    assert not list(tmp_path.iterdir())

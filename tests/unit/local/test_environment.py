"""The environment of each process: its settings, and no secret of another."""

import pytest

from tidemill.configuration.connections import Logs
from tidemill.configuration.settings import SECRETS, Settings
from tidemill.local import environment

KEYS = {"BACKEND_KEY"}
STAGES = ("api", "ingest", "processors", "results", "webhooks")
GIVEN = {
    "PATH": "/bin", "HOME": "/root", "LC_ALL": "C", "PYTHONPATH": "x", "SSL_CERT_FILE": "ca.pem", "OTEL_X": "x",
    "TIDEMILL_PORT": "1", "tidemill_partitions": "2", "TIDEMILL_PROJECTS__a__WEIGHT": "2",
    "TIDEMILL_NOTIFY_FD": "5", "TIDEMILL_KEY_LATER": "later", "KAFKA_PASSWORD": "kafka", "BACKEND_KEY": "backend",
    "AWS_SECRET_ACCESS_KEY": "aws", "https_proxy": "http://u:p@proxy",
    "GITHUB_TOKEN": "other", "DATABASE_URL": "other",
    "tidemill_api_key": "lower", **{f"TIDEMILL_{name.upper()}": f"the {name}" for name in SECRETS},
}  # fmt: skip
PLAIN = {"PATH", "HOME", "LC_ALL", "PYTHONPATH", "SSL_CERT_FILE"}
ALL = PLAIN | {
    "TIDEMILL_PORT", "tidemill_partitions", "TIDEMILL_PROJECTS__a__WEIGHT", "KAFKA_PASSWORD",
    "OTEL_X", "TIDEMILL_LOG__FORMAT",
}  # fmt: skip
STORE = {"AWS_SECRET_ACCESS_KEY", "https_proxy"}
OWN = {"api": {"TIDEMILL_SIGNING_KEY"}, "processors": {"BACKEND_KEY", "TIDEMILL_KEY_LATER"}}


def settings(monkeypatch, store):
    monkeypatch.setenv("KAFKA_PASSWORD", "x")
    security = {"protocol": "SASL_SSL", "username": "u", "password_env": "KAFKA_PASSWORD"}
    return Settings(kafka="k:1", kafka_security=security, store=store)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_gets_the_variables_that_it_needs(stage, monkeypatch):
    """Unknown variables and secret settings reach no stage."""
    of_s3, of_folder = settings(monkeypatch, "s3://b/p"), settings(monkeypatch, None)
    assert set(environment.of_stage(stage, of_s3, GIVEN, KEYS)) == ALL | OWN.get(stage, set()) | (
        STORE if stage != "webhooks" else set()
    )
    assert set(environment.of_stage(stage, of_folder, GIVEN, KEYS)) == ALL | OWN.get(stage, set())


def test_a_stage_stops_before_it_is_killed():
    """A longer wait for calls in flight would end without a commit."""
    found = environment.of_stage("processors", Settings(stop_seconds=600), GIVEN, KEYS)
    assert found["TIDEMILL_STOP_SECONDS"] == "7"
    assert [words[:27] for words in environment.changed(Settings(stop_seconds=600))] == [
        "stop_seconds is 7, not 600:"
    ]
    assert environment.changed(Settings()) == []
    with pytest.raises(ValueError, match="less than or equal to 86400"):
        Settings(stop_seconds=86_401)
    assert "TIDEMILL_STOP_SECONDS" not in environment.of_stage("processors", Settings(), GIVEN, KEYS)


def test_other_processes_get_no_settings():
    """The broker and the demo backend."""
    assert set(environment.plain(GIVEN)) == PLAIN


def test_what_libraries_read_at_their_import_reaches_the_process_that_imports_them():
    """And nothing else of tracing, which may have a secret."""
    given = {**GIVEN, "OTEL_PROPAGATORS": "baggage", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret"}
    assert set(environment.fork_server(given)) == {*PLAIN, "OTEL_PROPAGATORS"}


@pytest.mark.parametrize("stage", STAGES)
def test_only_processors_get_the_key_of_a_backend(stage):
    """Also if its name begins like a setting."""
    given = {"TIDEMILL_SERVER_KEY": "x"}
    found = environment.of_stage(stage, Settings(log=Logs(format="json")), given, given.keys())
    assert set(found) == ({"TIDEMILL_SERVER_KEY"} if stage == "processors" else set())


@pytest.mark.parametrize("stage", STAGES)
def test_stages_that_reach_buckets_get_their_secrets(stage):
    """Also if a name begins like a setting, and the way of the machine to S3."""
    account = {"access_key_id": "x", "secret_access_key_env": "TIDEMILL_LAKE"}
    bucket = account | {"projects": {"p": {"read": ["s3://lake/in"]}}}
    given = {"TIDEMILL_LAKE": "x", "AWS_CA_BUNDLE": "ca.pem"}
    found = environment.of_stage(stage, Settings(log=Logs(format="json"), buckets={"lake": bucket}), given, ())
    assert set(found) == (set(given) if stage in {"api", "ingest", "results"} else set())

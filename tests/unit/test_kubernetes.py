"""The plain manifests, made by the chart, are to the schemas of Kubernetes, and say what the code understands."""

import re
import tomllib
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml
from support.keda_schema import keda_schema
from typer.main import get_command

from tidemill import metrics
from tidemill.__main__ import app
from tidemill.api.dependencies import REPLAYS_AT_ONCE_MAX
from tidemill.configuration.settings import SECRETS, Settings
from tidemill.schemas.jsonl.lines import LINE_BYTES_MAX
from tidemill.schemas.log import acls
from tidemill.schemas.resources.waiting import Reason

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
VERSION = "1.31"
STOP_SECONDS = 10
STAGES = ("api", "ingest", "processors", "results", "webhooks")
KEDA = ROOT / "deploy" / "keda" / "vllm.yaml"
OBJECTS = [
    found for file in sorted(FOLDER.glob("*.yaml")) for found in yaml.safe_load_all(file.read_text("utf-8"))
]
SCALED = {found["kind"]: found for found in yaml.safe_load_all(KEDA.read_text("utf-8"))}


def of(kind):
    """The objects of a kind by name, without that of the release."""
    return {
        found["metadata"]["name"].removeprefix("tidemill-"): found for found in OBJECTS if found["kind"] == kind
    }


def name(found):
    return f"{found['kind']}-{found['metadata']['name']}"


@pytest.mark.parametrize("found", [*OBJECTS, SCALED["Service"], SCALED["Deployment"]], ids=name)
def test_to_the_schema(found):
    """Strictly: an unknown field is refused."""
    kubernetes_validate.validate(found, VERSION, strict=True)


def test_one_deployment_for_each_stage():
    """Each runs a command of the program, as an unprivileged user, and writes only to volumes."""
    commands = get_command(app).commands
    assert set(of("Deployment")) == set(STAGES) == set(of("PodDisruptionBudget"))
    for stage, deployment in of("Deployment").items():
        spec = deployment["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert container["args"] == [stage]
        assert stage in commands
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert not spec["automountServiceAccountToken"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_replays_have_room_where_they_gather_lines():
    """A pod that has more in an `emptyDir` than its limit is evicted."""
    volumes = of("Deployment")["api"]["spec"]["template"]["spec"]["volumes"]
    (limit,) = (volume["emptyDir"]["sizeLimit"] for volume in volumes if volume["name"] == "tmp")
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", limit).groups()
    has = int(number) << {"Mi": 20, "Gi": 30}[unit]
    assert has >= REPLAYS_AT_ONCE_MAX * (Settings().file_bytes_max + LINE_BYTES_MAX)


def test_a_pod_has_time_to_stop():
    """The grace is longer than what a stage takes, with the wait before it."""
    for deployment in of("Deployment").values():
        spec = deployment["spec"]["template"]["spec"]
        wait = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert spec["terminationGracePeriodSeconds"] > wait + 2 * STOP_SECONDS


def test_selectors_meet_their_pods():
    """Each selector selects the pods of its stage."""
    labels = {stage: found["spec"]["template"]["metadata"]["labels"] for stage, found in of("Deployment").items()}
    for kind in ("Deployment", "PodDisruptionBudget"):
        for stage, found in of(kind).items():
            assert found["spec"]["selector"]["matchLabels"] == labels[stage]
    assert of("Service")["api"]["spec"]["selector"] == labels["api"]
    for policy in of("NetworkPolicy").values():
        wanted = policy["spec"]["podSelector"]["matchLabels"].items()
        assert any(wanted <= found.items() for found in labels.values())


def test_settings_can_be_used(monkeypatch):
    """The ConfigMap's variables are settings, and its file can be read with them."""
    for variable, value in of("ConfigMap")["tidemill"]["data"].items():
        monkeypatch.setenv(variable, value)
        if variable.startswith("TIDEMILL_") and variable != "TIDEMILL_CONFIG":
            assert variable.removeprefix("TIDEMILL_").split("__")[0].lower() in Settings.model_fields
    monkeypatch.setenv("KAFKA_PASSWORD", "secret")
    monkeypatch.setenv("TIDEMILL_KAFKA_SECURITY__USERNAME", "of-a-stage")
    content = tomllib.loads(of("ConfigMap")["models"]["data"]["tidemill.toml"])
    settings = Settings(**content)
    assert settings.cluster.security.protocol == "SASL_SSL"
    assert settings.replication == 3
    assert list(settings.models) == ["chat"]


def test_each_stage_has_its_own_secrets():
    """And is a user of Kafka of its own, the one that `tidemill acls` gives rights to."""
    for stage, deployment in of("Deployment").items():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        secrets = [found["secretRef"]["name"] for found in container["envFrom"] if "secretRef" in found]
        assert secrets == ["tidemill-env", f"tidemill-{stage}-env"]
        named = {one["name"]: one["value"] for one in container["env"]}
        assert named.pop("TIDEMILL_KAFKA_SECURITY__USERNAME") == acls.user(stage)
        assert named.keys() == ({"TIDEMILL_STOP_SECONDS"} if stage == "processors" else set())
    assert not {f"TIDEMILL_{name.upper()}" for name in SECRETS} & of("ConfigMap")["tidemill"]["data"].keys()


def test_probes_ask_what_is_answered():
    """The ports that are asked are named by the container, and are those of the image."""
    image = (ROOT / "Dockerfile").read_text("utf-8")
    port = int(re.search(r"TIDEMILL_HEALTH_PORT=(\d+)", image)[1])
    for deployment in of("Deployment").values():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        ports = {found["name"]: found["containerPort"] for found in container["ports"]}
        assert ports["health"] == port
        for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            found = container[probe]["httpGet"]
            assert (found["path"].partition("?")[0], found["port"]) == (path, "health")
    (api,) = of("Deployment")["api"]["spec"]["template"]["spec"]["containers"]
    left_out = set(parse_qs(urlsplit(api["readinessProbe"]["httpGet"]["path"]).query)["exclude"])
    assert left_out == {"kafka", "store", "view"}, "reads go on without them"


def test_the_autoscaler_looks_at_a_metric_that_is_there():
    """The recorded series derives from a metric that Tidemill has."""
    rules = yaml.safe_load((ROOT / "deploy" / "rules.yml").read_text("utf-8"))["groups"][0]["rules"]
    exprs = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    assert set(re.findall(r"tidemill_\w+", exprs["tidemill:deadline_pressure"])) == {metrics.SLACK.metric.name}
    assert "replicas" not in of("Deployment")["processors"]["spec"]
    (metric,) = of("HorizontalPodAutoscaler")["processors"]["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == "tidemill_deadline_pressure_max"
    assert "max(tidemill:deadline_pressure)" in exprs["tidemill:deadline_pressure:max"]


def test_the_autoscalers_act_before_the_deadline():
    """At a pressure of 1 a batch ends just at its deadline; Kubernetes acts at a tenth above the target."""
    (metric,) = of("HorizontalPodAutoscaler")["processors"]["spec"]["metrics"]
    (thousandths,) = re.findall(r"(\d+)m", metric["external"]["target"]["value"])
    _, deadline = SCALED["ScaledObject"]["spec"]["triggers"]
    for target in (int(thousandths) / 1000, float(deadline["metadata"]["threshold"])):
        assert target * 1.1 < 1


def test_no_service_sets_a_variable_of_a_stage():
    """A Service called tidemill would set TIDEMILL_PORT to an address, which the settings refuse."""
    for deployment in of("Deployment").values():
        assert deployment["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_the_alert_goes_off_for_each_reason_that_somebody_has_to_mend():
    """The others pass by themselves; the docs have every reason."""
    rules = yaml.safe_load((ROOT / "deploy" / "rules.yml").read_text("utf-8"))["groups"][0]["rules"]
    (rule,) = (rule for rule in rules if rule.get("alert") == "TidemillBatchesStalled")
    (name, left_out) = re.search(r'(tidemill_\w+)\{reason!~"([^"]*)"\}', rule["expr"]).groups()
    assert name == metrics.STALLED.metric.name
    harmless = {
        Reason.IN_FLIGHT, Reason.QUEUED, Reason.BATCHES_AT_WORK, Reason.IMPORT, Reason.OPEN, Reason.SCHEDULE,
        Reason.HEADROOM, Reason.TOKENS_PER_MINUTE, Reason.MEMORY,
    }  # fmt: skip
    assert set(left_out.split("|")) == harmless
    page = (ROOT / "docs" / "reference" / "waiting.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)[1:] == list(Reason)


def test_the_scaled_object_is_to_kedas_schema():
    """A field that KEDA does not know, or of another type, is refused."""
    schema, spec = keda_schema(), SCALED["ScaledObject"]["spec"]
    jsonschema.validate(spec, schema)
    for wrong in ({"minReplicas": 0}, {"cooldownPeriod": "300"}, {"fallback": {"replicas": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**spec, **wrong}, schema)


def test_keda_scales_by_metrics_that_are_there():
    """And to zero only if results say that nothing waits; the names of its objects agree."""
    spec = SCALED["ScaledObject"]["spec"]
    assert spec["minReplicaCount"] == 0
    assert spec["scaleTargetRef"]["name"] == SCALED["Deployment"]["metadata"]["name"]
    assert "replicas" not in SCALED["Deployment"]["spec"]
    tokens, deadline = (trigger["metadata"] for trigger in spec["triggers"])
    assert set(re.findall(r"tidemill_\w+", tokens["query"])) == {metrics.WAITING_TOKENS.metric.name}
    assert (tokens["activationThreshold"], tokens["ignoreNullValues"]) == ("0", "false")
    recorded = (ROOT / "deploy" / "rules.yml").read_text("utf-8")
    assert f"record: {re.search(r'tidemill:[a-z_]+', deadline['query'])[0]}\n" in recorded


def test_the_server_that_keda_scales_is_discovered():
    """The settings at the head of the file can be used, and lead to its service and its model."""
    head = re.findall(r"^# ? ?(.*)", KEDA.read_text("utf-8"), re.MULTILINE)
    settings = Settings(**tomllib.loads("\n".join(line for line in head if re.match(r" *(\[|\w+ = )", line))))
    (server,) = settings.servers.values()
    service, deployment = SCALED["Service"], SCALED["Deployment"]
    assert server.discover == "dns"
    assert service["spec"]["clusterIP"] == "None"
    place = service["metadata"]
    assert server.base == f"http://{place['name']}.{place['namespace']}.svc.cluster.local:8000/v1"
    (model,) = settings.models
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert f"--served-model-name={model}" in container["args"]
    assert all(
        f'model="{model}"' in one["metadata"]["query"] for one in SCALED["ScaledObject"]["spec"]["triggers"]
    )
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]

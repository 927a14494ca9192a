"""The Helm chart: every option renders objects that Kubernetes takes, and the plain manifests are its output."""

import importlib.util
import json
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from support import go_tools
from support.keda_schema import keda_schema

from tidemill import __version__
from tidemill.configuration.settings import Settings
from tidemill.schemas.log import acls

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "tidemill"
CERTIFICATE = ROOT / "tests" / "support" / "tls" / "certificate.pem"
VERSIONS = ("1.30", "1.37")
"""The oldest that the chart takes, and the newest whose schemas there are."""
FOREIGN = ("kafka.strimzi.io/v1", "monitoring.coreos.com/v1", "keda.sh/v1alpha1")
"""Kinds of operators; Kubernetes has no schema of them."""
OPTIONS = {
    "plain": {},
    "strimzi": {"strimzi": {"enabled": True, "version": "4.3.1", "storageClass": "fast"}, "replication": 3},
    "minio": {"minio": {"enabled": True, "storageClass": "fast"}},
    "monitored": {
        "monitoring": {"serviceMonitor": True, "rules": True, "dashboards": True, "labels": {"release": "p"}}
    },
    "keda": {"autoscaling": {"enabled": True, "prometheus": "http://prometheus.monitoring.svc:9090"}},
    "tls": {
        "api": {"tls": {"secret": "tidemill-tls"}, "allowedHosts": ["batch.example.com"]},
        "kafka": {"protocol": "SSL", "caSecret": "ca", "namespace": ""},
        "settings": {"TIDEMILL_ENCRYPT_LOG": "true"},
    },
    "small": {
        "webhooks": {"enabled": False}, "podDisruptionBudget": {"enabled": False},
        "autoscaling": {"enabled": False}, "networkPolicies": {"enabled": False},
        "secrets": {"shared": "", "encryption": ""}, "store": {"endpoint": ""}, "kafka": {"protocol": "PLAINTEXT"},
        "results": {"secret": "", "nodeSelector": {"disk": "fast"}},
        "image": {"digest": f"sha256:{'0' * 64}"}, "imagePullSecrets": [{"name": "registry"}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def render():
    spec = importlib.util.spec_from_file_location("render", ROOT / "deploy" / "helm" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def program():
    return go_tools.tools(go_tools.HELM) / "helm"


@pytest.fixture(scope="module")
def rendered(render, program, tmp_path_factory):
    """The objects of each set of options, by kind and name."""

    def objects(options):
        (file := tmp_path_factory.mktemp("values") / "values.yaml").write_text(json.dumps(options), "utf-8")
        values = (f"--values={render.PLAIN}", f"--values={file}")
        text = render.helm(program, "template", *render.RELEASE, CHART, *values)
        return {(found["kind"], found["metadata"]["name"]): found for found in yaml.safe_load_all(text) if found}

    return {name: objects(options) for name, options in OPTIONS.items()}


def environ(found, stage):
    """The variables of a stage, those of Secrets without a value."""
    (container,) = found["Deployment", f"tidemill-{stage}"]["spec"]["template"]["spec"]["containers"]
    own = {one["name"]: one.get("value") for one in container.get("env", [])}
    return {**found["ConfigMap", "tidemill"]["data"], **own}


def test_the_plain_manifests_are_rendered(render, program):
    """`make manifests` was run, also for the schema of the values."""
    texts = render.manifests(program)
    assert texts == {file.name: file.read_text("utf-8") for file in render.MANIFESTS.glob("*")}
    known = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    assert known.pop("properties").keys() - {"global"} == render.schema()["properties"].keys()
    render.helm(program, "lint", "--strict", CHART, f"--values={render.PLAIN}")


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_option(rendered, version):
    """Strictly: what its schemas do not know is refused."""
    for objects in rendered.values():
        for found in objects.values():
            if found["apiVersion"] not in FOREIGN:
                kubernetes_validate.validate(found, version, strict=True)


def test_an_unknown_value_is_refused(render, program):
    """As is one of another type, and the lack of one that has no default."""
    for wrong, said in (
        ("--set=autoscalin.enabled=true", "'autoscalin' not allowed"),
        ("--set=api.replica=3", "'replica' not allowed"),
        ("--set=api.replicas=three", "api/replicas"),
        ("--set=verifyKeys=", "`tidemill keys init` prints it"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            render.helm(program, "template", *render.RELEASE, CHART, f"--values={render.PLAIN}", wrong)


def test_settings_of_every_option_can_be_used(rendered, monkeypatch):
    """They are settings of Tidemill, and together they are valid."""
    for name, objects in rendered.items():
        for kind, deployment in objects:
            if kind != "Deployment":
                continue
            with monkeypatch.context() as patch:
                patch.setenv("KAFKA_PASSWORD", "from-a-secret")
                for variable, value in environ(objects, deployment.removeprefix("tidemill-")).items():
                    # Files that only a pod has.
                    patch.setenv(variable, str(CERTIFICATE) if variable.endswith("_FILE") else value or "secret")
                settings = Settings()
                assert settings.cluster.security.protocol == OPTIONS[name].get("kafka", {}).get(
                    "protocol", "SASL_SSL"
                )


def test_a_file_that_a_setting_names_is_mounted(rendered):
    """Certificates, authorities and keys, in each stage that needs them."""
    tls = environ(rendered["tls"], "api")
    assert json.loads(tls["TIDEMILL_ALLOWED_HOSTS"]) == ["batch.example.com"]
    for name, objects in rendered.items():
        for (kind, deployment), found in objects.items():
            if kind != "Deployment":
                continue
            (container,) = found["spec"]["template"]["spec"]["containers"]
            folders = {mount["mountPath"] for mount in container["volumeMounts"]}
            stage = deployment.removeprefix("tidemill-")
            files = {
                key: value for key, value in environ(objects, stage).items() if key.endswith("_FILE") and value
            }
            if stage not in {"api", "webhooks"} and name != "tls":
                files.pop("TIDEMILL_ENCRYPTION_KEY_FILE", None)
            assert {str(Path(file).parent) for file in files.values()} <= folders, (name, stage)


def test_strimzi_makes_what_the_stages_use(rendered):
    """A user for each, whose Secret has its password, and the authority of the listener."""
    objects = rendered["strimzi"]
    kafka = objects["Kafka", "tidemill"]["spec"]["kafka"]
    assert {name for kind, name in objects if kind == "KafkaUser"} == set(map(acls.user, acls.STAGES))
    for stage in acls.STAGES:
        found = environ(objects, stage)
        assert found["TIDEMILL_KAFKA"] == f"tidemill-kafka-bootstrap:{kafka['listeners'][0]['port']}"
        assert found["TIDEMILL_KAFKA_SECURITY__USERNAME"] == acls.user(stage)
        (container,) = objects["Deployment", f"tidemill-{stage}"]["spec"]["template"]["spec"]["containers"]
        (password,) = (one["valueFrom"] for one in container["env"] if one["name"] == "KAFKA_PASSWORD")
        assert password == {"secretKeyRef": {"name": acls.user(stage), "key": "password"}}
    assert kafka["config"]["min.insync.replicas"] == 2


def test_minio_serves_the_bucket(rendered):
    """At the address that the stages have, which their NetworkPolicy lets them reach."""
    objects = rendered["minio"]
    spec = objects["StatefulSet", "tidemill-minio"]["spec"]["template"]
    (container,) = spec["spec"]["containers"]
    assert "mkdir -p /data/tidemill &&" in container["command"][2]
    assert environ(objects, "api")["AWS_ENDPOINT_URL"] == "http://tidemill-minio:9000"
    peers = [one.get("to", [{}])[0] for one in objects["NetworkPolicy", "tidemill-stages"]["spec"]["egress"]]
    assert {"podSelector": {"matchLabels": spec["metadata"]["labels"]}} in peers


def test_what_is_monitored_is_what_the_repository_has(rendered):
    """The rules and dashboards are its files; the monitor finds the health ports of all pods."""
    objects = rendered["monitored"]
    rules = yaml.safe_load((ROOT / "deploy" / "rules.yml").read_text("utf-8"))
    assert objects["PrometheusRule", "tidemill"]["spec"] == rules
    boards = {
        file.stem: json.loads(file.read_text("utf-8")) for file in (ROOT / "deploy" / "grafana").glob("*.json")
    }
    for name, board in boards.items():
        found = objects["ConfigMap", f"tidemill-dashboard-{name}"]
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(found["data"][f"tidemill-{name}.json"]) == board
    monitor, service = objects["ServiceMonitor", "tidemill"], objects["Service", "tidemill-metrics"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["release"] == "p"
    for stage in acls.STAGES:
        template = objects["Deployment", f"tidemill-{stage}"]["spec"]["template"]
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()


def test_keda_scales_processors_by_slack(rendered):
    """The query is a series of the rules."""
    spec = rendered["keda"]["ScaledObject", "tidemill-processors"]["spec"]
    jsonschema.validate(spec, keda_schema())
    (trigger,) = spec["triggers"]
    recorded = re.search(r"tidemill:\w+", trigger["metadata"]["query"])[0]
    assert f"record: {recorded}\n" in (ROOT / "deploy" / "rules.yml").read_text("utf-8")
    assert "replicas" not in rendered["keda"]["Deployment", "tidemill-processors"]["spec"]


def test_parts_can_be_left_out(rendered):
    """Without webhooks, budgets, policies and Secrets the rest is there; the image may have a digest."""
    objects = rendered["small"]
    kinds = {kind for kind, _ in objects}
    assert kinds == {"ConfigMap", "Service", "Deployment"}
    assert ("Deployment", "tidemill-webhooks") not in objects
    spec = objects["Deployment", "tidemill-results"]["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"disk": "fast"}
    (container,) = spec["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": "tidemill"}}]
    assert container["image"] == f"tidemill:local@sha256:{'0' * 64}"


def test_the_chart_has_the_version_of_the_package():
    """Both of its versions."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)

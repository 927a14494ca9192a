"""The Helm chart: every option renders objects that Kubernetes takes, and the plain manifests are its output."""

import importlib.util
import ipaddress
import json
import re
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

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
EXAMPLE = re.search(r"^settings: \{\}\s+# (.*)$", (CHART / "values.yaml").read_text("utf-8"), re.MULTILINE)[1]
"""Of `settings` in values.yaml."""
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
        "encryptLog": True,
    },
    "settings": {
        "settings": {
            "TIDEMILL_FILE_BYTES_MAX": 419_430_400, "TIDEMILL_PART_AGE_SECONDS": 0.5, "TIDEMILL_BILL_COPIES": True,
            "TIDEMILL_LIMITS": {"lines_enqueued_max": 20_000_000}, "TIDEMILL_CORS_ORIGINS": ["https://a.example"],
            "TIDEMILL_WEBHOOK_ALLOW": "10.1.0.0/16,10.2.0.0/16", **yaml.safe_load(EXAMPLE),
        },
    },
    "addresses": {
        "kafka": {"servers": "one.kafka:9192, two.kafka:9193,three.kafka"},
        "store": {"endpoint": "http://10.1.2.3:9100/path"}, "serviceAccountName": "tidemill",
        "networkPolicies": {
            "storeCidrs": ["10.1.2.3/32", "fd00::/64"],
            "extraEgress": {"api": [{"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 443}]}]},
        },
    },
    "pods": {"kafka": {"port": 9000}, "store": {"endpoint": "http://s3", "port": 8333, "namespace": "s3"}},
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
    return go_tools.tools() / "helm"


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
    assert json.loads((CHART / "values.schema.json").read_text("utf-8")) == render.schema()
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
        ("--set=networkPolicies.extraEgress.apis[0].ports[0].port=1", "'apis' not allowed"),
        ("--set=settings.TIDEMILL_ENCRYPT_LOG=1", "set encryptLog"),
        ("--set=settings.tidemill_encrypt_log=true", "set encryptLog"),
        ("--set=models=encrypt_log = true", "set encryptLog"),
        ("--set=settings.TIDEMILL_LOG_LEVEL=debug", "TIDEMILL_LOG_LEVEL"),
        ("--set=settings.TIDEMILL_API_KEY=sk-hush", "TIDEMILL_API_KEY"),
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


def test_settings_of_any_type_arrive(rendered, monkeypatch):
    """Numbers, truths, lists and tables, as Tidemill reads them; and the example of values.yaml."""
    for variable, value in rendered["settings"]["ConfigMap", "tidemill"]["data"].items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("TIDEMILL_KAFKA_SECURITY__PASSWORD_ENV")
    monkeypatch.setenv("TIDEMILL_KAFKA_SECURITY__PROTOCOL", "SSL")
    monkeypatch.delenv("TIDEMILL_KAFKA_SECURITY__SASL_MECHANISM")
    found = Settings()
    assert (found.file_bytes_max, found.part_age_seconds, found.bill_copies) == (419_430_400, 0.5, True)
    assert found.limits.lines_enqueued_max == 20_000_000
    assert found.cors_origins == ("https://a.example",)
    assert list(map(str, found.webhook_allow)) == ["10.1.0.0/16", "10.2.0.0/16"]
    assert found.windows["48h"] == Decimal("0.6")


@pytest.mark.parametrize("name", ["TIDEMILL_STOP_SECONDS", "tidemill_stop_seconds"])
def test_a_time_to_stop_in_the_settings_is_in_force(render, program, name):
    """A variable of the pod would go before it; by default that follows the grace period."""
    values = (f"--values={render.PLAIN}", f"--set=settings.{name}=3")
    text = render.helm(program, "template", *render.RELEASE, CHART, *values)
    objects = [found for found in yaml.safe_load_all(text) if found]
    assert name in next(one for one in objects if one["kind"] == "ConfigMap")["data"]
    assert not [one for one in objects if one["kind"] == "Deployment" and "STOP_SECONDS" in str(one)]


def test_policies_let_the_stages_reach_what_they_are_configured_with(rendered):
    """The ports of the addresses in the ConfigMap; those of pods, where these differ."""
    for name, objects in rendered.items():
        if ("NetworkPolicy", "tidemill-stages") not in objects or name == "pods":
            continue
        data = objects["ConfigMap", "tidemill"]["data"]
        servers = [server.strip().partition(":")[2] or "9092" for server in data["TIDEMILL_KAFKA"].split(",")]
        kafka, store = egress(objects)
        assert kafka == set(map(int, servers)), name
        endpoint = urlsplit(data["AWS_ENDPOINT_URL"])
        assert store == {endpoint.port or {"http": 80, "https": 443}[endpoint.scheme]}, name
    assert egress(rendered["pods"]) == ({9000}, {8333})


def egress(objects):
    """The ports of Kafka and of the store."""
    _, *rules = objects["NetworkPolicy", "tidemill-stages"]["spec"]["egress"]
    return tuple({one["port"] for one in rule["ports"]} for rule in rules)


def test_what_a_block_of_addresses_leaves_out_is_in_it(rendered):
    """Kubernetes refuses others."""
    blocks = [
        peer["ipBlock"]
        for objects in rendered.values()
        for (kind, _), found in objects.items()
        if kind == "NetworkPolicy"
        for rule in found["spec"].get("egress", [])
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    ]
    assert {"10.1.2.3/32", "fd00::/64", "0.0.0.0/0"} <= {block["cidr"] for block in blocks}
    for block in blocks:
        for left_out in block.get("except", []):
            assert ipaddress.ip_network(left_out).subnet_of(ipaddress.ip_network(block["cidr"]))


def test_a_stage_gets_an_account_and_further_egress(rendered):
    """Of the stage that is named alone."""
    objects = rendered["addresses"]
    policy = objects["NetworkPolicy", "tidemill-api-extra"]["spec"]
    assert policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "api"
    assert policy["egress"] == OPTIONS["addresses"]["networkPolicies"]["extraEgress"]["api"]
    assert [name for kind, name in objects if name.endswith("-extra")] == ["tidemill-api-extra"]
    spec = objects["Deployment", "tidemill-api"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "tidemill"
    assert "serviceAccountName" not in rendered["plain"]["Deployment", "tidemill-api"]["spec"]["template"]["spec"]


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
    assert float(trigger["metadata"]["threshold"]) * 1.1 < 1
    assert f"record: {trigger['metadata']['query']}\n" in (ROOT / "deploy" / "rules.yml").read_text("utf-8")
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

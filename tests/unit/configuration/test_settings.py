"""Settings from a file and the environment: bounds, and messages about faults."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.configuration import catalog
from tidemill.configuration.servers import Price
from tidemill.configuration.settings import Settings, SettingsError, load
from tidemill.schemas import configured
from tidemill.schemas.bounds import BATCH_LINES_MAX, NAME_CHARS_MAX, NUMBER_MAX
from tidemill.schemas.configured import DEPTH_MAX, ITEMS_MAX, TEXT_CHARS_MAX

MODEL = 'backends = [{ url = "http://127.0.0.1:1/v1" }]'
SERVER = '[servers.gpu]\nurl = "http://127.0.0.1:1/v1"\n'


def refusal(tmp_path, text: str) -> str:
    """The error message about a settings file."""
    file = tmp_path / "tidemill.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert len(message) < 1_000
    return message.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'kafka = "{"k" * (TEXT_CHARS_MAX + 1)}"', "kafka: it has 4097 characters; at most 4096"),
        (f'store = "file:///{"k" * 1_000_000}"', "store: it has 1000008 characters"),
        ('host = "a\\r\\nb"', "host: it has a control character"),
        ("windows = {}", "windows: Dictionary should have at least 1 item"),
        (f"allowed_hosts = {['a'] * (ITEMS_MAX + 1)}", "allowed_hosts: it has 10001 items; at most 10000"),
        ('windows = { "1 day" = 0 }', "windows: a window is a number and one of s, m, h, d"),
        ("windows = { 24h = 1.5 }", "windows.24h: Input should be less than or equal to 1"),
        ("output_life_seconds = 60", "output_life_seconds: Input should be greater than or equal to 3600"),
        ('default_window = "1h"', "default_window: 1h is not one of windows"),
        (f'windows = {{ {"9" * 65}h = 0 }}', f"windows.{'9' * 65}h.[key]: String should have at most"),
        (f'[models."{"m" * (NAME_CHARS_MAX + 1)}"]\n{MODEL}', f"models.{'m' * 255}: a name has 1 to 255"),
        (f'[models."a\\nb"]\n{MODEL}', "models.a\\nb: a name has 1 to 255 characters"),
        (f'[models." m"]\n{MODEL}', "models. m.[key]: String should match pattern"),
        (f'[models."m"]\n{MODEL.replace("/v1", "/" + "v" * 5_000)}', "models.m.backends.0.url: it has 5019"),
        (f'[models."m"]\n{MODEL}\ntimeout_seconds = inf', "models.m.timeout_seconds: it must be a number within"),
        ('[projects."a b"]', "projects.a b.[key]: String should match pattern"),
        (f'[projects."{"p" * 65}"]', f"projects.{'p' * 65}.[key]: String should match pattern"),
        ("\n".join(f"[projects.p{n}]" for n in range(10_001)), "projects: it has 10001 entries; at most 10000"),
        (f"file_lines_max = {BATCH_LINES_MAX + 1}", "file_lines_max: Input should be less than"),
        (f"upload_bytes_max = {NUMBER_MAX + 1}", "upload_bytes_max: it must be a number within"),
        ("part_age_seconds = nan", "part_age_seconds: it must be a number within"),
        (f"a = {'[' * 20}{']' * 20}", f"a{'.0' * DEPTH_MAX}: it is nested too deeply"),
        (f'"{"x" * 1_000_000}" = 1', f"{'x' * NAME_CHARS_MAX}: a name has 1 to 255"),
    ],
    ids=range(23),
)  # fmt: skip
def test_settings_out_of_bounds_are_refused(tmp_path, text, message):
    """One line names the setting and the bound."""
    assert refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = 80 80", "Expected newline or end of document after a statement (at line 1, column 11)"),
        ("port = 1\nport = 2", "Cannot overwrite a value (at end of document)"),
        ("[models.m]\n[models.m]", "Cannot declare ('models', 'm') twice (at line 2, column 10)"),
        (f"[models.a/b]\n{MODEL}", "Expected ']' at the end of a table declaration (at line 1, column"),
        (f"[models.llama3.1]\n{MODEL}", 'models.llama3.1: a name with a dot needs quotes: [models."llama3'),
        (f"[models.a.1.5]\n{MODEL}", 'models.a.1.5: a name with a dot needs quotes: [models."a.1.5"]'),
        ("[projects.team.a.limits]", 'projects.team.a: a name with a dot needs quotes: [projects."team.a"]'),
        ("prot = 80", "unknown setting prot, did you mean port?"),
        (f"[models.m]\n{MODEL}\nprize = {{}}", "models.m: unknown setting prize, did you mean price?"),
        (f"[models.m]\n{MODEL.replace('url', 'uri')}", "models.m.backends.0: unknown setting uri, did you"),
        ("[limits]\nxyz = 1", "limits: unknown setting xyz"),
        ("[models.m]\nmax_in_flight = 2", "models.m: it names no server; write servers"),
        ("[models.m]\nbackends = [{}]", "models.m.backends.0.url: missing; it is the base address"),
        ("[models.m]\nbackends = []", "models.m: it names no server; write servers"),
        ('[models.m]\nbackends = "x"', "models.m.backends: Input should be a list"),
        (SERVER + "headroom = {}", "servers.gpu.headroom.ttft_ms: missing"),
        (SERVER + "headroom = { ttft_ms = 0 }", "servers.gpu.headroom.ttft_ms: Input should be greater than 0"),
        (SERVER + "headroom = { ttft = 60 }", "servers.gpu.headroom: unknown setting ttft, did you mean ttft_ms?"),
        (SERVER + 'headroom = "people"', "servers.gpu.headroom: Input should be a valid boolean"),
        ("models = 3", "models: Input should be a table"),
        ('port = "x"', "port: Input should be a valid integer"),
        (f"[models.m]\n{MODEL.replace('http://', '')}", "models.m.backends.0.url: an address begins with"),
        (f"[models.m]\n{MODEL.replace('/v1', '/v1/responses')}", "models.m.backends.0.url: /responses is put"),
        (f"[models.m]\n{MODEL.replace('/v1', '/v1/embeddings/')}", "models.m.backends.0.url: /embeddings is put"),
        (f"[models.m]\n{MODEL.replace('/v1', '/v1?a=b')}", "models.m.backends.0.url: it has a query"),
        (f"[models.m]\n{MODEL.replace('}', ', metrics = 3 }')}", "models.m.backends.0.metrics: "),
        ('[models.m]\nbackends = [{ url = "http://a/v1" }, { url = "http://a/v1/" }]', "models.m.backends: http:"),
        ('store = "/srv/files"', "store: expected file:///dir or s3://bucket/prefix"),
        ('store = "file://host/dir"', "store: expected file:///dir or s3://bucket/prefix"),
        ('store = "file:dir"', "store: expected file:///dir or s3://bucket/prefix"),
        ('store = "s3://"', "store: expected file:///dir or s3://bucket/prefix"),
        ('store = "http://x/y"', "store: expected file:///dir or s3://bucket/prefix"),
        ('store = "s3://id:secret@bucket"', "store: the address must not contain a password"),
        ('cors_origins = ["https://a.example/"]', "cors_origins.0: https://a.example/ is not an"),
        ('cors_origins = ["app.example.com"]', "cors_origins.0: app.example.com is not an origin"),
        (f"a = {'[' * 3_000}{']' * 3_000}", "it is nested too deeply"),
        (f"port = {'9' * 5_000}", "a number has too many digits"),
        ("port = true", "port: Input should be a valid integer"),
        ("windows = { 24h = true }", "windows.24h: Input should be a valid number"),
        (f"[models.m]\n{MODEL}\ntimeout_seconds = true", "models.m.timeout_seconds: Input should be a"),
        (SERVER + "hours = [{ from = 0, to = 1, max_in_flight = false }]", "servers.gpu.hours.0.max_in_flight: "),
        (SERVER + "hours = [{ from = 0, to = 1, max_in_flight = 1, days = [] }]", "servers.gpu.hours.0.days: "),
        (f"[models.m]\n{MODEL}\nendpoints = []", "models.m.endpoints: List should have at least 1 item"),
        (f"[models.m]\n{MODEL}\naliases = ['']", "models.m.aliases.0: String should match pattern"),
        (f"[models.m]\n{MODEL}\nprice.per_image = []", "models.m.price.per_image: Input should be a number"),
        (f"[models.m]\n{MODEL}\ntimeout_seconds = 6e6", "models.m.timeout_seconds: Input should be less than or"),
        (SERVER + "share = 1e-300", "servers.gpu.share: Input should be greater than or equal to 0.001"),
        ("part_age_seconds = 1e15", "part_age_seconds: Input should be less than or equal to 3600"),
        ("intake_idle_seconds = 1e-9", "intake_idle_seconds: Input should be greater than or equal to 0.1"),
        ("grace_seconds = 1e15", "grace_seconds: Input should be less than or equal to 86400"),
        ("connections.head_seconds_max = 1e15", "connections.head_seconds_max: Input should be less than"),
        ("limits.requests_per_second = 1e-300", "limits.requests_per_second: Input should be greater than"),
        ("tls_client_ca_file = 'ca.pem'", "tls_client_ca_file: it is set without tls_cert_file"),
        ('data = ""', "data: it is empty; name a folder"),
        ('data = "~no-such-user/x"', "data: ~no-such-user/x: there is no such user"),
        ('kafka = "kafka://a:9092"', "kafka: expected host:port[,host:port…], without a scheme"),
    ],
    ids=range(56),
)  # fmt: skip
def test_a_fault_says_how_to_fix_it(tmp_path, text, message):
    """One line names its place and the correct form."""
    assert (found := refusal(tmp_path, text)).startswith(message)
    assert "\n" not in found
    assert "secret" not in found


def test_a_table_that_comes_twice_needs_no_quotes(tmp_path):
    """The hint about names is for names."""
    twice = refusal(tmp_path, "[models.m]\n[models.m]")
    assert twice == "Cannot declare ('models', 'm') twice (at line 2, column 10)"
    assert refusal(tmp_path, f"[models.a/b]\n{MODEL}").endswith('needs quotes, as in [models."a/b"]')


def test_a_file_with_a_byte_order_mark_or_another_encoding(tmp_path):
    """The mark is ignored; the error about another encoding names the line."""
    file = tmp_path / "tidemill.toml"
    file.write_bytes(b"\xef\xbb\xbfport = 81\r\n")
    assert load(file).port == 81
    file.write_bytes("port = 1\n# Größe\n".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"it is not UTF-8 \(at line 2\)"):
        load(file)


def test_the_data_folder_may_be_in_the_home_folder(monkeypatch):
    """In the file and in a variable, which no shell expands."""
    monkeypatch.setenv("HOME", "/home/me")
    assert Settings(data="~/tidemill").data == Path("/home/me/tidemill")
    monkeypatch.setenv("TIDEMILL_DATA", "~/other")
    assert Settings().data == Path("/home/me/other")


def test_each_fault_has_its_own_line(tmp_path):
    """One message lists all of them."""
    text = f"prot = 1\n[models.m]\n{MODEL.replace('http', 'ftp')}\ntimeout = 1\n[models.n]\nbackends = [{{}}]"
    assert len(refusal(tmp_path, text).splitlines()) == 4


def test_a_misspelt_name_hides_no_other_fault(tmp_path):
    """At the top and in a table; values out of bounds are listed together, too, up to a number."""
    text = "prt = 1\nhots = 2\npart_bytes = 1\n[limits]\nfile_max = 1\nkeys_max = -1\n"
    text += f"[models.m]\n{MODEL}\ntries = 2\n"
    found = [line.removeprefix(f"{tmp_path / 'tidemill.toml'}: ") for line in refusal(tmp_path, text).splitlines()]
    assert sorted(line.partition(",")[0].partition(": Input")[0] for line in found) == [
        "limits.keys_max",
        "limits: unknown setting file_max",
        "models.m: unknown setting tries",
        "part_bytes",
        "unknown setting hots",
        "unknown setting prt",
    ]
    assert len(refusal(tmp_path, "a = nan\nb = inf\n").splitlines()) == 2
    with pytest.raises(ValueError, match=r"^") as refused:
        catalog.checked("server/g", {"url": "http://a/v1", "share": 0, "drain": "maybe", "shre": 1})
    assert [part.partition(":")[0] for part in str(refused.value).split("; ")] == [
        "servers.g.share",
        "servers.g.drain",
        "servers.g",
    ]


@pytest.mark.parametrize(
    ("line", "setting"), [('metrics = "x"', {"metrics": "x"}), ('headroom = "x"', {"headroom": "x"})]
)
def test_a_fault_has_one_text(tmp_path, line, setting):
    """In the file, over the API, and in the record of a server."""
    in_file = refusal(tmp_path, SERVER.replace("127.0.0.1:1", "a") + line)
    with pytest.raises(ValueError, match=r"^") as refused:
        catalog.checked("server/gpu", {"url": "http://a/v1"} | setting)
    assert in_file.split("\n")[0] == str(refused.value).split("; ")[0]
    assert in_file.startswith(f"servers.gpu.{next(iter(setting))}: ")


def test_the_environment_has_the_same_bounds(monkeypatch):
    """For plain values and for JSON."""
    for name, value in (
        ("TIDEMILL_API_KEY", "sk-" + "k" * 5_000),
        ("TIDEMILL_STORE", "a\nb"),
        ("TIDEMILL_WINDOWS", json.dumps(["24h"] * 20_000)),
        ("TIDEMILL_MODELS__M__TIMEOUT_SECONDS", "inf"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            with pytest.raises(SettingsError):
                load()


def test_deep_json_in_a_variable_is_refused(monkeypatch):
    """Without a traceback."""
    monkeypatch.setenv("TIDEMILL_LIMITS", "[" * 200_000)
    with pytest.raises(SettingsError, match="JSON"):
        load()


def test_numbers_of_variables_are_texts(monkeypatch):
    """So they are converted; only what TOML and JSON call true or false is no number."""
    for name, value in (("PORT", "81"), ("LIMITS__KEYS_MAX", "7"), ("WINDOWS", '{"24h": "0.5"}')):
        monkeypatch.setenv(f"TIDEMILL_{name}", value)
    found = Settings()
    assert (found.port, found.limits.keys_max, found.windows) == (81, 7, {"24h": Decimal("0.5")})


def test_usual_names_are_accepted(tmp_path):
    """Names of models with slashes and spaces, names of projects with dots."""
    file = tmp_path / "tidemill.toml"
    file.write_text(f'[models."Qwen/Qwen2.5 7B-Instruct"]\n{MODEL}\n[projects."a-b_c.d"]\n')
    assert list(load(file).models) == ["Qwen/Qwen2.5 7B-Instruct"]
    assert Settings().windows == {"24h": Decimal("0.5")}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


@pytest.mark.parametrize("number", [float("nan"), float("-inf"), 10**400, -(1 << 53)])
def test_numbers_that_json_cannot_hold_are_refused(number):
    """Also one with hundreds of digits."""
    assert list(configured.faults({"port": number})) == ["port: it must be a number within 9007199254740991"]


@given(JSON)
def test_content_without_faults_is_bounded(value):
    """For any nesting; the message about a fault is short and printable."""
    found = list(configured.faults(value))
    assert all(len(fault) < 10_000 and fault.isprintable() for fault in found)
    if not found:
        assert all(char >= " " for char in json.dumps(value, ensure_ascii=False, allow_nan=False))


@given(
    discounts=st.dictionaries(
        st.sampled_from(["10m", "1h", "12h", "24h", "7d"]), st.decimals(0, 1, places=3), min_size=1
    ),
    data=st.data(),
)
def test_the_window_of_a_batch_decides_its_discount(discounts, data):
    """A window that is gone has the discount of the default one, else of the first."""
    default = data.draw(st.none() | st.sampled_from(list(discounts)))
    found = Settings(windows=discounts, default_window=default)
    usual = default or next(iter(discounts))
    assert found.usual_window == usual
    for window in ["10m", "1h", "12h", "24h", "7d"]:
        assert found.tariff(Price(), window).discount == discounts.get(window, discounts[usual])


READS = {"projects": {"p": {"read": ["s3://lake/in/"]}}}


@pytest.mark.parametrize(
    ("buckets", "fault"),
    [
        ({"a": {}}, "buckets.a.projects: missing"),
        ({"a": {"projects": {"p": {"read": ["lake/in"]}}}}, "it must begin with s3://"),
        ({"a": {"projects": {"p": {"write": ["s3://lake/../in"]}}}}, "must not have empty parts"),
        ({"a": READS | {"access_key_id": "x"}}, "access_key_id needs secret_access_key_env"),
        ({"a": READS | {"secret_access_key_env": "X"}}, "access_key_id needs secret_access_key_env"),
        ({"a": READS | {"endpoint": "http://user:secret@host"}}, "an address holds no name and no password"),
        ({"a": READS | {"secret_access_key": "x"}}, "unknown setting secret_access_key"),
        ({"a": READS, "b": READS}, "a and b both have s3://lake/in for the project p"),
    ],
)
def test_connections_to_buckets(buckets, fault, tmp_path):
    """Each fault names what to change; one folder has one connection."""
    assert fault in refusal(tmp_path, f"buckets = {toml(buckets)}\n")


def toml(value: object) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{name}" = {toml(each)}' for name, each in value.items()) + " }"
    return json.dumps(value)


def test_the_secret_of_a_connection_is_read_when_it_is_used(tmp_path, monkeypatch):
    """From the variable or the file; a process without it says which."""
    account = {"access_key_id": "x", "secret_access_key_env": "LAKE"}
    bucket = Settings(buckets={"a": READS | account}).buckets["a"]
    with pytest.raises(OSError, match="the variable LAKE is not set"):
        assert bucket.secret
    monkeypatch.setenv("LAKE", "hidden")
    assert bucket.secret == "hidden"
    file = tmp_path / "lake"
    file.write_text("mounted\n")
    bucket = Settings(buckets={"a": READS | {"access_key_id": "x", "secret_access_key_file": file}}).buckets["a"]
    assert bucket.secret == "mounted"


def test_a_fault_names_the_variable_that_has_it(tmp_path, monkeypatch):
    """A list or a table in a variable is JSON, and the file does not take the blame for a variable."""
    file = tmp_path / "tidemill.toml"
    file.write_text("port = 81\nhost = 7\n")
    for name, value, said in (
        ("TIDEMILL_CORS_ORIGINS", "[https://a.example]", "TIDEMILL_CORS_ORIGINS: cors_origins.0: [https://a.exam"),
        ("TIDEMILL_CORS_ORIGINS", '["a"', 'TIDEMILL_CORS_ORIGINS: it must be JSON, like ["a", "b"]'),
        ("TIDEMILL_MODELS", "{bad", 'TIDEMILL_MODELS: it must be JSON, like {"a": 1}'),
        ("TIDEMILL_WINDOWS", "24h, 1h", 'TIDEMILL_WINDOWS: it must be JSON, like {"a": 1}'),
        ("TIDEMILL_BUCKETS__B__PROJECTS", " a", "TIDEMILL_BUCKETS__B__PROJECTS: it must be JSON"),
        ("TIDEMILL_BUCKETS__B", "[a", "TIDEMILL_BUCKETS__B: buckets.b: "),
        ("TIDEMILL_BUCKETS__B__READ", "[a", "TIDEMILL_BUCKETS: buckets.b: unknown setting read"),
        ("TIDEMILL_LIMITS", "x", "TIDEMILL_LIMITS: it must be JSON"),
        ("TIDEMILL_PORT", "abc", "TIDEMILL_PORT: port: "),
        ("TIDEMILL_MODELS__M__TIMEOUT_SECONDS", "abc", "TIDEMILL_MODELS__M__TIMEOUT_SECONDS: models.m."),
        ("TIDEMILL_LOG__LEVEL", "loud", "TIDEMILL_LOG__LEVEL: log.level: "),
        ("TIDEMILL_MODELS__M__PAUSED", "true", "TIDEMILL_MODELS: models.m: it names no server"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            with pytest.raises(SettingsError) as caught:
                load(file)
            faults = str(caught.value).splitlines()
            assert [fault for fault in faults if fault.startswith(said)], faults
            assert all(fault.startswith((said[: said.index(":")], f"{file}: host: ")) for fault in faults)

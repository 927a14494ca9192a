"""Settings from a file and the environment: each has a bound, and one beyond it is named at the start."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.schemas import configured
from tidemill.schemas.bounds import BATCH_LINES_MAX, NAME_CHARS_MAX, NUMBER_MAX
from tidemill.schemas.configured import DEPTH_MAX, ITEMS_MAX, TEXT_CHARS_MAX
from tidemill.settings import Settings, SettingsError, load

MODEL = 'backends = [{ url = "http://127.0.0.1:1/v1" }]'


def refusal(tmp_path, text: str) -> str:
    """What is said of a file."""
    file = tmp_path / "tidemill.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file)
    said = str(caught.value)
    assert said.startswith(f"{file}: ")
    assert len(said) < 1_000
    return said.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'kafka = "{"k" * (TEXT_CHARS_MAX + 1)}"', "kafka: it has 4097 characters; at most 4096"),
        (f'store = "file:///{"k" * 1_000_000}"', "store: it has 1000008 characters"),
        ('host = "a\\r\\nb"', "host: it has a control character"),
        ("windows = []", "windows: Tuple should have at least 1 item"),
        (f"windows = {['24h'] * (ITEMS_MAX + 1)}", "windows: it has 10001 items; at most 10000"),
        ('windows = ["1 day"]', "windows: a window is a number and one of s, m, h, d"),
        (f'windows = ["{"9" * 65}h"]', "windows.0: String should have at most 64 characters"),
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
    ids=range(20),
)  # fmt: skip
def test_settings_that_are_refused(tmp_path, text, said):
    """At the start, in one line that names the setting."""
    assert refusal(tmp_path, text).startswith(said)


def test_the_environment_has_the_same_bounds(monkeypatch):
    """Whether a variable holds a text or JSON."""
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


def test_what_is_usual_is_taken(tmp_path):
    """Names with slashes and spaces, and addresses of any usual length."""
    file = tmp_path / "tidemill.toml"
    file.write_text(f'[models."Qwen/Qwen2.5 7B-Instruct"]\n{MODEL}\n[projects."a-b_c.d"]\n')
    assert list(load(file).models) == ["Qwen/Qwen2.5 7B-Instruct"]
    assert Settings().windows == ("24h",)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


@pytest.mark.parametrize("number", [float("nan"), float("-inf"), 10**400, -(1 << 53)])
def test_a_number_that_is_none(number):
    """One with hundreds of digits is told of, too."""
    assert list(configured.faults({"port": number})) == ["port: it must be a number within 9007199254740991"]


@given(JSON)
def test_what_has_no_fault_is_bounded(value):
    """Whatever it is, and however deep; what is told of a fault is short."""
    found = list(configured.faults(value))
    assert all(len(fault) < 10_000 and fault.isprintable() for fault in found)
    if not found:
        assert all(char >= " " for char in json.dumps(value, ensure_ascii=False, allow_nan=False))

"""The settings in force: every one, with its source, and without secrets."""

from support.dependencies import ADMIN, client_of, open_dependencies

from tidemill.api.routes.admin.settings import MASK
from tidemill.configuration.settings import SECRETS, Settings, load
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources import access


async def test_settings_in_force(tmp_path, monkeypatch):
    """From the environment, from a part of a table there, from the file, or by default."""
    secrets = {"api_key": access.new_secret(), "signing_key": Signer.made().text}
    for name, value in secrets.items():
        monkeypatch.setenv(f"TIDEMILL_{name.upper()}", value)
    monkeypatch.setenv("TIDEMILL_PORT", "8099")
    monkeypatch.setenv("TIDEMILL_CONNECTIONS__HEAD_SECONDS_MAX", "7")
    file = tmp_path / "tidemill.toml"
    file.write_text('port = 1\nfile_lines_max = 77\nwindows = { "24h" = 0.25 }\n[limits]\nfiles_max = 3\n')
    async with open_dependencies(tmp_path, settings=load(file)) as deps, client_of(deps, ADMIN) as client:
        answer = await client.get("/admin/settings")
    shown = {one["name"]: one for one in answer.json()["data"]}
    assert set(shown) == set(Settings.model_fields) - {"servers", "models"}
    assert all(one["description"] for one in shown.values())
    assert not [value for value in secrets.values() if value in answer.text]
    assert {name: shown[name]["value"] for name in SECRETS} == dict.fromkeys(SECRETS, MASK)
    for name, value, source in (
        ("port", 8099, "environment"),
        ("file_lines_max", 77, "file"),
        ("windows", {"24h": "0.25"}, "file"),
        ("part_bytes", 8 << 20, "default"),
        ("api_key_sha256", None, "default"),
    ):
        assert (shown[name]["value"], shown[name]["source"]) == (value, source), name
    part = shown["connections"]
    assert (part["source"], part["value"]["head_seconds_max"]) == ("environment", 7)
    assert (shown["limits"]["source"], shown["limits"]["value"]["files_max"]) == ("file", 3)

"""Signing keys and other secrets of the settings; an error says what to do."""

import pytest
from typer.testing import CliRunner

from tidemill.__main__ import app
from tidemill.configuration import signing_keys
from tidemill.configuration.settings import SECRETS, Settings, SettingsError, load
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources import access

ONE, OTHER = Signer.made(), Signer.made()


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    """Run in a folder without a settings file."""
    monkeypatch.chdir(tmp_path)


def test_without_a_signing_key(tmp_path):
    """The error names the command that generates one."""
    for ask, name in ((signing_keys.signer, "signing_key"), (signing_keys.verifier, "verify_keys")):
        with pytest.raises(SettingsError, match=rf"^{name}: not set.*tidemill keys init"):
            ask(Settings())
    with pytest.raises(SettingsError, match=r"^signing_key_file: .*none cannot be read"):
        signing_keys.signer(Settings(signing_key_file=tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"^signing_key: .*43 characters") as caught:
        signing_keys.signer(Settings(signing_key="tidemill_signing_hush"))
    assert "hush" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"^verify_keys: .*mixed up"):
        signing_keys.verifier(Settings(verify_keys=[ONE.text]))


def test_a_stage_without_a_signing_key_ends_with_a_message(monkeypatch):
    """It has the exit code of a usage error, and no traceback."""
    monkeypatch.setenv("TIDEMILL_KAFKA", "127.0.0.1:1")
    monkeypatch.setenv("TIDEMILL_API_KEY", access.new_secret())
    done = CliRunner().invoke(app, ["api"])
    assert done.exit_code == 2, done.output
    assert "signing_key: not set" in done.output
    assert "Traceback" not in done.output


def test_a_signing_key_from_a_variable_or_a_file(monkeypatch, tmp_path):
    """Its public key is trusted, and so are those of `verify_keys`."""
    monkeypatch.setenv("TIDEMILL_SIGNING_KEY", ONE.text)
    assert signing_keys.signer(load()).kid == ONE.kid
    monkeypatch.delenv("TIDEMILL_SIGNING_KEY")
    (tmp_path / "key").write_text(f"{ONE.text}\n")
    monkeypatch.setenv("TIDEMILL_SIGNING_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("TIDEMILL_VERIFY_KEYS", f"{OTHER.public}, {ONE.public}")
    assert signing_keys.signer(load()).kid == ONE.kid
    assert signing_keys.verifier(load()).kids == tuple(sorted((ONE.kid, OTHER.kid)))


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_the_file_may_hold_no_secret(name, tmp_path):
    """Every stage reads the file."""
    (tmp_path / "tidemill.toml").write_text(f'{name} = "hush"\n')
    with pytest.raises(SettingsError, match=rf"{name}: .*set TIDEMILL_{name.upper()} instead"):
        load()


def test_a_weak_key_is_refused(monkeypatch):
    """The error says what to do, and does not repeat the key."""
    monkeypatch.setenv("TIDEMILL_API_KEY", "sk-weak")
    with pytest.raises(SettingsError, match=r"api_key: .*7 characters.*tidemill keys make") as caught:
        load()
    assert "sk-weak" not in str(caught.value)

"""Addresses of servers are logged and shown, so they hold no secret."""

import pytest

from tidemill.configuration import settings
from tidemill.configuration.settings import SettingsError

PASSWORD = "hunter2-hunter2"
ADDRESSES = (
    f"http://me:{PASSWORD}@127.0.0.1:9100/v1",
    f"https://:{PASSWORD}@host/v1",
    f"http://{PASSWORD}@host/v1",
)


@pytest.mark.parametrize("field", ["url", "metrics"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_with_a_password_is_refused(tmp_path, field, address):
    """At the start, by the setting's name, with the mend and without the password."""
    backend = {"url": "http://host/v1"} | {field: address}
    file = tmp_path / "tidemill.toml"
    file.write_text("[models.m]\nbackends = [{ " + ", ".join(f'{k} = "{v}"' for k, v in backend.items()) + " }]\n")
    with pytest.raises(SettingsError) as refused:
        settings.load(file)
    assert f"models.m.backends.0.{field}" in str(refused.value)
    assert "api_key_env" in str(refused.value)
    assert PASSWORD not in str(refused.value)

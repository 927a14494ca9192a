"""A real OpenID provider (panva's `oidc-provider`, certified), with people and groups of the tests."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from support import sdk

NODE = "24.19.0"
SECRET = "secret of the tests"
GRANTS = [
    {"value": "writers", "role": "write", "project": "research"},
    {"value": "readers", "role": "read", "project": "default"},
    {"value": "operators", "role": "operator"},
]
"""`ada` writes in `research` and reads in `default`, `bob` reads, `olga` is an operator, `eve` has no grant."""


def settings(folder: Path, port: int) -> str:
    """The setting `openid` for a provider on this port, as JSON; the client's secret is in the folder."""
    (folder / "client_secret").write_text(f"{SECRET}\n", "utf-8")
    found = {
        "issuer": f"http://127.0.0.1:{port}",
        "client_id": "tidemill",
        "client_secret_file": str(folder / "client_secret"),
        "grants": GRANTS,
    }
    return json.dumps(found)


@contextmanager
def openid_provider(port: int, callback: str) -> Iterator[str]:
    """Run the provider, with one client; yields its issuer."""
    node = sdk.node(NODE, "oidc")
    # A module finds its packages from where it lies.
    program = shutil.copy(sdk.NODE_SOURCES / "provider.mjs", node.folder)
    command = [str(node.binary), str(program), str(port), callback]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline(), "it did not start"
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def attack(issuer: str, name: str) -> None:
    """Change the next ID token or the next answer of the provider; `new keys` replaces its keys."""
    urllib.request.urlopen(f"{issuer}/attack?{urlencode({'name': name})}").close()

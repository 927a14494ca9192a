"""`tidemill init` against real HTTP servers on free ports, each of which answers in its own way."""

import os
import re
import resource
import shlex
import tomllib
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from support.ports import free_port

from tidemill.configuration.settings import Settings
from tidemill.local import init
from tidemill.local.init import Candidate
from tidemill.ops import OperatorError
from tidemill.runtime import server_probe
from tidemill.schemas.endpoints import DEFAULTS
from tidemill.schemas.resources import access

CHAT = "/v1/chat/completions"
ODD = "Größe \"x\" 'y' \\z"


def listing(*names):
    return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


ANSWERS = {
    "chat": lambda: listing("qwen3:8b", ODD, "zwei\nzeilen", " ", "n" * 300),
    "several": lambda: listing("qwen3:8b", *(f"lora-{number}" for number in range(init.MODELS_MAX + 20))),
    "empty": listing,
    "locked": lambda: web.json_response({}, status=401, headers={"www-authenticate": "Bearer"}),
    "tidemill": lambda: web.json_response({}, status=401, headers={"www-authenticate": access.CHALLENGE}),
    "page": lambda: web.Response(text="<html>It works!</html>"),
    "large": lambda: web.Response(body=b"[" * (server_probe.ANSWER_BYTES_MAX + 1)),
}


async def answer(request):
    """`/<kind>/v1/models` and the endpoints below it."""
    kind, path = request.match_info["kind"], request.match_info["path"]
    if path != "models":
        has = f"/v1/{path}" == CHAT or kind == "several"
        return web.json_response({"error": {"message": "no model"}}, status=400 if has else 404)
    return ANSWERS[kind]()


@pytest.fixture
async def place():
    """The address of a server of a kind."""
    app = web.Application()
    app.router.add_route("*", "/{kind}/v1/{path:.*}", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        yield lambda kind: Candidate(program=f"a {kind}", name=kind, url=str(server.make_url(f"/{kind}/v1")))


def read(found):
    return Settings(**tomllib.loads(init.settings(found)))


async def test_the_file_has_what_servers_list(place):
    """Models with their servers and endpoints; one that two servers list has both. `up` reads it as it is."""
    found = await init.look([place("chat"), place("several"), place("empty")])
    settings = read(found)
    assert set(settings.servers) == {"chat", "several"}
    assert settings.models["qwen3:8b"].servers == ("chat", "several")
    assert settings.models[ODD].servers == ("chat",)
    assert settings.models["qwen3:8b"].endpoints == (CHAT,)
    assert settings.models["lora-7"].endpoints == DEFAULTS
    assert len(settings.models) == 1 + init.MODELS_MAX
    said = [str(one) for one in found]
    assert said[0].endswith(f"2 models: qwen3:8b, {ODD} (3 more are left out)")
    assert "100 models: qwen3:8b, lora-0" in said[1]
    assert said[1].endswith(", … (21 more are left out)")
    assert said[2].endswith("/empty/v1): 0 models")


async def test_answers_that_are_no_list_are_bounded_and_explained(place):
    """The file is a template then, without a model."""
    dead = Candidate(program="none", name="none", url=f"http://127.0.0.1:{free_port()}/v1")
    found = await init.look([place("page"), place("large"), dead])
    faults = [one.fault for one in found]
    assert faults == [
        "an answer that is not a list of models",
        "an answer of more than 1048576 bytes",
        "Connection refused",
    ]
    assert not read(found).models
    assert "no inference server was found" in init.next_steps(found, init.Path("tidemill.toml"))


async def test_a_server_that_wants_a_key_is_kept_as_a_comment(place):
    """Uncommented, and with a model's name, it can be used."""
    found = await init.look([place("locked")])
    assert str(found[0]).endswith("it wants an API key; see the file")
    text = init.settings(found)
    assert not Settings(**tomllib.loads(text)).servers
    block = text[text.index("# [servers.") : text.index('# servers = ["locked"]') + 100].split("\n\n")[0]
    settings = Settings(**tomllib.loads("\n".join(line.removeprefix("# ") for line in block.splitlines())))
    assert settings.servers["locked"].api_key_env == "TIDEMILL_KEY_LOCKED"
    assert settings.models["NAME"].servers == ("locked",)


async def test_a_running_tidemill_is_no_server(place):
    """It has the usual port of llama.cpp, and would call itself."""
    (found,) = await init.look([place("tidemill")])
    assert str(found).endswith(": it is the API of Tidemill, not an inference server")
    assert "tidemill/v1" not in init.settings([found])


def test_tidemill_leaves_its_usual_port_to_a_server():
    """llama.cpp has 8080, too; a port where nothing answers is free."""
    one = init.Found(candidate=init.USUAL[1], models=("m",))
    assert read([one]).port == init.OTHER_PORT
    assert read([init.Found(candidate=init.USUAL[1], fault="Connection refused")]).port == init.OWN_PORT


def test_an_existing_file_stays_as_it_is(tmp_path):
    """The message names the way out."""
    file = tmp_path / "tidemill.toml"
    file.write_text("port = 1\n")
    with pytest.raises(OperatorError, match=r"exists and stays as it is; --config names another file"):
        init.write(file, "")
    assert file.read_text() == "port = 1\n"


def test_up_trusts_a_new_file(tmp_path, monkeypatch):
    """Also where a group shares a folder and the umask lets it write."""
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o002)
    try:
        init.write(init.Path("tidemill.toml"), "")
    finally:
        os.umask(before)
    assert (tmp_path / "tidemill.toml").stat().st_mode & 0o777 == 0o644
    assert "`tidemill up`" in init.next_steps([], init.Path("tidemill.toml"))
    # A mount of another system may give every file this mode.
    (tmp_path / "tidemill.toml").chmod(0o777)
    assert "`tidemill up --config tidemill.toml`" in init.next_steps([], init.Path("tidemill.toml"))


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path):
    """`up` would read it as settings."""
    file = tmp_path / "tidemill.toml"
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most[1]))
    try:
        with pytest.raises(OperatorError, match=r"tidemill\.toml: File too large"):
            init.write(file, "# settings\n" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert not file.exists()


def test_the_next_step_can_be_copied():
    """Also with a folder whose name has spaces."""
    step = init.next_steps([], Path("my files/it's.toml"))
    (command,) = re.findall("`(tidemill up --config .*?)`|$", step)[:1]
    assert shlex.split(command) == ["tidemill", "up", "--config", "my files/it's.toml"]


@pytest.mark.parametrize("url", ["gpu:8000/v1", "ftp://gpu/v1", "http://gpu/v1/models", "", "http://u:p@gpu/v1"])
def test_an_address_is_checked(url):
    """As one in the settings."""
    with pytest.raises(OperatorError, match=r"--server .*: .*(url|URL)"):
        init.candidate(url)


def test_a_named_server_has_a_name_from_its_address():
    """One that settings take."""
    found = init.Found(candidate=init.candidate("http://[::1]:8000/models/a/v1"), models=("m",))
    assert list(read([found]).servers) == ["1-8000-models-a"]


def test_each_address_is_looked_at_once():
    """Also a usual one that the operator names; two addresses never share a name, which would be no TOML."""
    urls = [
        "http://127.0.0.1:8000/v1",
        "http://localhost:11434/v1",
        *["http://gpu:81/a/v1", "http://gpu:81/b/v1"] * 2,
    ]
    places = init.candidates(urls)
    assert places[: len(init.USUAL)] == list(init.USUAL)
    assert [one.url for one in places[len(init.USUAL) :]] == ["http://gpu:81/a/v1", "http://gpu:81/b/v1"]
    found = [init.Found(candidate=one, models=("m",)) for one in places]
    assert len(read(found).models["m"].servers) == len(set(read(found).servers)) == len(places)

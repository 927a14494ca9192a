"""The data folder: locked by one process, with one key."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tidemill import __version__
from tidemill.__main__ import app
from tidemill.configuration.settings import Settings
from tidemill.local import data_folder
from tidemill.local.data_folder import FORMAT, FolderError, Written
from tidemill.local.up import WRONG, main
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources import access
from tidemill.sealing.wrapping import FileWrapper

ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
from pathlib import Path
from tidemill.local import data_folder
with data_folder.locked(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


def test_one_process_locks_the_folder(tmp_path):
    """A second process gets an error with the id of the first; once that is killed, the folder is free."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with (
            pytest.raises(FolderError, match=rf"in use by another .*process {holder.pid}\b.*--data"),
            data_folder.locked(tmp_path / "data"),
        ):
            pass
        holder.kill()
        holder.wait()
        with data_folder.locked(tmp_path / "data"):
            assert (tmp_path / "data" / "lock").read_text() == f"{os.getpid()}\n"


def test_a_full_disk_does_not_prevent_the_lock(tmp_path):
    """Only the process id in the lock file is missing."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "lock").symlink_to("/dev/full")
    with data_folder.locked(tmp_path):
        assert (tmp_path / "lock").exists()


def test_a_file_in_place_of_the_folder(tmp_path):
    """In words, without the number of an error."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(FolderError, match="file cannot be used: it is a file; choose"),
        data_folder.locked(tmp_path / "file"),
    ):
        pass


def test_a_folder_that_cannot_be_created(tmp_path):
    """The error names it."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FolderError, match="file/data cannot be used: Not a directory; choose"),
        data_folder.locked(tmp_path / "file" / "data"),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a\nb", "has a line break or another control character"),
        ("Gr\udcf6\udcdfe", "is not UTF-8"),
        ("/".join(["Größe" * 40] * 20), r"has \d+ bytes, which is more than the \d+"),
    ],
    ids=["line break", "latin-1", "long"],
)
def test_an_unusable_path_is_refused(tmp_path, name, why):
    """One sentence says what to do, and nothing is created."""
    with pytest.raises(FolderError, match=rf"its path {why}.*--data"), data_folder.locked(tmp_path / name):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["notes.txt", ".ssh", "kafka"])
def test_a_folder_with_other_files_is_refused(tmp_path, name):
    """A home folder, or `.`: their permissions would be lost."""
    (tmp_path / name).mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    with (
        pytest.raises(FolderError, match=rf"other files, like {name}.*Nothing was changed; .* with --data"),
        data_folder.locked(tmp_path),
    ):
        pass
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert {each.stat().st_mode & 0o777 for each in (tmp_path, tmp_path / name)} == {0o755}


@pytest.mark.parametrize(
    "name", [".DS_Store", ".gitignore", ".snapshot", "tidemill.toml", "tidemill.toml~", ".tidemill.toml.swp"]
)
def test_a_folder_may_have_what_systems_and_editors_make(tmp_path, name):
    """It is no data of a user."""
    (tmp_path / name).touch()
    with data_folder.locked(tmp_path):
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("step", ["lock", "keys", "full disk", "prepared", "format"])
def test_an_interrupted_first_start_is_continued(tmp_path, step):
    """Wherever it ended; the operator may have linked the store, and written the settings, beforehand."""
    with data_folder.locked(tmp_path):
        if step != "lock":
            for keep in KEYS.values():
                keep(tmp_path)
        if step == "full disk":
            (tmp_path / ".api_key.0123456789abcdef.part").touch()
        if step == "prepared":
            (tmp_path / "store").symlink_to(tmp_path.parent)
            (tmp_path / "tidemill.toml").touch()
        if step == "format":
            data_folder.stamp(tmp_path)
            (tmp_path / "of a user").touch()
    with data_folder.locked(tmp_path):
        data_folder.stamp(tmp_path)


@pytest.mark.parametrize("name", ["Größe", "a, b", "'q' \"d\"", "100%", "#1", "$HOME", "back\\slash", "日本"])
def test_usual_folder_names_work(tmp_path, name):
    """With blanks, umlauts or quotes, and through a symbolic link."""
    (tmp_path / "link").symlink_to(tmp_path / name)
    (tmp_path / name).mkdir()
    with data_folder.locked(tmp_path / "link" / "data"):
        assert (tmp_path / name / "data" / "lock").exists()


def test_the_api_key_is_created_once(tmp_path):
    """Later starts read it; only its owner can."""
    key, is_new = data_folder.kept_key(tmp_path)
    assert is_new
    assert access.is_secret(key)
    assert data_folder.kept_key(tmp_path) == (key, False)
    file = data_folder.kept_signing_key(tmp_path)
    signing = file.read_text()
    assert (
        data_folder.kept_signing_key(tmp_path).read_text() == signing == Signer.read(signing.strip()).text + "\n"
    )
    data_folder.keep_encryption_keys(tmp_path)
    wrapping = (tmp_path / "encryption_keys").read_text()
    data_folder.keep_encryption_keys(tmp_path)
    assert (tmp_path / "encryption_keys").read_text() == wrapping
    assert FileWrapper(tmp_path / "encryption_keys")
    for kept in (tmp_path / "api_key", file, tmp_path / "encryption_keys"):
        assert kept.stat().st_mode & 0o777 == 0o600


KEYS = {
    "api_key": data_folder.kept_key,
    "signing_key": data_folder.kept_signing_key,
    "encryption_keys": data_folder.keep_encryption_keys,
}


@pytest.mark.parametrize("name", KEYS)
def test_a_key_that_was_set_so_far_is_made(tmp_path, name):
    """An operator sets the variable of a key at the first start, and not at the second one."""
    for other in KEYS.keys() - {name}:
        KEYS[other](tmp_path)
    data_folder.stamp(tmp_path)
    KEYS[name](tmp_path)
    assert (tmp_path / name).read_text().strip()
    data_folder.stamp(tmp_path)
    for each, keep in KEYS.items():
        (tmp_path / each).unlink()
        with pytest.raises(FolderError, match=f"{each} is missing"):
            keep(tmp_path)
    # The files that once were there still count.
    data_folder.stamp(tmp_path)
    assert set(data_folder.written(tmp_path).keys) == KEYS.keys()


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("is_in_use", [False, True])
@pytest.mark.parametrize("state", ["missing", "empty", "dangling", "link to empty"])
def test_no_key_is_replaced_silently(tmp_path, name, is_in_use, state):
    """A new one in a folder that is in use would lose data; a link may lead to a disk that is not mounted."""
    folder, elsewhere = tmp_path / "data", tmp_path / "disk"
    folder.mkdir()
    if is_in_use:
        KEYS[name](folder)
        data_folder.stamp(folder)
        (folder / name).unlink()
    if state == "empty":
        (folder / name).touch()
    elif state != "missing":
        (folder / name).symlink_to(elsewhere)
        if state == "link to empty":
            elsewhere.touch()
    before = content(tmp_path)
    if not is_in_use and state in {"missing", "empty"}:
        KEYS[name](folder)
        assert (folder / name).read_text().strip()
        return
    with pytest.raises(FolderError, match=rf"/{name} (is|leads).* Restore it .*new key, write it into this file"):
        KEYS[name](folder)
    assert content(tmp_path) == before
    elsewhere.write_text("x" * 60)
    if (folder / name).is_symlink():
        KEYS[name](folder)
        assert (folder / name).is_symlink()


@pytest.mark.parametrize("name", KEYS)
def test_a_key_that_cannot_be_read(tmp_path, name):
    """It stays."""
    (tmp_path / name).write_bytes(b"\xff")
    with pytest.raises(FolderError, match=f"{name} cannot be read: it is not ASCII"):
        KEYS[name](tmp_path)
    assert (tmp_path / name).read_bytes() == b"\xff"


def test_run_json_is_replaced_atomically(tmp_path):
    """A reader sees one state or the next; no temporary file is left."""
    for content in ({"pid": 1}, {"pid": 2}):
        data_folder.write_run(tmp_path, content)
        assert json.loads((tmp_path / "run.json").read_text()) == content
    data_folder.remove_run(tmp_path)
    data_folder.remove_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


OLD = ROOT / "tests" / "support" / "data" / "704a1c9.tar.xz"
"""The data folder of that commit after a batch of 200 lines, without logs."""


def content(folder):
    """Every path, with what a file holds."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_the_first_start_writes_the_format(tmp_path):
    """A later one writes the version that starts then."""
    folder = tmp_path / "data"
    assert data_folder.written(folder) is None
    folder.mkdir()
    (folder / "store").symlink_to(tmp_path)
    with data_folder.locked(folder):
        assert data_folder.written(folder) is None, "the folder has no keys yet"
        data_folder.stamp(folder)
        assert data_folder.written(folder) == Written(FORMAT, __version__)
    (folder / "format.json").write_text(json.dumps({"format": FORMAT, "version": "0.0.1", "later": 1}))
    with data_folder.locked(folder):
        data_folder.stamp(folder)
        assert data_folder.written(folder) == Written(FORMAT, __version__)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            json.dumps({"format": FORMAT + 1, "version": "9.9\x1b"}),
            r"has format 2, written by Tidemill 9\.9\\x1b; .*later",
        ),
        (json.dumps({"format": 0, "version": "0"}), "is damaged"),
        (json.dumps({"format": "1", "version": "0"}), "is damaged"),
        (json.dumps([FORMAT]), "is damaged"),
        (json.dumps({"format": FORMAT, "version": "0", "keys": "api_key"}), "is damaged"),
        ("", "is damaged"),
        ("[" * 100_000, "is damaged"),
    ],
)
def test_another_format_is_refused(tmp_path, text, fault):
    """With what to do, and the folder stays as it is."""
    (tmp_path / "format.json").write_text(text)
    before = content(tmp_path)
    with pytest.raises(FolderError, match=fault), data_folder.locked(tmp_path):
        pass
    assert content(tmp_path) == before


@pytest.mark.usefixtures("umask")
def test_a_folder_from_before_the_first_release_is_refused(tmp_path):
    """It was written at 704a1c9; all that is in it stays as it is, and `upgrade --check` says the same."""
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    before = content(tmp_path)
    assert tmp_path / "kafka" / "log" / "meta.properties" in before
    assert main(Settings(data=tmp_path, models={"m": {"backends": [{"url": "http://x/v1"}]}}), None) == WRONG
    done = CliRunner().invoke(app, ["upgrade", "--check", "--data", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "has no format number: format.json was not copied with it; or a Tidemill from before" in done.stderr
    assert "Nothing was changed" in done.stderr
    assert content(tmp_path) == before


def test_this_version_reads_a_folder_of_each_release(tmp_path):
    """A tag without one fails here: `tests/support/data` gets a data folder that the release wrote."""
    tags = subprocess.run(["git", "tag"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for number, tag in enumerate(tags):
        with tarfile.open(OLD.with_name(f"{tag}.tar.xz")) as archive:
            archive.extractall(tmp_path / str(number), filter="data")
        assert data_folder.written(tmp_path / str(number))


def test_upgrade_reports_the_format(tmp_path):
    """Of a new folder, and of one with data."""
    said = [CliRunner().invoke(app, ["upgrade", "--check", "--data", str(tmp_path)]).stdout]
    with data_folder.locked(tmp_path):
        data_folder.stamp(tmp_path)
    said.append(CliRunner().invoke(app, ["upgrade", "--check", "--data", str(tmp_path)]).stdout)
    assert "has no data yet" in said[0]
    assert f"has format {FORMAT}, last used by Tidemill {__version__}" in said[1]

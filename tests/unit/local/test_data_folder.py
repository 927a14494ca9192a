"""The data folder: locked by one process, with one key."""

import json
import os
import subprocess
import sys

import pytest

from tidemill.local import data_folder
from tidemill.local.data_folder import FolderError
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources import access

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


def test_a_folder_that_cannot_be_created(tmp_path):
    """The error names it."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FolderError, match="file/data cannot be used"),
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
    for kept in (tmp_path / "api_key", file):
        assert kept.stat().st_mode & 0o777 == 0o600


def test_run_json_is_replaced_atomically(tmp_path):
    """A reader sees one state or the next; no temporary file is left."""
    for content in ({"pid": 1}, {"pid": 2}):
        data_folder.write_run(tmp_path, content)
        assert json.loads((tmp_path / "run.json").read_text()) == content
    data_folder.remove_run(tmp_path)
    data_folder.remove_run(tmp_path)
    assert list(tmp_path.iterdir()) == []

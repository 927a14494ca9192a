"""Files that another user could have written are not used; the test's own user plays that one."""

import os
from types import SimpleNamespace

import pytest

from tidemill import ownership

ANOTHER = 54_321


@pytest.fixture
def is_another(monkeypatch):
    """From now on this process belongs to another user, and root is not trusted."""

    def become():
        monkeypatch.setattr(ownership.os, "geteuid", lambda: ANOTHER)
        monkeypatch.setattr(ownership, "ROOT", ANOTHER)

    return become


def modes(folder):
    """The rights of everything in a folder, links left out."""
    return {
        str(path.relative_to(folder)): path.stat().st_mode & 0o777
        for path in (folder, *folder.rglob("*"))
        if not path.is_symlink()
    }


def test_a_new_folder_is_private(tmp_path):
    """With any umask."""
    before = os.umask(0)
    try:
        assert ownership.make_private(tmp_path / "data") is None
    finally:
        os.umask(before)
    assert modes(tmp_path / "data") == {".": 0o700}
    assert ownership.make_private(tmp_path / "data") is None


@pytest.mark.parametrize("mode", [0o755, 0o711, 0o777, 0o770])
def test_an_open_folder_is_restricted(tmp_path, mode):
    """With its content, since another process may have it open; targets of links stay."""
    outside = tmp_path / "outside"
    outside.write_text("")
    outside.chmod(0o644)
    data = tmp_path / "data"
    (data / "kafka").mkdir(parents=True)
    (data / "kafka" / "record").write_text("")
    (data / "link").symlink_to(outside)
    for path in (data / "kafka" / "record", data / "kafka", data):
        path.chmod(mode)
    assert f"mode {mode:o}" in ownership.make_private(data)
    kept = mode & 0o700
    assert modes(data) == {".": 0o700, "kafka": kept, "kafka/record": kept}
    assert outside.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_folder_of_another_user_is_refused(tmp_path, mode, is_another):
    """Also with strict permissions."""
    (tmp_path / "data").mkdir(mode=mode)
    is_another()
    with pytest.raises(OSError, match=f"data was created by another user .uid {os.getuid()}"):
        ownership.make_private(tmp_path / "data")


def test_a_link_of_another_user_is_refused(tmp_path, monkeypatch):
    """Its creator chooses its target."""
    (tmp_path / "real").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "real")
    ownership.make_private(tmp_path / "data")
    monkeypatch.setattr(ownership.os, "geteuid", lambda: ANOTHER)
    monkeypatch.setattr(ownership, "ROOT", ANOTHER)
    with pytest.raises(OSError, match="created by another user"):
        ownership.make_private(tmp_path / "data")


def test_a_file_of_another_user_is_found(tmp_path, monkeypatch):
    """In a folder that was open; its mode is restored, so that the next start refuses it too."""
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    data.chmod(0o777)
    (data / "planted").write_text("")
    monkeypatch.setattr(ownership, "is_ours", lambda status: (data / "planted").stat().st_ino != status.st_ino)
    for _ in range(2):
        with pytest.raises(OSError, match="planted belongs to another user"):
            ownership.make_private(data)


@pytest.mark.parametrize("below", ["data", "not/there/yet"])
def test_a_replaceable_place_is_refused(tmp_path, below):
    """A folder that all users may write to, unless it has the sticky bit, as /tmp has."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(OSError, match="every user may replace files in"):
        ownership.make_private(tmp_path / "open" / below)
    (tmp_path / "open").chmod(0o1777)
    ownership.make_private(tmp_path / "open" / below)


def test_other_users_cannot_write_to_a_cache(tmp_path, is_another):
    """They may read it."""
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o775)
    ownership.keep_unchanged(cache)
    assert cache.stat().st_mode & 0o777 == 0o755
    is_another()
    with pytest.raises(OSError, match="cache belongs to another user"):
        ownership.keep_unchanged(cache)


@pytest.mark.parametrize(
    ("group", "members", "is_trusted"),
    [("ann", [], True), ("ann", ["ann"], True), ("ann", ["ann", "bob"], False), ("users", [], False)],
)
def test_the_group_of_the_owner_alone_is_trusted(tmp_path, monkeypatch, group, members, is_trusted):
    """Many systems give each user a group of the same name, and make files that it may write to."""
    file = tmp_path / "file"
    file.write_text("")
    file.chmod(0o664)
    monkeypatch.setattr(ownership.pwd, "getpwuid", lambda _: SimpleNamespace(pw_name="ann"))
    monkeypatch.setattr(ownership.grp, "getgrgid", lambda _: SimpleNamespace(gr_name=group, gr_mem=members))
    assert ownership.is_trusted(file) is is_trusted
    file.chmod(0o666)
    assert not ownership.is_trusted(file)


def test_an_unknown_group_is_not_trusted(tmp_path, monkeypatch):
    """As in a container whose user has no name."""

    def unknown(_):
        raise KeyError

    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o664)
    monkeypatch.setattr(ownership.pwd, "getpwuid", unknown)
    assert not ownership.is_trusted(tmp_path / "file")


@pytest.mark.parametrize(("mode", "is_trusted"), [(0o644, True), (0o600, True), (0o646, False), (0o602, False)])
def test_a_file_that_others_may_write_to_is_not_trusted(tmp_path, mode, is_trusted, is_another):
    """Nor one of another user, a link to one, or a folder."""
    file = tmp_path / "file"
    file.write_text("")
    file.chmod(mode)
    (tmp_path / "link").symlink_to(file)
    assert ownership.is_trusted(file) is ownership.is_trusted(tmp_path / "link") is is_trusted
    for other in (".", "none"):
        assert not ownership.is_trusted(tmp_path / other)
    is_another()
    assert not ownership.is_trusted(file)

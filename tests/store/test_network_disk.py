"""A SQLite database on a network disk is not written to, and the message says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.core.errors import UnavailableError
from bench.store import Store, network_disk
from bench.store.network_disk import network_file_system


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the table of mounts, which a test writes; the disk at / is ext4."""
    path = tmp_path / "mountinfo"
    monkeypatch.setattr(network_disk, "MOUNTS", path)
    return path


def mount(table: Path, folder: object, kind: str, source: str = "server:/share") -> None:
    """Add a line as Linux writes it."""
    if not table.exists():
        table.write_text("21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n")
    place = str(folder).replace("\\", r"\134").replace(" ", r"\040")
    with table.open("a") as file:
        file.write(f"36 21 0:42 / {place} rw,noatime shared:2 master:1 - {kind} {source} rw\n")


@pytest.mark.parametrize("kind", ["nfs4", "nfs", "cifs", "fuse.sshfs", "ceph", "fuse.glusterfs"])
def test_a_network_disk_is_recognised(kind: str, tmp_path: Path, table: Path) -> None:
    mount(table, tmp_path / "share", kind)
    assert network_file_system(tmp_path / "share") == kind
    assert network_file_system(tmp_path / "share" / "not" / "yet") == kind
    assert network_file_system(tmp_path) == ""
    assert network_file_system(tmp_path / "shared") == ""


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "9p", "fuseblk"])
def test_a_local_disk_is_none(kind: str, tmp_path: Path, table: Path) -> None:
    mount(table, tmp_path / "disk", kind)
    assert network_file_system(tmp_path / "disk") == ""


def test_the_innermost_and_latest_mount_counts(tmp_path: Path, table: Path) -> None:
    mount(table, tmp_path / "a b" / "local", "xfs")
    mount(table, tmp_path / "a b", "nfs4")
    mount(table, tmp_path / "over", "nfs4")
    mount(table, tmp_path / "over", "ext4")
    assert network_file_system(tmp_path / "a b" / "data") == "nfs4"
    assert network_file_system(tmp_path / "a b" / "local") == ""
    assert network_file_system(tmp_path / "over") == ""


def test_a_link_is_followed(tmp_path: Path, table: Path) -> None:
    mount(table, tmp_path / "share", "nfs4")
    (tmp_path / "share").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "share")
    assert network_file_system(tmp_path / "link") == "nfs4"


@pytest.mark.parametrize("text", ["", "garbage\n", "1 2 3 - nfs4\n", "\x00\xff - \n"])
def test_an_unreadable_table_recognises_nothing(text: str, tmp_path: Path, table: Path) -> None:
    assert network_file_system(tmp_path) == ""
    table.write_text(text)
    assert network_file_system(tmp_path) == ""


def test_a_database_on_a_network_disk_is_read_and_not_written(tmp_path: Path, table: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    path = share / "bench.db"
    with Store.open(str(path)):
        pass
    before = path.read_bytes()
    mount(table, share, "nfs4")
    for refused in (path, share / "new.db"):
        with pytest.raises(UnavailableError) as caught:
            Store.open(str(refused))
        assert str(caught.value) == (
            f"{refused} lies on a network disk (nfs4), where SQLite can lose what several processes"
            " write: give a path on a disk of this machine, or a postgresql:// URL."
        )
    assert path.read_bytes() == before and not (share / "new.db").exists()
    with Store.open(str(path), read_only=True) as store:
        assert store.cells() == []


def test_the_disk_of_the_tests_is_recognised_by_the_real_table(tmp_path: Path) -> None:
    table = [line.split(" - ")[1].split()[0] for line in
             Path("/proc/self/mountinfo").read_text().splitlines()]  # fmt: skip
    if not any(kind.removeprefix("fuse.") in network_disk.NETWORK for kind in table):
        assert network_file_system(tmp_path) == ""
        with Store.open(str(tmp_path / "bench.db")) as store:
            assert store.cells() == []

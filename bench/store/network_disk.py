"""Recognises a folder on a network disk, where SQLite's write-ahead log is not safe.

All processes that use the log share memory beside it, which a network file system does not offer
across machines (https://www.sqlite.org/wal.html). Linux only: elsewhere nothing is recognised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bench.core.errors import UnavailableError

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "lustre", "gpfs",
    "beegfs", "glusterfs", "orangefs", "pvfs2", "ocfs2", "gfs2", "sshfs", "davfs", "davfs2",
    "s3fs", "goofys", "gcsfuse", "blobfuse", "blobfuse2", "rclone", "curlftpfs", "ceph-fuse",
    "juicefs", "mfs", "moosefs", "seaweedfs",
})  # fmt: skip
"""File systems that several machines mount, without `fuse.` before their names."""


def network_file_system(folder: Path) -> str:
    """The file system of a folder, such as nfs4, if it is one of a network; else empty.

    Where the folder is missing, that of the nearest existing one above it.
    """
    place = folder.resolve()
    kind, longest = "", -1
    for mounted_at, found in _mounts():
        if place.is_relative_to(mounted_at) and len(mounted_at.parts) >= longest:
            kind, longest = found, len(mounted_at.parts)  # a later one covers an earlier one
    return kind if kind.removeprefix("fuse.") in NETWORK else ""


def require_local_disk(database: Path) -> None:
    """Raise UnavailableError where a SQLite database lies on a network disk."""
    kind = network_file_system(database.parent)
    if kind:
        raise UnavailableError(
            f"{database} lies on a network disk ({kind}), where SQLite can lose what several"
            " processes write: give a path on a disk of this machine, or a postgresql:// URL."
        )


def _mounts() -> Iterator[tuple[Path, str]]:
    """Folder and kind of each mounted file system, as proc(5) describes them."""
    with suppress(OSError):
        for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
            before, dash, after = line.partition(" - ")
            if dash and len(fields := before.split(" ")) > 4:
                name = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
                yield Path(name), after.split(" ")[0]

"""A PostgreSQL server on a socket in a folder of its own, and a small disk; for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@dataclass(frozen=True)
class PostgresServer:
    """A server that can be stopped and started again."""

    folder: Path

    @property
    def url(self) -> str:
        """The URL of its only database."""
        return f"postgresql://bench@/postgres?host={self.folder}"

    def run(self, program: str, *arguments: str) -> None:
        """Run a program of PostgreSQL on the server's data, as a user that is not root."""
        switch = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []
        data = ("-D", str(self.folder / "data"))
        command = [*switch, str(PROGRAMS[-1] / program), *data, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"
        self.run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: `fast` ends its connections, `immediate` is a crash."""
        self.run("pg_ctl", "-m", mode, "stop")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server, removed at the end."""
    server = PostgresServer(Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")))
    if os.geteuid() == 0:
        shutil.chown(server.folder, "nobody")
    try:
        server.run("initdb", "-A", "trust", "-U", "bench", "-E", "UTF8", "--no-sync")
        server.start()
        yield server
        server.stop("immediate")
    finally:
        shutil.rmtree(server.folder)


@dataclass(frozen=True)
class SmallDisk:
    """A disk in memory that is filled by one file."""

    folder: Path

    def fill(self) -> None:
        """Leave no space."""
        filler = self.folder / "filler"
        with filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 12))
            except OSError:
                return

    def free(self) -> None:
        """Free the space again."""
        (self.folder / "filler").unlink()

    def remount(self, mode: str) -> None:
        """Mount it again: `ro` for reading only, `rw` for writing."""
        subprocess.run(["mount", "-o", f"remount,{mode}", self.folder], check=True)


@contextmanager
def small_disk(folder: Path, size: str = "3m") -> Iterator[SmallDisk]:
    """A small disk mounted at a folder; raises OSError where this process may not mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        raise PermissionError("this process may not mount a disk")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)

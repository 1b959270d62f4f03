"""`bench leaderboard` among hostile files and requests: no foreign code, hosts or endpoints."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PROGRAM = "import sys\nfrom bench.cli import main\nif __name__ == '__main__':\n    main()\n"
"""What the installed command `bench` runs."""
PLANTED_MODULES = ("click", "streamlit", "sitecustomize", "usercustomize", "leaderboard", "typing")
PLANTED_SOURCE = "from pathlib import Path\nPath({marker!r}).touch()\nraise SystemExit(9)\n"
PLANTED_CONFIG = """
[server]
baseUrlPath = "elsewhere"
enableCORS = false
enableXsrfProtection = false
allowedHosts = ["*"]
"""
UPGRADE = {
    "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}  # fmt: skip


class Serving(NamedTuple):
    """A running server, the folder in which it was started, and its output."""

    port: int
    folder: Path
    log: Path

    def status(self, path: str = "/", method: str = "GET", **headers: str) -> int:
        """The status of one answer."""
        return self.answer(path, method, **headers)[0]

    def answer(
        self, path: str = "/", method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (small letters) and body of one answer; `host=""` sends none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        host = given.pop("host", f"127.0.0.1:{self.port}")
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if host:
            connection.putheader("Host", host)
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders()
        with connection.getresponse() as answer:
            body = b"" if answer.status == 101 else answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            connection.close()
            return answer.status, found, body

    def upgrade(self, **headers: str) -> int:
        """The status with which a WebSocket of the pages is answered."""
        return self.status("/_stcore/stream", **{**UPGRADE, **headers})


def plant(folder: Path) -> None:
    """Write Python modules and settings of Streamlit that must not be read."""
    for name in PLANTED_MODULES:
        source = PLANTED_SOURCE.format(marker=str(folder / f"{name}.ran"))
        (folder / f"{name}.py").write_text(source)
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit" / "config.toml").write_text(PLANTED_CONFIG)
    (folder / ".streamlit" / "secrets.toml").write_text("not = [toml")


def ran(folder: Path) -> list[str]:
    """Names of the planted modules that were run."""
    return sorted(path.name for path in folder.glob("*.ran"))


def command(folder: Path, *words: str) -> list[str]:
    """The installed command, whose program lies in a folder of its own."""
    program = folder / "bin" / "bench"
    program.parent.mkdir(exist_ok=True)
    program.write_text(PROGRAM)
    return [sys.executable, str(program), *words]


@pytest.fixture(scope="module")
def serving(example_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder, log = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("log") / "log"
    plant(folder)
    database = Path(example_url.removeprefix("sqlite:///"))
    relative = os.path.relpath(database, folder)
    words = ("leaderboard", "--port", "0", "--no-open", "--db", relative,
             "--allow-host", "results.example.org")  # fmt: skip
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command(tmp_path_factory.mktemp("program"), *words), cwd=folder, stderr=stderr,
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 90
    while "Leaderboard: " not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    port = int(log.read_text().partition("http://127.0.0.1:")[2].split()[0])
    yield Serving(port, folder, log)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_no_module_and_no_setting_of_the_current_folder_is_read(serving: Serving) -> None:
    assert serving.status("/_stcore/health") == 200  # the planted settings move it elsewhere
    assert ran(serving.folder) == []
    said = serving.log.read_text()
    assert "elsewhere" not in said and "secret" not in said.lower(), said


def test_a_planted_module_does_run_where_the_current_folder_is_searched(tmp_path: Path) -> None:
    plant(tmp_path)
    words = [sys.executable, "-m", "streamlit", "version"]
    subprocess.run(words, cwd=tmp_path, capture_output=True, check=False)
    assert ran(tmp_path) == ["streamlit.ran"]


def test_an_export_runs_no_module_of_the_current_folder(example_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    plant(folder)
    (folder / "bench.db").symlink_to(example_url.removeprefix("sqlite:///"))
    words = command(tmp_path, "leaderboard", "--export", "site")
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ran(folder) == []
    assert (folder / "site" / "index.html").exists()


def test_processes_of_a_command_do_not_search_the_current_folder(tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    marker = folder / "multiprocessing.ran"
    (folder / "multiprocessing.py").write_text(PLANTED_SOURCE.format(marker=str(marker)))
    words = command(tmp_path, "list", "suites")
    program = Path(words[1])
    program.write_text(
        "import multiprocessing, os, sys\nfrom bench.cli import main\n"
        "if __name__ == '__main__':\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "    process = multiprocessing.get_context('spawn').Process(target=os.getpid)\n"
        "    process.start()\n    process.join()\n    sys.exit(process.exitcode)\n"
    )
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ran(folder) == []


@pytest.mark.parametrize(
    "host",
    ["localhost:{port}", "LOCALHOST:{port}", "localhost.:{port}", "[::1]:{port}", "127.0.0.1",
     "results.example.org", "Results.Example.org:443"],
)  # fmt: skip
def test_a_known_host_is_served(serving: Serving, host: str) -> None:
    assert serving.status("/", host=host.format(port=serving.port)) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example",
     "x.results.example.org", "127.0.0.1@evil.example", "evil.example@127.0.0.1", "127.0.0.1:x",
     "127.0.0.1/", "[::1", "[::2]:{port}", "0.0.0.0:{port}", "127.0.0.2", "169.254.169.254", "*"],
)  # fmt: skip
def test_an_unknown_host_is_refused_on_every_path(serving: Serving, host: str) -> None:
    host = host.format(port=serving.port)
    for path in ("/", "/_stcore/health", "/static/js/none.js"):
        status, headers, body = serving.answer(path, host=host)
        assert status in {400, 421}, (path, status)  # 400: the server itself cannot parse it
        assert status == 400 or b"--allow-host" in body
        assert status == 400 or headers["x-content-type-options"] == "nosniff"
        assert b"evil" not in body
    assert serving.upgrade(host=host) in {400, 403}


def test_two_hosts_and_no_host_are_refused(serving: Serving) -> None:
    assert serving.status("/", host="") == 400
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=20)
    connection.putrequest("GET", "/", skip_host=True)
    for name in ("127.0.0.1", "evil.example"):
        connection.putheader("Host", name)
    connection.endheaders()
    assert connection.getresponse().status in {400, 421}
    connection.close()


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost:1", "http://127.0.0.1", "null", "file://", ""],
)
def test_the_connection_of_another_origin_is_refused(serving: Serving, origin: str) -> None:
    assert serving.upgrade(Origin=origin) == 403
    assert serving.status("/", Origin=origin) == 403


def test_the_connection_of_the_pages_is_accepted(serving: Serving) -> None:
    assert serving.upgrade(Origin=f"http://127.0.0.1:{serving.port}") == 101
    host = "results.example.org"
    assert serving.upgrade(host=host, Origin=f"https://{host}") == 101


@pytest.mark.parametrize(
    "path",
    ["/_stcore/metrics", "/_stcore/metrics/", "//_stcore/metrics", "/%5fstcore/metrics",
     "/matrix/_stcore/metrics", "/_stcore/health/../metrics", "/_stcore/script-health-check",
     "/_stcore/upload_file/a/b", "/_stcore/agent/openapi.json", "/_stcore/", "/_stcore"],
)  # fmt: skip
def test_endpoints_that_the_pages_do_not_need_are_closed(serving: Serving, path: str) -> None:
    status, _, body = serving.answer(path)
    assert status in {400, 404}, body
    assert b"session" not in body and b"memory" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_the_pages_are_only_read(serving: Serving, method: str) -> None:
    for path in ("/", "/_stcore/upload_file/a/b", "/_stcore/agent/interact", "/_stcore/health"):
        assert serving.status(path, method) in {404, 405}


def test_no_other_site_may_read_or_frame_the_pages(serving: Serving) -> None:
    for path in ("/", "/_stcore/health", "/_stcore/metrics"):
        _, headers, _ = serving.answer(path)
        assert "access-control-allow-origin" not in headers
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]

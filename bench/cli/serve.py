"""Starts the leaderboard in another process and waits for it; imports no torch."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from types import FrameType

from bench.core.errors import BenchError, UnavailableError
from bench.store.published import OR_PUBLISHED

STDERR = 2  # stdout is for data
START_TIMEOUT = 90.0
"""Seconds within which the server must answer."""
HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,45}")
EVERY_ADDRESS = {"0.0.0.0", "::"}


def serve(
    host: str = "127.0.0.1",
    port: int = 8501,
    db: str | None = None,
    open_browser: bool = True,
    export: Path | None = None,
    allowed_hosts: Sequence[str] = (),
) -> int:
    """Serve the pages until interrupted, or write them as plain files to `export`.

    The other process starts in the folder of the pages, so that it reads no module and no setting
    of the current folder.

    Args:
        host: address to listen on.
        port: 0 selects a free one.
        db: URL of the database; None: $BENCH_DB, else bench.db in the current folder, and while
            there is no such file the published database.
        open_browser: whether to open the pages in a browser.
        export: folder for the plain files.
        allowed_hosts: names under which the pages are served, besides `host` and local names.

    Returns:
        The exit code, which is 0 after Ctrl-C.

    Raises:
        BenchError: one of `allowed_hosts` is no host name.
        UnavailableError: the port is in use, or the server does not start.
    """
    names = [host, *map(_host_name, allowed_hosts)]
    environment = {**_environment(db), "BENCH_ALLOWED_HOSTS": " ".join(names)}
    place = str(files("leaderboard"))
    if export is not None:
        command = [sys.executable, "-P", "-m", "leaderboard.snapshot", str(export.absolute())]
        return subprocess.run(command, env=environment, cwd=place, check=False).returncode
    if host in EVERY_ADDRESS and not allowed_hosts:
        print(
            "Only this machine can open the pages: name the host under which others reach it with "
            "--allow-host NAME.",
            file=sys.stderr,
        )
    port = _free(host, port)
    server = subprocess.Popen(
        _command(host, port), env=environment, cwd=place, stdin=subprocess.DEVNULL, stdout=STDERR
    )
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        url = _wait_until_healthy(server, host, port)
        print(f"Leaderboard: {url} (stop it with Ctrl-C)", file=sys.stderr, flush=True)
        if open_browser:
            webbrowser.open(url)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
        _stop(server)


def _host_name(text: str) -> str:
    """A name of `--allow-host`; raises BenchError where it is more than a name or an address.

    >>> _host_name("Results.example.org"), _host_name("[::1]")
    ('results.example.org', '::1')
    """
    name = text.removeprefix("[").removesuffix("]").lower()
    if not HOST_NAME.fullmatch(name):
        raise BenchError(
            f"--allow-host came as {text!r}; write a name or an address without scheme, port and "
            "wildcard: results.example.org."
        )
    return name


def _environment(db: str | None) -> dict[str, str]:
    """The environment of the other process: paths are absolute, since it has another folder."""
    url = db or os.environ.get("BENCH_DB") or "sqlite:///bench.db"
    scheme, found, path = url.partition("sqlite:///")
    if found and not scheme and path:
        url = found + str(Path(path).expanduser().absolute())
    images = os.environ.get("BENCH_ARTIFACTS") or ("" if found else "artifacts")
    disputes = os.environ.get("BENCH_DISPUTES", "")
    search = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    changed = {
        "BENCH_DB": url,
        "BENCH_ARTIFACTS": str(Path(images).absolute()) if images else "",
        "BENCH_DISPUTES": str(Path(disputes).absolute()) if disputes else "",
        "PYTHONPATH": os.pathsep.join(str(Path(place).absolute()) for place in search),
        OR_PUBLISHED: "" if db or os.environ.get("BENCH_DB") else "1",
    }
    return {name: value for name, value in {**os.environ, **changed}.items() if value}


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _command(host: str, port: int) -> list[str]:
    script = str(files("leaderboard") / "server.py")
    options = {
        "server.headless": "true",
        "server.address": host,
        "server.port": str(port),
        "server.fileWatcherType": "none",
        "server.enableCORS": "true",
        "server.enableXsrfProtection": "true",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": "true",
        "logger.level": "warning",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, "-P", "-m", "streamlit", "run", script, *flags]


def _free(host: str, port: int) -> int:
    """The port, or a free one for 0; raises UnavailableError where it is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", "") or error
            raise UnavailableError(
                f"port {port} of {host} cannot be used ({reason}): stop the program that"
                " listens there, or use another --port (0 selects a free one)."
            ) from error
        return int(probe.getsockname()[1])


def _wait_until_healthy(server: subprocess.Popen[bytes], host: str, port: int) -> str:
    """The URL of the leaderboard, once the server answers."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2):
                return url
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise UnavailableError(
        f"the leaderboard did not answer at {url}: see its message above, or run `bench doctor`."
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()

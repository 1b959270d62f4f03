"""Starts the leaderboard in another process and waits for it; imports no torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from importlib.resources import files
from pathlib import Path
from types import FrameType

from bench.core.errors import UnavailableError

STDERR = 2  # stdout is for data
START_TIMEOUT = 90.0
"""Seconds within which the server must answer."""


def serve(
    host: str = "127.0.0.1",
    port: int = 8501,
    db: str | None = None,
    open_browser: bool = True,
    export: Path | None = None,
) -> int:
    """Serve the pages until interrupted, or write them as plain files to `export`.

    Port 0 selects a free port. Returns the exit code, which is 0 after Ctrl-C. Raises
    UnavailableError where the port is in use or the server does not start.
    """
    environment = {**os.environ, **({"BENCH_DB": db} if db else {})}
    if export is not None:
        command = [sys.executable, "-m", "leaderboard.snapshot", str(export)]
        return subprocess.run(command, env=environment, check=False).returncode
    port = _free(host, port)
    server = subprocess.Popen(
        _command(host, port), env=environment, stdin=subprocess.DEVNULL, stdout=STDERR
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


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _command(host: str, port: int) -> list[str]:
    script = str(files("leaderboard") / "server.py")
    options = {
        "server.headless": "true",
        "server.address": host,
        "server.port": str(port),
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": "true",
        "logger.level": "warning",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "streamlit", "run", script, *flags]


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

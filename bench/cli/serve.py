"""Starts the leaderboard in a process of its own and waits for it; no torch."""

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
PATIENCE = 90.0
"""Seconds until a server that does not answer is given up."""


def serve(
    host: str = "127.0.0.1",
    port: int = 8501,
    db: str | None = None,
    open_browser: bool = True,
    export: Path | None = None,
) -> int:
    """Serve the pages until interrupted; or write them as plain files to `export`.

    Port 0 takes a free one. Returns the exit code: 0 after Ctrl-C. UnavailableError where the port
    is     taken or the server does not start.
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
        print(f"Leaderboard: {url} (Ctrl-C stops it)", file=sys.stderr, flush=True)
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
    """The port, or a free one for 0; UnavailableError where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", "") or error
            raise UnavailableError(
                f"port {port} of {host} cannot be used ({reason}): stop what listens"
                " there, or give another --port (0 takes a free one)."
            ) from error
        return int(probe.getsockname()[1])


def _wait_until_healthy(server: subprocess.Popen[bytes], host: str, port: int) -> str:
    """The address to open, once the server answers."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2):
                return url
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise UnavailableError(
        f"the leaderboard did not answer at {url}: its message stands above; `bench doctor` looks"
        " further."
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()

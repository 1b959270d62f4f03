"""bench leaderboard: ports, options, and failures before the first page."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from bench.cli import serve
from bench.core.errors import UnavailableError


def test_port_zero_selects_a_free_port() -> None:
    assert serve._free("127.0.0.1", 0) > 0


def test_a_port_in_use_is_reported_in_one_sentence() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"port {port} of 127.0.0.1 cannot be used"):
            serve.serve(port=port, open_browser=False)


def test_a_server_that_exits_at_once_is_reported_in_one_sentence() -> None:
    dead = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    dead.wait()
    with pytest.raises(UnavailableError, match="did not answer"):
        serve._wait_until_healthy(dead, "127.0.0.1", 1)


def test_usage_statistics_and_tracebacks_are_off() -> None:
    command = " ".join(serve._command("127.0.0.1", 8501))
    assert "--browser.gatherUsageStats false" in command
    assert "--client.showErrorDetails none" in command
    assert "--server.address 127.0.0.1" in command

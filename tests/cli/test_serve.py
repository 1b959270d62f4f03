"""bench leaderboard: ports, options, and failures before the first page."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import serve
from bench.core.errors import BenchError, UnavailableError


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
    assert "--server.enableCORS true --server.enableXsrfProtection true" in command


@pytest.mark.parametrize("name", ["*", "*.example.org", "http://a.org", "a.org:80", "a b", "", "-"])
def test_a_value_that_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(BenchError, match="--allow-host came as"):
        serve.serve(open_browser=False, allowed_hosts=[name])


@pytest.mark.parametrize(
    ("given", "expected"),
    [("sqlite:///a b.db", "sqlite:///{here}/a b.db"), ("sqlite:////x/y.db", "sqlite:////x/y.db"),
     ("postgresql://u:p@h/n", "postgresql://u:p@h/n"), (None, "sqlite:///{here}/bench.db")],
)  # fmt: skip
def test_the_other_process_gets_absolute_paths(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_DB", raising=False)
    monkeypatch.setenv("BENCH_ARTIFACTS", "images")
    monkeypatch.setenv("BENCH_DISPUTES", "notes.toml")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "src", "/lib", ""]))
    environment = serve._environment(given)
    assert environment["BENCH_DB"] == expected.format(here=tmp_path)
    assert environment["BENCH_ARTIFACTS"] == str(tmp_path / "images")
    assert environment["BENCH_DISPUTES"] == str(tmp_path / "notes.toml")
    assert environment["PYTHONPATH"] == os.pathsep.join([str(tmp_path / "src"), "/lib"])


def test_images_of_a_database_server_stay_beside_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_ARTIFACTS", raising=False)
    found = serve._environment("postgresql://h/n")
    assert found["BENCH_ARTIFACTS"] == str(tmp_path / "artifacts")
    assert "BENCH_ARTIFACTS" not in serve._environment("sqlite:///x.db")
